// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// relayed are the addresses of an Allocate response.
func relayed(t testing.TB, m *stun.Message) (list []netip.AddrPort) {
	t.Helper()
	err := m.ForEach(stun.AttrXORRelayedAddress, func(m *stun.Message) error {
		var a stun.XORMappedAddress
		if err := a.GetFromAs(m, stun.AttrXORRelayedAddress); err != nil {
			return err
		}
		ip, _ := netip.AddrFromSlice(a.IP)
		list = append(list, netip.AddrPortFrom(ip.Unmap(), uint16(a.Port)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// One allocation has a relay of each family, which end one by one; the portable
// engine does the same. The loopback address of IPv6 is nobody's peer: others of
// that family are in the tests with coturn.
func TestServer_BothFamilies(t *testing.T) {
	for _, portable := range []bool{false, true} {
		t.Run(fmt.Sprintf("portable %t", portable), func(t *testing.T) {
			peer, at := listenAt(t, "127.0.0.2:0")
			s := newServer(t, func(c *Config) {
				c.Relay.Public6, c.Relay.Bind6 = netip.IPv6Loopback(), netip.IPv6Loopback()
				c.Portable = portable
				c.AllowPeer = func(_ string, p netip.AddrPort) bool { return true }
			})
			c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
			relays := relayed(t, c.request(stun.MethodAllocate, transportUDP, bothFamilies))
			if len(relays) != 2 || relays[0].Addr() != loopback || relays[1].Addr() != netip.IPv6Loopback() {
				t.Fatalf("relays at %v", relays)
			}
			if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4001), peerAddress(netip.MustParseAddrPort("[::1]:22")))); got != 403 {
				t.Errorf("channel to the host by IPv6: %d", got)
			}
			if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(at))); got != 0 {
				t.Fatalf("channel to %v: %d", at, got)
			}
			c.send([]byte("\x40\x00\x00\x04ping"))
			if from := expect(t, peer, []byte("ping")); from != relays[0] {
				t.Errorf("the peer heard from %v, want %v", from, relays[0])
			}
			peer.WriteToUDPAddrPort([]byte("back"), relays[0])
			if got := c.packet(); string(got) != "\x40\x00\x00\x04back" {
				t.Errorf("client got %q", got)
			}
			if l := s.Allocations(); len(l) != 1 || !slices.Equal(l[0].Relayed, relays) || l[0].SentPackets != 1 || l[0].ReceivedBytes != 4 {
				t.Errorf("listed as %+v", l)
			}
			c.request(stun.MethodRefresh, lifetimeSeconds(0), familyOf6)
			if l := s.Allocations(); len(l) != 1 || !slices.Equal(l[0].Relayed, relays[:1]) {
				t.Errorf("without IPv6 listed as %+v", l)
			}
			c.request(stun.MethodRefresh, lifetimeSeconds(0))
			eventually(t, "nothing is left", s.nothingLeft)
		})
	}
}

// A port beside an even one is kept for who brings its token, at whichever of the
// server's threads the kernel has the client come in.
func TestServer_ReservedPorts(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Threads = 3 })
	for range 8 {
		c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
		res := c.request(stun.MethodAllocate, transportUDP, rawAttr(stun.AttrEvenPort, []byte{0x80}))
		first := relayed(t, res)
		token, err := res.Get(stun.AttrReservationToken)
		if err != nil || len(first) != 1 || first[0].Port()%2 != 0 {
			t.Fatalf("relays at %v, token %x (%v), code %d", first, token, err, code(res))
		}
		other := dialUDP(t, s, s.secrets.Mint("u", 2*time.Minute)).login()
		second := relayed(t, other.request(stun.MethodAllocate, transportUDP, rawAttr(stun.AttrReservationToken, token)))
		if len(second) != 1 || second[0].Port() != first[0].Port()+1 {
			t.Fatalf("reserved beside %v: %v", first, second)
		}
		// What follows goes to where the allocation is.
		other.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(first[0]))
		c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(second[0]))
		other.send([]byte("\x40\x00\x00\x04ping"))
		if got := c.packet(); string(got) != "\x40\x00\x00\x04ping" {
			t.Errorf("got %q", got)
		}
		other.request(stun.MethodRefresh, lifetimeSeconds(0))
		c.request(stun.MethodRefresh, lifetimeSeconds(0))
	}
	eventually(t, "nothing is left", s.nothingLeft)
}

// Two clients with relays of TCP meet (RFC 6062), and no service of the host is
// reached by one.
func TestServer_RelaysTCP(t *testing.T) {
	first := freePorts(t, 16)
	s := newServer(t, func(c *Config) {
		c.TCPRelays, c.AllowNetworks = true, nil
		c.AllowPeer = func(string, netip.AddrPort) bool { return true } // of UDP
		c.Relay.MinPort, c.Relay.MaxPort = first, first+15
		c.Threads = 3
	})
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	a, b := dialTCP(t, s, s.secrets.Mint("a", time.Minute)), dialTCP(t, s, s.secrets.Mint("b", time.Minute))
	relayA, relayB := a.allocate(transportTCP), b.allocate(transportTCP)
	for _, at := range []netip.AddrPort{service.Addr().(*net.TCPAddr).AddrPort(), s.TCPAddrs()[0], netip.AddrPortFrom(loopback, first+15)} {
		if at == relayA || at == relayB {
			continue
		}
		if got := code(a.request(stun.MethodConnect, peerAddress(at))); got != 403 {
			t.Errorf("connect to %v: %d, want 403", at, got)
		}
	}
	b.request(stun.MethodCreatePermission, peerAddress(relayA))
	bind := func(c *rawClient, m *stun.Message) *rawClient {
		t.Helper()
		id, err := m.Get(stun.AttrConnectionID)
		if err != nil {
			t.Fatalf("%v: %v, code %d", m, err, code(m))
		}
		data := dialTCP(t, s, c.cred).login()
		if got := code(data.request(stun.MethodConnectionBind, rawAttr(stun.AttrConnectionID, id))); got != 0 {
			t.Fatalf("bind: %d", got)
		}
		return data
	}
	toB := bind(a, a.request(stun.MethodConnect, peerAddress(relayB)))
	toA := bind(b, b.receive()) // a ConnectionAttempt
	for _, ends := range [][2]*rawClient{{toA, toB}, {toB, toA}} {
		ends[0].send([]byte("as it is"))
		got := make([]byte, 8)
		ends[1].SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(ends[1], got); err != nil || string(got) != "as it is" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if l := s.Allocations(); len(l) != 2 || !l[0].TCP || l[0].Connections != 1 {
		t.Errorf("allocations %+v", l)
	}
	a.Close()
	b.Close()
	eventually(t, "nothing is left", s.nothingLeft)
}

// Relays of TCP are there only for who wants them, connect to no server of mail, and
// no faster and no more often than a user may.
func TestServer_BoundsRelaysOfTCP(t *testing.T) {
	off := newServer(t, nil)
	if got := code(dialTCP(t, off, off.secrets.Mint("u", time.Minute)).login().request(stun.MethodAllocate, transportTCP)); got != 442 {
		t.Errorf("a relay of TCP: %d, want 442 without TCPRelays", got)
	}
	s := newServer(t, func(c *Config) { c.TCPRelays, c.Limits.ConnectsPerSecond = true, 1 })
	c := dialTCP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate(transportTCP)
	for _, port := range []uint16{25, 465, 587} {
		at := netip.AddrPortFrom(publicPeer.Addr(), port)
		if got := code(c.request(stun.MethodConnect, peerAddress(at))); got != 403 {
			t.Errorf("connect to %v: %d, want 403", at, got)
		}
	}
	last := map[[stun.TransactionIDSize]byte]bool{}
	for port := range uint16(5) {
		m := c.signed(stun.MethodConnect, peerAddress(netip.AddrPortFrom(publicPeer.Addr(), 9000+port)))
		c.send(m.Raw)
		last[m.TransactionID] = port == 4
	}
	for {
		res := c.receive()
		if !last[res.TransactionID] {
			continue
		}
		if got := code(res); got != 486 {
			t.Errorf("a fifth one in a second: %d, want 486", got)
		}
		break
	}
	perUser, total := s.limits.Load().counts()
	if perUser.Connections != 32 || total.Connections != 1024 {
		t.Errorf("connections are bounded by %d and %d", perUser.Connections, total.Connections)
	}
}

// Connects are counted by user, with a burst, and forgotten.
func TestConnects(t *testing.T) {
	c := &connects{perSecond: 10, users: map[string]time.Time{}}
	now := time.Now()
	count := func(user string) (n int) {
		for c.take(now, user) {
			n++
		}
		return n
	}
	if a, b := count("a"), count("b"); a != 20 || b != 20 {
		t.Errorf("%d and %d at once, want 20", a, b)
	}
	now = now.Add(500 * time.Millisecond)
	if n := count("a"); n != 5 {
		t.Errorf("%d half a second later, want 5", n)
	}
	now = now.Add(time.Minute)
	c.sweep(now)
	if len(c.users) != 0 || count("a") != 20 {
		t.Errorf("%v are kept", c.users)
	}
}

// Who drains sends new clients on and keeps those it has.
func TestServer_Drain(t *testing.T) {
	s := newServer(t, nil)
	held := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	held.allocate()
	udp, tcp := netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("192.0.2.1:3479")
	s.Drain([]Alternate{{Addr: udp}, {Addr: tcp, Stream: true}, {Addr: netip.MustParseAddrPort("[2001:db8::1]:1")}})
	for want, c := range map[netip.AddrPort]*rawClient{udp: dialUDP(t, s, held.cred), tcp: dialTCP(t, s, held.cred)} {
		res := c.login().request(stun.MethodAllocate, transportUDP)
		var at stun.AlternateServer
		if err := at.GetFrom(res); err != nil || code(res) != 300 || fmt.Sprintf("%v:%d", at.IP, at.Port) != want.String() {
			t.Errorf("code %d, to %v (%v), want %v", code(res), at, err, want)
		}
	}
	if got := code(held.request(stun.MethodRefresh)); got != 0 {
		t.Errorf("refresh while draining: %d", got)
	}
	s.Drain(nil)
	if got := code(dialUDP(t, s, held.cred).login().request(stun.MethodAllocate, transportUDP)); got != 508 {
		t.Errorf("without an alternate: %d, want 508", got)
	}
}

// Limits change without a word to those who hold something, and hold for them, too:
// a bound of bytes that came after an allocation, and one that is gone.
func TestServer_SetLimits(t *testing.T) {
	peer, addr := listenAt(t, "127.0.0.2:0")
	s := newServer(t, func(c *Config) { c.AllowPeer = func(_ string, p netip.AddrPort) bool { return p == addr } })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	if err := s.SetLimits(Limits{RelaysPerUser: 1}); err != nil {
		t.Fatal(err)
	}
	if got := code(dialUDP(t, s, c.cred).login().request(stun.MethodAllocate, transportUDP)); got != 486 {
		t.Errorf("a second allocation: %d, want 486", got)
	}
	if got := code(c.request(stun.MethodRefresh)); got != 0 {
		t.Errorf("the first one: %d", got)
	}
	c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(addr))
	for _, rate := range []int64{1 << 16, 0} {
		if err := s.SetLimits(Limits{RelaysPerUser: 1, BytesPerSecond: rate}); err != nil {
			t.Fatal(err)
		}
		before := s.dropped(core.DropRate)
		for range 20 {
			c.send(append([]byte{0x40, 0, 0x20, 0}, make([]byte, 8192)...))
			expectSome(t, peer, rate == 0)
		}
		c.binding()
		switch n := s.dropped(core.DropRate) - before; {
		case rate == 0 && n != 0:
			t.Errorf("%d packets were dropped without a bound", n)
		case rate != 0 && (n < 8 || n > 12):
			t.Errorf("%d of 20 packets were too much of 64 KiB a second", n)
		}
	}
	for _, bad := range []Limits{{Channels: -1}, {Lifetime: 2 * time.Hour}} {
		if err := s.SetLimits(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if err := s.SetLimits(Limits{}); err != nil {
		t.Fatal(err)
	}
	dialUDP(t, s, c.cred).allocate()
}

// A server that is full, and says so, can have its limits changed at the same time.
func TestServer_SetLimitsWhileFull(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Limits.Relays = 1 })
	dialUDP(t, s, s.secrets.Mint("u", time.Minute)).allocate()
	c := dialUDP(t, s, s.secrets.Mint("v", time.Minute)).login()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			if err := s.SetLimits(Limits{Relays: 1}); err != nil {
				t.Error(err)
			}
			s.totals()
		}
	}()
	for range 100 {
		if got := code(c.request(stun.MethodAllocate, transportUDP)); got != 508 {
			t.Fatalf("got %d, want 508", got)
		}
	}
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the limits are not changed: somebody waits for who waits")
	}
}

// expectSome reads a datagram if one must come.
func expectSome(t testing.TB, c *net.UDPConn, must bool) {
	t.Helper()
	if must {
		expect(t, c, make([]byte, 8192))
	}
}

// A server at all addresses answers at each of them from there, over both
// transports, and nobody else gets the port.
func TestServer_ListensEverywhere(t *testing.T) {
	all := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	s := newServer(t, func(c *Config) { c.UDP, c.TCP = []netip.AddrPort{all}, []netip.AddrPort{all} })
	at := s.UDPAddrs()[0]
	if at.Addr() != all.Addr() || s.TCPAddrs()[0].Port() != at.Port() {
		t.Fatalf("listens at %v and %v", s.UDPAddrs(), s.TCPAddrs())
	}
	for _, host := range []string{"127.0.0.1", "127.0.0.3", "::1"} {
		address := netip.AddrPortFrom(netip.MustParseAddr(host), at.Port()).String()
		dial(t, "udp", address, Credential{}).binding() // a connected socket hears no other address
		dial(t, "tcp", address, Credential{}).binding()
		c := dial(t, "udp", address, s.secrets.Mint("u", time.Minute))
		c.allocate()
		for _, own := range []string{"127.0.0.1", "127.0.0.3"} {
			peer := peerAddress(netip.AddrPortFrom(netip.MustParseAddr(own), at.Port()))
			if got := code(c.request(stun.MethodCreatePermission, peer)); got != 403 {
				t.Errorf("permission for the server at %s: %d, want 403", own, got)
			}
		}
	}
	for _, other := range []netip.AddrPort{at, netip.AddrPortFrom(loopback, at.Port())} {
		if second, err := New(Config{UDP: []netip.AddrPort{other}, Relay: Relay{Public: loopback}, Secrets: s.secrets}); err == nil {
			second.Close()
			t.Errorf("another server has %v, too", other)
		}
	}
}
