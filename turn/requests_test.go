// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

var publicPeer = netip.MustParseAddrPort("11.0.0.1:4000")

func TestServer_ErrorCodes(t *testing.T) {
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
		{"allocate a relay of no transport", false, stun.MethodAllocate, []stun.Setter{rawAttr(stun.AttrRequestedTransport, []byte{33, 0, 0, 0})}, 442},
		{"allocate an ipv6 relay", false, stun.MethodAllocate, []stun.Setter{transportUDP, v6}, 440},
		{"allocate an even port", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrEvenPort, []byte{0})}, 0},
		{"allocate two ports", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrEvenPort, []byte{0x80})}, 0},
		{"allocate a reserved port", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrReservationToken, make([]byte, 8))}, 508},
		{"allocate with token and family", false, stun.MethodAllocate, []stun.Setter{transportUDP, v6, rawAttr(stun.AttrReservationToken, make([]byte, 8))}, 400},
		{"allocate with dont-fragment", false, stun.MethodAllocate, []stun.Setter{transportUDP, rawAttr(stun.AttrDontFragment, nil)}, 0},
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
		{"channel to two peers, the first of which counts", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peerAddress(publicPeer), peerAddress(netip.MustParseAddrPort("10.0.0.2:1"))}, 0},
		{"channel to a denied peer", true, stun.MethodChannelBind, []stun.Setter{channelNumber(0x4000), peerAddress(netip.MustParseAddrPort("169.254.169.254:80"))}, 403},
	}
	s, ways := newServerEverywhere(t, false)
	portable, others := newServerEverywhere(t, true)
	for network, dial := range others {
		ways["portable "+network] = dial
	}
	for i, tc := range tests {
		for network, dial := range ways {
			s := s
			if strings.HasPrefix(network, "portable") {
				s = portable
			}
			t.Run(network+" "+tc.name, func(t *testing.T) {
				c := dial(t, s.secrets.Mint(fmt.Sprintf("user-%d", i), time.Minute))
				if tc.allocated {
					c.allocate()
				} else {
					c.login()
				}
				res := c.request(tc.method, tc.attrs...)
				if got := code(res); got != tc.want {
					t.Fatalf("error code %d, want %d", got, tc.want)
				}
				if tc.want != 0 && !res.Contains(stun.AttrMessageIntegrity) {
					t.Error("the refusal is not signed")
				}
			})
		}
	}
}

// newServerEverywhere starts a server, and returns how to get to it over each
// transport and family.
func newServerEverywhere(t *testing.T, portable bool) (*testServer, map[string]func(testing.TB, Credential) *rawClient) {
	t.Helper()
	cert := selfSigned(t)
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	ways := make(map[string]func(testing.TB, Credential) *rawClient)
	s := newServer(t, func(c *Config) {
		c.Limits.AllocationsPerUser, c.Portable = 1000, portable
		six := netip.AddrPortFrom(netip.IPv6Loopback(), 0)
		c.UDP, c.TCP = append(c.UDP, six), append(c.TCP, six)
		for family, at := range map[string]netip.AddrPort{"4": c.UDP[0], "6": six} {
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			if err != nil {
				t.Fatal(err)
			}
			c.SecureListeners = append(c.SecureListeners, tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}))
			ways["tls"+family] = func(t testing.TB, cred Credential) *rawClient {
				t.Helper()
				conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "turn.test"})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				return &rawClient{TB: t, Conn: conn, cred: cred}
			}
		}
	})
	for i, family := range []string{"4", "6"} {
		at := s.UDPAddrs()[i].String()
		for _, network := range []string{"udp", "tcp"} {
			ways[network+family] = func(t testing.TB, cred Credential) *rawClient { return dial(t, network, at, cred) }
		}
	}
	return s, ways
}

func TestServer_UnknownAttributesAreNamed(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	res := c.request(stun.MethodAllocate, transportUDP, rawAttr(0x7ffd, nil), rawAttr(0x7ffe, nil))
	v, err := res.Get(stun.AttrUnknownAttributes)
	if err != nil || !slices.Equal(v, []byte{0x7f, 0xfd, 0x7f, 0xfe}) {
		t.Fatalf("UNKNOWN-ATTRIBUTES is %x (%v)", v, err)
	}
}

// Whatever is wrong with a credential, the answer is the one that a request
// without credential gets.
func TestServer_BadCredentialsGetTheSameChallenge(t *testing.T) {
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
				for _, method := range []stun.Method{stun.MethodAllocate, stun.MethodRefresh, stun.MethodCreatePermission} {
					res := c.request(method, transportUDP)
					plain := c.do(stun.MustBuild(stun.TransactionID, stun.NewType(method, stun.ClassRequest), transportUDP, stun.NewSoftware("as long"), stun.Fingerprint))
					if code(res) != 401 || code(plain) != 401 || fmt.Sprint(types(res)) != fmt.Sprint(types(plain)) {
						t.Errorf("%v: got %v, code %d; without credential %v, code %d", method, res, code(res), plain, code(plain))
					}
				}
			}
		})
	}
	failed, total := s.totals().core.Failed, 0
	for _, reason := range []core.Failure{core.FailedMismatch, core.FailedExpired, core.FailedRevoked, core.FailedUnknown} {
		if failed[reason] == 0 {
			t.Errorf("no failure counted as %s", reason)
		}
		total += int(failed[reason])
	}
	if want := len(tests) * 6; total != want {
		t.Errorf("%d failures counted, want %d", total, want)
	}
}

// types are the types of the attributes of a message.
func types(m *stun.Message) (list []stun.AttrType) {
	for _, a := range m.Attributes {
		list = append(list, a.Type)
	}
	return list
}

// A signature of one user on another user's 5-tuple changes nothing.
func TestServer_AllocationBelongsToItsUser(t *testing.T) {
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
	if n := s.held(); n != 1 {
		t.Errorf("%d allocations, want alice's", n)
	}
}

func TestServer_RepeatedAllocateGetsTheSameAnswer(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	m := c.signed(stun.MethodAllocate, transportUDP)
	first, second := c.do(m), c.do(m)
	if code(first) != 0 || !slices.Equal(first.Raw, second.Raw) {
		t.Fatalf("first %v, second %v", first, second)
	}
}

func TestServer_RepeatedChannelBindIsOneChannel(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.Channels, c.Limits.Permissions = 1, 1 })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	for range 3 {
		if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))); got != 0 {
			t.Errorf("code %d", got)
		}
	}
}

func TestServer_EvenPorts(t *testing.T) {
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

func TestServer_StaleNonce(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	c.nonce = "0000"
	res := c.request(stun.MethodAllocate, transportUDP)
	if code(res) != 438 || !res.Contains(stun.AttrNonce) {
		t.Fatalf("got %v, code %d", res, code(res))
	}
}

func TestServer_LifetimesAreBounded(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.Lifetime, c.Limits.MaxLifetime = 90*time.Second, 2*time.Minute })
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
	for seconds, want := range map[uint32]uint32{1: 90, 90: 90, 100: 100, 3600: 120, 1<<32 - 1: 120} {
		if got := ask(stun.MethodRefresh, seconds); got != want {
			t.Errorf("refresh %d: lifetime %d, want %d", seconds, got, want)
		}
	}
	if got := ask(stun.MethodRefresh, 0); got != 0 {
		t.Errorf("refresh 0: lifetime %d", got)
	}
}

func TestServer_Quotas(t *testing.T) {
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

func TestServer_PermissionsAndChannelsAreBounded(t *testing.T) {
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
	if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4002), peer(2))); got != 508 {
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

// Without a word of the operator or the hook, the Internet is not open either.
func TestServer_PublicPeersAreDeniedByDefault(t *testing.T) {
	s := newServer(t, func(c *Config) { c.AllowNetworks = nil })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	for _, peer := range []string{"8.8.8.8:53", "1.1.1.1:443", "1.1.1.1:0", "11.0.0.1:4000"} {
		at := peerAddress(netip.MustParseAddrPort(peer))
		if got := code(c.request(stun.MethodCreatePermission, at)); got != 403 {
			t.Errorf("permission for %s: %d", peer, got)
		}
		if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000), at)); got != 403 && got != 400 {
			t.Errorf("channel to %s: %d", peer, got)
		}
	}
}

func TestServer_ListsAndClosesAllocations(t *testing.T) {
	s := newServer(t, nil)
	first := dialUDP(t, s, s.secrets.Mint("ann", time.Minute))
	relayed := first.allocate()
	first.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))
	second := dialTCP(t, s, s.secrets.Mint("bob", time.Minute))
	second.allocate()
	list := s.Allocations()
	if len(list) != 2 {
		t.Fatalf("%d allocations: %+v", len(list), list)
	}
	a, b := list[0], list[1]
	if a.User != "ann" || a.Client.String() != first.LocalAddr().String() || a.Stream || !slices.Equal(a.Relayed, []netip.AddrPort{relayed}) ||
		a.Permissions != 1 || a.Channels != 1 || a.Expires.Before(a.Since) {
		t.Errorf("ann holds %+v", a)
	}
	if b.User != "bob" || b.Client.String() != second.LocalAddr().String() || !b.Stream || b.ID == a.ID {
		t.Errorf("bob holds %+v", b)
	}
	if !s.CloseAllocation(a.ID) {
		t.Error("ann's was not found")
	}
	eventually(t, "bob's is left", func() bool { l := s.Allocations(); return len(l) == 1 && l[0].ID == b.ID })
	if s.CloseAllocation(a.ID) {
		t.Error("ann's was closed twice")
	}
}
