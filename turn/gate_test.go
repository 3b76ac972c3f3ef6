// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun"
)

var publicPeer = netip.MustParseAddrPort("11.0.0.1:4000")

func TestGate_ErrorCodes(t *testing.T) {
	v6 := rawAttr(stun.AttrRequestedAddressFamily, []byte{2, 0, 0, 0})
	tests := []struct {
		name      string
		allocated bool
		method    stun.Method
		attrs     []stun.Setter
		want      int
	}{
		{"allocate", false, stun.MethodAllocate, []stun.Setter{transportUDP}, 0},
		{"allocate for ipv4 by name", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrRequestedAddressFamily, []byte{1, 0, 0, 0})}, 0},
		{"allocate without transport", false, stun.MethodAllocate, nil, 400},
		{"allocate a tcp relay", false, stun.MethodAllocate, []stun.Setter{rawAttr(stun.AttrRequestedTransport, []byte{6, 0, 0, 0})}, 442},
		{"allocate an ipv6 relay", false, stun.MethodAllocate, []stun.Setter{transportUDP, v6}, 440},
		{"allocate an even port", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrEvenPort, []byte{0})}, 0},
		{"allocate two ports", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrEvenPort, []byte{0x80})}, 508},
		{"allocate a reserved port", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrReservationToken, make([]byte, 8))}, 508},
		{"allocate with token and family", false, stun.MethodAllocate, []stun.Setter{transportUDP, v6, rawAttr(stun.AttrReservationToken, make([]byte, 8))}, 400},
		{"allocate with dont-fragment", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrDontFragment, nil)}, 420},
		{"allocate with an unknown attribute", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(0x7ffe, []byte{1})}, 420},
		{"allocate with an unknown optional attribute", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(0xfffe, []byte{1})}, 0},
		{"allocate twice", true, stun.MethodAllocate, []stun.Setter{transportUDP}, 437},
		{"refresh nothing", false, stun.MethodRefresh, nil, 437},
		{"refresh", true, stun.MethodRefresh, nil, 0},
		{"refresh another family", true, stun.MethodRefresh, []stun.Setter{v6}, 443},
		{"end nothing", false, stun.MethodRefresh, []stun.Setter{lifetimeSeconds(0)}, 437},
		{"end", true, stun.MethodRefresh, []stun.Setter{lifetimeSeconds(0)}, 0},
		{"permission without allocation", false, stun.MethodCreatePermission, []stun.Setter{peerAddress(publicPeer)}, 437},
		{"permission", true, stun.MethodCreatePermission, []stun.Setter{peerAddress(publicPeer)}, 0},
		{"permission without peer", true, stun.MethodCreatePermission, nil, 400},
		{"permission for ipv6", true, stun.MethodCreatePermission, []stun.Setter{peerAddress(netip.MustParseAddrPort("[2a00::1]:4000"))}, 443},
		{"permission for a denied one among good ones", true, stun.MethodCreatePermission, []stun.Setter{peerAddress(publicPeer), peerAddress(netip.MustParseAddrPort("10.0.0.1:1"))}, 403},
		{"channel without allocation", false, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peerAddress(publicPeer)}, 437},
		{"channel", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peerAddress(publicPeer)}, 0},
		{"last channel", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4fff), peerAddress(publicPeer)}, 0},
		{"channel below the range", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x3fff), peerAddress(publicPeer)}, 400},
		{"channel above the range", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x5000), peerAddress(publicPeer)}, 400},
		{"channel without number", true, stun.MethodChannelBind, []stun.Setter{peerAddress(publicPeer)}, 400},
		{"channel without peer", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000)}, 400},
		{"channel to port 0", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peerAddress(netip.AddrPortFrom(publicPeer.Addr(), 0))}, 400},
		{"channel to two peers", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peerAddress(publicPeer), peerAddress(netip.MustParseAddrPort("11.0.0.2:1"))}, 400},
		{"channel to a denied peer", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peerAddress(netip.MustParseAddrPort("169.254.169.254:80"))}, 403},
	}
	s := newServer(t, func(c *Config) { c.Limits.AllocationsPerUser = 1000 })
	for i, tc := range tests {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(network+" "+tc.name, func(t *testing.T) {
				cred := s.secrets.Mint(fmt.Sprintf("user-%d", i), time.Minute)
				c := dialUDP(t, s, cred)
				if network == "tcp" {
					c = dialTCP(t, s, cred)
				}
				if tc.allocated {
					c.allocate()
				} else {
					c.login()
				}
				res := c.request(tc.method, tc.attrs...)
				if got := code(res); got != tc.want {
					t.Fatalf("error code %d, want %d", got, tc.want)
				}
				if tc.want != 0 && !res.Contains(stun.AttrMessageIntegrity) && tc.want != 437 {
					t.Error("the refusal is not signed")
				}
			})
		}
	}
}

func TestGate_UnknownAttributesAreNamed(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	res := c.request(stun.MethodAllocate, transportUDP, rawAttr(stun.AttrDontFragment, nil), rawAttr(0x7ffe, nil))
	v, err := res.Get(stun.AttrUnknownAttributes)
	if err != nil || !slices.Equal(v, []byte{0x00, 0x1a, 0x7f, 0xfe}) {
		t.Fatalf("UNKNOWN-ATTRIBUTES is %x (%v)", v, err)
	}
}

// Whatever is wrong with a credential, the answer is the one that a request
// without credential gets.
func TestGate_BadCredentialsGetTheSameChallenge(t *testing.T) {
	s := newServer(t, func(c *Config) { c.AllowUser = func(user string) bool { return user != "banned" } })
	good := s.secrets.Mint("u", time.Minute)
	other, _ := NewSecrets(nil, nil)
	tests := map[string]Credential{
		"expired":           s.secrets.Mint("u", -time.Minute),
		"ends now":          s.secrets.Mint("u", 0),
		"wrong password":    {Username: good.Username, Password: "x"},
		"empty password":    {Username: good.Username},
		"other secret":      other.Mint("u", time.Minute),
		"other user":        {Username: good.Username + "2", Password: good.Password},
		"longer life":       {Username: "9" + good.Username, Password: good.Password},
		"no expiry":         {Username: "u", Password: password(s.secrets.current, "u")},
		"no user":           {Username: "9999999999:", Password: password(s.secrets.current, "9999999999:")},
		"no user, no colon": {Username: "9999999999", Password: password(s.secrets.current, "9999999999")},
		"negative expiry":   {Username: "-1:u", Password: password(s.secrets.current, "-1:u")},
		"empty secret":      {Username: good.Username, Password: password(nil, good.Username)},
		"banned":            s.secrets.Mint("banned", time.Minute),
	}
	for name, cred := range tests {
		t.Run(name, func(t *testing.T) {
			for _, c := range []*rawClient{dialUDP(t, s, cred), dialTCP(t, s, cred)} {
				c.login()
				for _, method := range []stun.Method{stun.MethodAllocate, stun.MethodRefresh} {
					res := c.request(method, transportUDP)
					if code(res) != 401 || !res.Contains(stun.AttrNonce) || !res.Contains(stun.AttrRealm) || len(res.Attributes) != 3 {
						t.Errorf("%v: got %v, code %d", method, res, code(res))
					}
				}
				if c.RemoteAddr().Network() == "udp" { // a request that needs an allocation says nothing to a stranger
					c.send(c.signed(stun.MethodCreatePermission, peerAddress(publicPeer)).Raw)
					c.binding()
				}
			}
		})
	}
	total := 0
	for _, reason := range []failure{mismatch, expired, revoked} {
		n := value(s.metrics.failures[string(reason)])
		if n == 0 {
			t.Errorf("no failure counted as %s", reason)
		}
		total += n
	}
	if want := len(tests) * 5; total != want {
		t.Errorf("%d failures counted, want %d", total, want)
	}
}

// A signature of one user on another user's 5-tuple changes nothing.
func TestGate_AllocationBelongsToItsUser(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("alice", time.Minute))
	c.allocate()
	c.cred = s.secrets.Mint("mallory", time.Minute)
	for _, m := range []struct {
		method stun.Method
		attrs  []stun.Setter
		want   int
	}{
		{stun.MethodRefresh, []stun.Setter{lifetimeSeconds(0)}, 441},
		{stun.MethodCreatePermission, []stun.Setter{peerAddress(publicPeer)}, 441},
		{stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peerAddress(publicPeer)}, 441},
		{stun.MethodAllocate, []stun.Setter{transportUDP}, 437},
	} {
		if got := code(c.request(m.method, m.attrs...)); got != m.want {
			t.Errorf("%v: code %d, want %d", m.method, got, m.want)
		}
	}
	if n := value(s.metrics.allocations); n != 1 {
		t.Errorf("%d allocations, want alice's", n)
	}
}

func TestGate_RepeatedAllocateGetsTheSameAnswer(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	m := c.signed(stun.MethodAllocate, transportUDP)
	first, second := c.do(m), c.do(m)
	if code(first) != 0 || !slices.Equal(first.Raw, second.Raw) {
		t.Fatalf("first %v, second %v", first, second)
	}
}

func TestGate_RepeatedChannelBindIsOneChannel(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.Channels, c.Limits.Permissions = 1, 1 })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	for range 3 {
		if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))); got != 0 {
			t.Errorf("code %d", got)
		}
	}
}

func TestGate_EvenPorts(t *testing.T) {
	for _, ports := range [][2]uint16{{}, {30001, 39999}} {
		s := newServer(t, func(c *Config) { c.Relay.MinPort, c.Relay.MaxPort = ports[0], ports[1] })
		for range 10 {
			c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
			res := c.request(stun.MethodAllocate, transportUDP, rawAttr(stun.AttrEvenPort, []byte{0}))
			var relayed stun.XORMappedAddress
			if err := relayed.GetFromAs(res, stun.AttrXORRelayedAddress); err != nil || relayed.Port%2 != 0 {
				t.Errorf("ports %v: relay %v (%v), code %d", ports, relayed, err, code(res))
			}
		}
	}
}

func TestGate_StaleNonce(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	c.nonce = "0000"
	res := c.request(stun.MethodAllocate, transportUDP)
	if code(res) != 438 || !res.Contains(stun.AttrNonce) {
		t.Fatalf("got %v, code %d", res, code(res))
	}
}

func TestGate_LifetimeIsTheServers(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.Lifetime = 90 * time.Second })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	ask := func(method stun.Method, seconds uint32) uint32 {
		res := c.request(method, transportUDP, lifetimeSeconds(seconds))
		v, err := res.Get(stun.AttrLifetime)
		if err != nil {
			t.Fatalf("%v: %v, code %d", method, err, code(res))
		}
		return binary.BigEndian.Uint32(v)
	}
	if got := ask(stun.MethodAllocate, 0); got != 90 { // only a Refresh can ask for an end
		t.Errorf("allocate 0: lifetime %d", got)
	}
	for _, seconds := range []uint32{1, 90, 3600, 1<<32 - 1} {
		if got := ask(stun.MethodRefresh, seconds); got != 90 {
			t.Errorf("refresh %d: lifetime %d", seconds, got)
		}
	}
	if got := ask(stun.MethodRefresh, 0); got != 0 {
		t.Errorf("refresh 0: lifetime %d", got)
	}
}

func TestGate_Quotas(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.AllocationsPerUser, c.Limits.Allocations = 2, 3 })
	refused := func(user string) int {
		return code(dialUDP(t, s, s.secrets.Mint(user, time.Minute)).login().request(stun.MethodAllocate, transportUDP))
	}
	first := dialUDP(t, s, s.secrets.Mint("a", time.Minute))
	first.allocate()
	dialTCP(t, s, s.secrets.Mint("a", 2*time.Minute)).allocate() // another credential of the same user
	if got := refused("a"); got != 486 {
		t.Errorf("third allocation of a user: %d, want 486", got)
	}
	dialUDP(t, s, s.secrets.Mint("b", time.Minute)).allocate()
	if got := refused("c"); got != 508 {
		t.Errorf("fourth allocation in total: %d, want 508", got)
	}
	first.request(stun.MethodRefresh, lifetimeSeconds(0))
	if got := refused("a"); got != 0 {
		t.Errorf("after one has ended: %d", got)
	}
}

func TestGate_PermissionsAndChannelsAreBounded(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.Permissions, c.Limits.Channels = 3, 2 })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	peer := func(i byte) stun.Setter {
		return peerAddress(netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, 0, 0, i}), 1000))
	}
	for i := range byte(2) {
		if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000+uint16(i)), peer(i))); got != 0 {
			t.Fatalf("channel %d: %d", i, got)
		}
	}
	if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4002), peer(0))); got != 508 {
		t.Errorf("third channel: %d, want 508", got)
	}
	if got := code(c.request(stun.MethodCreatePermission, peer(0), peer(1), peer(2))); got != 0 {
		t.Errorf("third permission: %d", got)
	}
	if got := code(c.request(stun.MethodCreatePermission, peer(3))); got != 508 {
		t.Errorf("fourth permission: %d, want 508", got)
	}
	// A refusal costs nothing: what is granted can still be refreshed.
	if got := code(c.request(stun.MethodCreatePermission, peer(0), peer(1), peer(2))); got != 0 {
		t.Errorf("permissions anew: %d", got)
	}
	if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4001), peer(1))); got != 0 {
		t.Errorf("channel anew: %d", got)
	}
}

// The hook allows one port of loopback. Another port stays out of reach by
// every way there is, although the engine's permission covers the address.
func TestGate_HookAllowsAPortNotAnAddress(t *testing.T) {
	open, openAddr := listenUDP(t)
	shut, shutAddr := listenUDP(t)
	var allowed atomic.Bool
	allowed.Store(true)
	s := newServer(t, func(c *Config) {
		c.AllowPeer = func(user string, peer netip.AddrPort) bool {
			return allowed.Load() && user == "u" && peer == openAddr
		}
	})
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	relayAddr := c.allocate()
	for _, method := range []stun.Method{stun.MethodCreatePermission, stun.MethodChannelBind} {
		if got := code(c.request(method, channelNumber(0x4001), peerAddress(shutAddr))); got != 403 {
			t.Errorf("%v to the shut port: %d, want 403", method, got)
		}
		if got := code(c.request(method, channelNumber(0x4000), peerAddress(openAddr))); got != 0 {
			t.Errorf("%v to the open port: %d", method, got)
		}
	}
	dropped := func() int { return value(s.metrics.drops[dropPeer]) }

	c.indicate(shutAddr, []byte("by indication"))
	c.indicate(openAddr, []byte("hello"))
	if src := expect(t, open, []byte("hello")); src != relayAddr {
		t.Errorf("the peer saw %v, want the relay %v", src, relayAddr)
	}
	expectNothing(t, shut)
	if dropped() != 1 {
		t.Errorf("%d packets dropped, want 1", dropped())
	}

	// And back: the engine would let any port of an address in.
	shut.WriteToUDPAddrPort([]byte("intruder"), relayAddr)
	open.WriteToUDPAddrPort([]byte("reply"), relayAddr)
	if got := c.packet(); string(got) != "\x40\x00\x00\x05reply\x00\x00\x00" {
		t.Errorf("client got %q", got)
	}
	if n := value(s.metrics.drops[dropSource]); n != 1 {
		t.Errorf("%d packets from peers dropped, want 1", n)
	}

	// What is allowed may change while a permission lasts.
	allowed.Store(false)
	c.send([]byte("\x40\x00\x00\x04late"))
	c.indicate(openAddr, []byte("late"))
	c.binding()
	expectNothing(t, open)
	if dropped() != 3 {
		t.Errorf("%d packets dropped, want 3", dropped())
	}
}

func TestGate_DeniedPeers(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	for _, peer := range append(deniedSpellings(), s.UDPAddrs()[0].String()) {
		p := netip.MustParseAddrPort(peer)
		for _, method := range []stun.Method{stun.MethodCreatePermission, stun.MethodChannelBind} {
			if got := code(c.request(method, channelNumber(0x4000), peerAddress(p))); got != 403 {
				t.Errorf("%v to %s: %d, want 403", method, peer, got)
			}
		}
		c.indicate(p, []byte("x"))
	}
	c.binding()
	if n := value(s.metrics.packets[toPeer]); n != 0 {
		t.Errorf("%d packets left", n)
	}
}

func TestGate_DropsWhatIsNotForAServer(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	send := func(typ stun.MessageType, attrs ...stun.Setter) {
		c.send(stun.MustBuild(append([]stun.Setter{stun.TransactionID, typ}, attrs...)...).Raw)
	}
	send(stun.BindingSuccess)
	send(stun.NewType(stun.MethodAllocate, stun.ClassSuccessResponse))
	send(stun.NewType(stun.MethodData, stun.ClassIndication))
	send(stun.NewType(stun.MethodConnect, stun.ClassRequest))
	send(stun.NewType(0xfff, stun.ClassRequest))
	send(stun.NewType(stun.MethodSend, stun.ClassIndication))                              // no data
	send(stun.NewType(stun.MethodSend, stun.ClassIndication), rawAttr(stun.AttrData, nil)) // no peer
	send(stun.NewType(stun.MethodSend, stun.ClassIndication), rawAttr(stun.AttrData, nil), // asks for more
		peerAddress(publicPeer), rawAttr(stun.AttrDontFragment, nil))
	c.binding()
	if n := value(s.metrics.drops[dropUnexpected]); n != 8 {
		t.Errorf("%d unexpected, want 8", n)
	}
	c.send([]byte{0x40, 0, 0, 0}) // smaller than what would be said of it
	c.binding()
	c.indicate(publicPeer, []byte("x"))
	if m := c.receive(); m.Type != stun.NewType(stun.MethodRefresh, stun.ClassErrorResponse) || code(m) != 437 || m.TransactionID != [12]byte{} {
		t.Errorf("data without an allocation is answered by %v, want a hint", m)
	}
	c.binding()
	if n := value(s.metrics.drops[dropNoRelay]); n != 2 {
		t.Errorf("%d without allocation, want 2", n)
	}
	c.send([]byte{0x50, 0, 0, 0})
	c.send([]byte("GET / HTTP/1.1\r\n\r\n"))
	c.send(nil)
	c.binding()
	if n := value(s.metrics.drops[dropMalformed]); n != 3 {
		t.Errorf("%d malformed, want 3", n)
	}
	c.send(make([]byte, maxPacket))
	c.binding()
	if n := value(s.metrics.drops[dropOversize]); n != 1 {
		t.Errorf("%d oversize, want 1", n)
	}
}

// At the very end of an allocation's life nothing is granted: the engine's timer
// may be ending it at this moment.
func TestGate_GrantsNothingToADyingAllocation(t *testing.T) {
	s := newServer(t, nil)
	c := dialTCP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	g := s.gateOf(netip.MustParseAddrPort(c.LocalAddr().String()))
	client := netip.MustParseAddrPort(c.LocalAddr().String())
	age := func() {
		g.busy.Lock()
		defer g.busy.Unlock()
		g.relay(client).expires = time.Now().Add(s.limits.margin() - time.Millisecond)
	}
	age()
	if got := code(c.request(stun.MethodCreatePermission, peerAddress(publicPeer))); got != 437 {
		t.Errorf("permission in the last seconds: %d, want 437", got)
	}
	if got := code(c.request(stun.MethodRefresh)); got != 0 {
		t.Errorf("refresh in the last seconds: %d", got)
	}
	if got := code(c.request(stun.MethodCreatePermission, peerAddress(publicPeer))); got != 0 {
		t.Errorf("permission after the refresh: %d", got)
	}
}

// Without a word of the operator or the hook, the Internet is not open either.
func TestGate_PublicPeersAreDeniedByDefault(t *testing.T) {
	s := newServer(t, func(c *Config) { c.AllowNetworks = nil })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	for _, peer := range []string{"8.8.8.8:53", "1.1.1.1:443", "1.1.1.1:0", "11.0.0.1:4000"} {
		at := peerAddress(netip.MustParseAddrPort(peer))
		if got := code(c.request(stun.MethodCreatePermission, at)); got != codeForbidden {
			t.Errorf("permission for %s: %d", peer, got)
		}
		if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000), at)); got != codeForbidden && got != codeBadRequest {
			t.Errorf("channel to %s: %d", peer, got)
		}
	}
}
