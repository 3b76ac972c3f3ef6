// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/logging"
	"github.com/pion/stun"
	pion "github.com/pion/turn/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/xdp"
)

// pionClient connects pion's TURN client, an implementation that is not ours.
func pionClient(t *testing.T, network string, s *testServer, cred Credential) *pion.Client {
	t.Helper()
	var conn net.PacketConn
	addr := s.UDPAddrs()[0].String()
	if network == "tcp" {
		addr = s.TCPAddrs()[0].String()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn = pion.NewSTUNConn(c)
	} else {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		conn = c
	}
	client, err := pion.NewClient(&pion.ClientConfig{
		STUNServerAddr: addr, TURNServerAddr: addr, Conn: conn, Username: cred.Username, Password: cred.Password,
		LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); conn.Close() })
	return client
}

// Two clients meet on their relays, each pair of transports, without any leave:
// both addresses are loopback.
func TestServer_TwoRelayedPeersMeet(t *testing.T) {
	for _, pair := range [][2]string{{"udp", "udp"}, {"udp", "tcp"}, {"tcp", "tcp"}} {
		t.Run(pair[0]+"-"+pair[1], func(t *testing.T) {
			s := newServer(t, nil)
			var relays [2]net.PacketConn
			for i, network := range pair {
				r, err := pionClient(t, network, s, s.secrets.Mint(fmt.Sprint("user-", i), time.Minute)).Allocate()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { r.Close() })
				relays[i] = r
			}
			a, b := relays[0], relays[1]
			// Each side opens the way with a first packet, which may get lost.
			exchange(t, a, b, []byte("a first"))
			exchange(t, b, a, []byte("b first"))
			for _, size := range []int{1, 2, 3, 4, 5, 1200, 3000} {
				payload := bytes.Repeat([]byte{byte(size)}, size)
				exchange(t, a, b, payload)
				exchange(t, b, a, payload)
			}
			if n := s.dropped(core.DropForbidden); n != 0 {
				t.Errorf("the policy dropped %d packets", n)
			}
		})
	}
}

// exchange sends payload until it arrives.
func exchange(t *testing.T, from, to net.PacketConn, payload []byte) {
	t.Helper()
	if _, err := to.WriteTo([]byte("knock"), from.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	const tries = 150
	for range tries {
		if _, err := from.WriteTo(payload, to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		to.SetReadDeadline(time.Now().Add(patience / tries))
		for {
			n, src, err := to.ReadFrom(buf)
			if err != nil {
				break
			}
			if bytes.Equal(buf[:n], payload) {
				if src.String() != from.LocalAddr().String() {
					t.Fatalf("packet from %v, want %v", src, from.LocalAddr())
				}
				return
			}
		}
	}
	t.Fatalf("%d bytes from %v did not arrive at %v", len(payload), from.LocalAddr(), to.LocalAddr())
}

func TestServer_STUN(t *testing.T) {
	s := newServer(t, nil)
	if _, err := pionClient(t, "udp", s, Credential{}).SendBindingRequest(); err != nil {
		t.Error(err)
	}
	dialTCP(t, s, Credential{}).binding()
}

// Behind a one-to-one NAT the public address is nowhere on the host; relays
// meet on it all the same.
func TestServer_RelaysMeetBehindNAT(t *testing.T) {
	for _, bind := range []netip.Addr{loopback, {}} {
		s := newServer(t, func(c *Config) { c.Relay = Relay{Public: netip.MustParseAddr("11.7.7.7"), Bind: bind} })
		a, b := dialUDP(t, s, s.secrets.Mint("a", time.Minute)), dialUDP(t, s, s.secrets.Mint("b", time.Minute))
		relayA, relayB := a.allocate(), b.allocate()
		if relayA.Addr() != s.relays.public()[0] {
			t.Fatalf("relay at %v", relayA)
		}
		a.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(relayB))
		b.request(stun.MethodChannelBind, channelNumber(0x4005), peerAddress(relayA))
		a.send([]byte("\x40\x00\x00\x04ping"))
		if got := b.packet(); string(got) != "\x40\x05\x00\x04ping" {
			t.Errorf("bind %v: b got %q", bind, got)
		}
	}
}

// So do relays and the sockets of the host that peers have at the public address,
// although no router turns the packets back. What else listens there is not theirs.
func TestServer_RelaysMeetTheHostBehindNAT(t *testing.T) {
	public := netip.MustParseAddr("11.7.7.7")
	for _, bind := range []netip.Addr{loopback, {}} {
		host, addr := listenUDP(t)
		other, closed := listenUDP(t)
		s := newServer(t, func(c *Config) {
			c.Relay = Relay{Public: public, Bind: bind, Here: []uint16{addr.Port()}}
			c.AllowPeer = func(_ string, p netip.AddrPort) bool { return p.Addr() == public }
		})
		c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
		relay := c.allocate()
		c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(netip.AddrPortFrom(public, addr.Port())))
		c.send([]byte("\x40\x00\x00\x04ping"))
		buf := make([]byte, 100)
		host.SetReadDeadline(time.Now().Add(patience))
		n, from, err := host.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "ping" || from.Port() != relay.Port() {
			t.Fatalf("bind %v: the host got %q from %v: %v", bind, buf[:n], from, err)
		}
		// Nothing but the ports that were named is the public address.
		other.WriteToUDPAddrPort([]byte("nope"), from)
		host.WriteToUDPAddrPort([]byte("pong"), from)
		if got := c.packet(); string(got) != "\x40\x00\x00\x04pong" {
			t.Errorf("bind %v: the client got %q", bind, got)
		}
		if got := s.relays.inside(netip.AddrPortFrom(public, closed.Port()), false); got.Addr() != public {
			t.Errorf("bind %v: what is for another port goes to %v", bind, got)
		}
	}
	cfg := Config{UDP: []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}, Secrets: &Secrets{}, Relay: Relay{Public: public, Here: []uint16{0}}}
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "port 0") {
		t.Errorf("port 0: %v", err)
	}
}

func TestServer_NeverCutsADatagram(t *testing.T) {
	peer, addr := listenUDP(t)
	s := newServer(t, func(c *Config) { c.AllowPeer = func(_ string, p netip.AddrPort) bool { return p == addr } })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	relayAddr := c.allocate()
	c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(addr))
	// Over loopback a datagram is as large as it can be, and too large with a header.
	for _, size := range []int{1600, 9000, 65503, 65504, 65507} {
		if _, err := peer.WriteToUDPAddrPort(make([]byte, size), relayAddr); err != nil {
			t.Fatal(err)
		}
	}
	peer.WriteToUDPAddrPort([]byte("last"), relayAddr)
	for _, size := range []int{1600, 9000, 65503} {
		if got := c.packet(); len(got) != 4+size {
			t.Errorf("a packet of %d bytes came in %d", size, len(got))
		}
	}
	if got := c.packet(); string(got) != "\x40\x00\x00\x04last" {
		t.Errorf("the last packet has %d bytes", len(got))
	}
	if n := s.dropped(core.DropOversize); n != 2 {
		t.Errorf("%d dropped, want 2", n)
	}
	big := bytes.Repeat([]byte("x"), 65503)
	c.send(append([]byte{0x40, 0, 0xff, 0xdf}, big...))
	expect(t, peer, big)
}

func TestServer_AccountsForEveryEndOfAnAllocation(t *testing.T) {
	ends := map[string]func(t *testing.T, s *testServer, c *rawClient){
		"refresh 0":  func(_ *testing.T, _ *testServer, c *rawClient) { c.request(stun.MethodRefresh, lifetimeSeconds(0)) },
		"connection": func(_ *testing.T, _ *testServer, c *rawClient) { c.Close() },
		"lifetime":   func(*testing.T, *testServer, *rawClient) {},
		"evict": func(t *testing.T, s *testServer, _ *rawClient) {
			if !slices.Equal(s.Users(), []string{"u"}) {
				t.Errorf("relays are held by %q", s.Users())
			}
			if s.Evict("somebody") != 0 || s.Evict("u") != 1 || s.Evict("u") != 0 {
				t.Error("evicted others, or more than once")
			}
		},
		"server": func(_ *testing.T, s *testServer, _ *rawClient) { s.Close() },
	}
	for name, end := range ends {
		for _, network := range []string{"udp", "tcp"} {
			if name == "connection" && network == "udp" {
				continue
			}
			t.Run(name+" "+network, func(t *testing.T) {
				s := newServer(t, func(c *Config) {
					if name == "lifetime" {
						c.Limits.Lifetime = time.Second
					}
				})
				c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
				if network == "tcp" {
					c = dialTCP(t, s, c.cred)
				}
				relayAddr := c.allocate()
				c.request(stun.MethodCreatePermission, peerAddress(publicPeer))
				c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))
				end(t, s, c)
				eventually(t, "nothing is left", s.nothingLeft)
				socket, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(relayAddr))
				if err != nil {
					t.Fatalf("the relay's port is still taken: %v", err)
				}
				socket.Close()
			})
		}
	}
}

// An allocation that follows another on the same 5-tuple is its own: the end of
// the first, which the engine's goroutines may notice late, does not take it along.
func TestServer_AllocatesAgainAtOnce(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	for i := range 500 {
		if got := code(c.request(stun.MethodAllocate, transportUDP)); got != 0 {
			t.Fatalf("allocation %d: %d", i, got)
		}
		if got := code(c.request(stun.MethodRefresh, lifetimeSeconds(0))); got != 0 {
			t.Fatalf("end of allocation %d: %d", i, got)
		}
	}
}

func TestServer_EvictedUserMayComeBackOnlyIfAllowed(t *testing.T) {
	var banned atomic.Bool
	s := newServer(t, func(c *Config) { c.AllowUser = func(string) bool { return !banned.Load() } })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	s.Evict("u")
	eventually(t, "the allocation is gone", func() bool { return s.held() == 0 })
	if got := code(c.request(stun.MethodRefresh)); got != 437 {
		t.Errorf("refresh after the eviction: %d, want 437", got)
	}
	c.allocate()
	banned.Store(true)
	if got := code(c.request(stun.MethodRefresh)); got != 401 {
		t.Errorf("refresh of a banned user: %d, want 401", got)
	}
}

// A credential that ends takes its allocation along: it cannot be refreshed.
func TestServer_ExpiredCredentialCannotRefresh(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	c.cred = s.secrets.Mint("u", -time.Second)
	if got := code(c.request(stun.MethodRefresh)); got != 401 {
		t.Errorf("got %d, want 401", got)
	}
}

func TestServer_PortRangeIsUsedWholeAndGivenBack(t *testing.T) {
	first := freePorts(t, 4)
	s := newServer(t, func(c *Config) {
		c.Relay.MinPort, c.Relay.MaxPort = first, first+3
		c.Limits.RelaysPerUser = 10
	})
	var used []uint16
	var clients []*rawClient
	for range 4 {
		c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
		used = append(used, c.allocate().Port())
		clients = append(clients, c)
	}
	slices.Sort(used)
	if want := []uint16{first, first + 1, first + 2, first + 3}; !slices.Equal(used, want) {
		t.Errorf("ports %v, want %v", used, want)
	}
	fifth := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	if got := code(fifth.request(stun.MethodAllocate, transportUDP)); got != 508 {
		t.Errorf("fifth allocation: %d, want 508", got)
	}
	clients[2].request(stun.MethodRefresh, lifetimeSeconds(0))
	if got := code(fifth.request(stun.MethodAllocate, transportUDP)); got != 0 {
		t.Errorf("after one has ended: %d", got)
	}
}

// Users have the relays again that they had when a server starts anew, or another
// one has the same secret; nobody has those of others.
func TestServer_PortsStay(t *testing.T) {
	first := freePorts(t, 64)
	ports := func(s *testServer, user string) (ports []uint16) {
		for range 2 {
			ports = append(ports, dialUDP(t, s, s.secrets.Mint(user, time.Minute)).allocate().Port())
		}
		return ports
	}
	start := func(secret []byte) *testServer {
		return newServer(t, func(c *Config) {
			c.Relay.MinPort, c.Relay.MaxPort = first, first+63
			if err := c.Secrets.Rotate(secret); err != nil {
				t.Fatal(err)
			}
		})
	}
	s := start(testSecret)
	ann, bob := ports(s, "ann"), ports(s, "bob")
	if slices.Contains(bob, ann[0]) || slices.Contains(bob, ann[1]) || ann[0] == ann[1] {
		t.Errorf("ann has %v, bob %v", ann, bob)
	}
	s.Close()
	s = start(testSecret)
	if again := ports(s, "ann"); !slices.Equal(again, ann) {
		t.Errorf("ann had %v and now has %v", ann, again)
	}
	s.Close()
	s = start([]byte("another secret of length"))
	if other := ports(s, "ann"); slices.Equal(other, ann) {
		t.Errorf("ann has %v with another secret, too", other)
	}
}

// A range of ports that others hold is not an allocation, and not a leak.
func TestServer_TakenPortsAre508(t *testing.T) {
	squatter, addr := listenUDP(t)
	s := newServer(t, func(c *Config) { c.Relay.MinPort, c.Relay.MaxPort = addr.Port(), addr.Port() })
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute)).login()
	if got := code(c.request(stun.MethodAllocate, transportUDP)); got != 508 {
		t.Errorf("got %d, want 508", got)
	}
	squatter.Close()
	if got := code(c.request(stun.MethodAllocate, transportUDP)); got != 0 {
		t.Errorf("after the port is free: %d", got)
	}
}

// freePorts finds n adjacent ports on loopback, and on other hosts, that nobody holds now.
func freePorts(t testing.TB, n uint16, hosts ...netip.Addr) uint16 {
	t.Helper()
	hosts = append(hosts, loopback)
	for first := uint16(20000); first < 60000; first += n {
		free := true
		for i := 0; i < int(n)*len(hosts) && free; i++ {
			at := netip.AddrPortFrom(hosts[i%len(hosts)], first+uint16(i/len(hosts)))
			c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
			if free = err == nil; free {
				c.Close()
			}
		}
		if free {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

func TestPortRange_VisitsEveryPortOnce(t *testing.T) {
	for _, r := range []portRange{{1, 1}, {10, 11}, {5000, 5012}, {1, 65535}, {49152, 65535}} {
		seen := make(map[uint16]bool)
		for port := range r.random() {
			if port < r.first || port > r.last || seen[port] {
				t.Fatalf("%v: port %d again or outside", r, port)
			}
			seen[port] = true
		}
		if len(seen) != r.size() {
			t.Errorf("%v: %d ports", r, len(seen))
		}
	}
	for port := range (portRange{}).random() {
		if port != 0 {
			t.Errorf("no range: %d", port)
		}
	}
}

func TestServer_CloseLeavesNothing(t *testing.T) {
	before := openFiles(t)
	for range 3 {
		s := newServer(t, nil)
		for i := range 5 {
			cred := s.secrets.Mint(fmt.Sprint(i), time.Minute)
			u, c := dialUDP(t, s, cred), dialTCP(t, s, cred)
			u.allocate()
			c.allocate()
			defer u.Close()
			defer c.Close()
			u.request(stun.MethodCreatePermission, peerAddress(publicPeer))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("the second Close: %v", err)
		}
	}
	if after := openFiles(t) - 3*10; after > before { // ten clients each are still open
		t.Errorf("%d open files before, %d after", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestConfig_Validate(t *testing.T) {
	secrets, _ := NewSecrets(nil, nil)
	good := func() Config {
		return Config{UDP: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Secrets: secrets, Relay: Relay{Public: loopback}}
	}
	if err := good().Validate(); err != nil {
		t.Errorf("good: %v", err)
	}
	tests := map[string]func(*Config){
		"listen":          func(c *Config) { c.UDP = nil },
		"secrets":         func(c *Config) { c.Secrets = nil },
		"peers can reach": func(c *Config) { c.Relay.Public = netip.MustParseAddr("0.0.0.0") },
		"not an IPv6":     func(c *Config) { c.Relay.Public6 = loopback },
		"not an IPv4": func(c *Config) {
			c.Relay.Public, c.Relay.Public6 = netip.MustParseAddr("2a00::1"), netip.MustParseAddr("2a00::1")
		},
		"give Public":      func(c *Config) { c.Relay = Relay{} },
		"bind address":     func(c *Config) { c.Relay.Bind = netip.MustParseAddr("::") },
		"realm":            func(c *Config) { c.Realm = "a realm of 21 letters" },
		"threads 65":       func(c *Config) { c.Threads = 65 },
		"bytes a second":   func(c *Config) { c.Limits.BytesPerSecond = -1 },
		"lifetime limit":   func(c *Config) { c.Limits.MaxLifetime = time.Second },
		"10-9 are no":      func(c *Config) { c.Relay.MinPort, c.Relay.MaxPort = 10, 9 },
		"0-9 are no range": func(c *Config) { c.Relay.MaxPort = 9 },
		"Channels of -1":   func(c *Config) { c.Limits.Channels = -1 },
		"1h0m1s":           func(c *Config) { c.Limits.Lifetime = time.Hour + time.Second },
		"1.5s":             func(c *Config) { c.Limits.Lifetime = 1500 * time.Millisecond },
		"-1s":              func(c *Config) { c.Limits.Lifetime = -time.Second },
	}
	for want, change := range tests {
		cfg := good()
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestNew_ClosesWhatItWasGivenWhenItFails(t *testing.T) {
	taken, addr := listenUDP(t)
	defer taken.Close()
	secrets, _ := NewSecrets(nil, nil)
	registry := prometheus.NewRegistry()
	for name, change := range map[string]func(*Config){
		"invalid":     func(c *Config) { c.Secrets = nil },
		"port in use": func(c *Config) { c.UDP = []netip.AddrPort{addr} },
		"tcp in use":  func(c *Config) { c.TCP = []netip.AddrPort{netip.MustParseAddrPort("11.99.99.99:1")} },
		"metrics twice": func(c *Config) {
			if err := newMetrics(nil).register(registry); err != nil {
				t.Fatal(err)
			}
			c.Registerer = registry
		},
	} {
		given, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		before := openFiles(t)
		cfg := Config{Listeners: []net.Listener{given}, Secrets: secrets, Relay: Relay{Public: loopback}}
		change(&cfg)
		if s, err := New(cfg); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
		if _, err := given.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: the listener is still open: %v", name, err)
		}
		if after := openFiles(t); after >= before {
			t.Errorf("%s: %d open files before, %d after", name, before, after)
		}
	}
}

func TestMetrics_NamesAndLabels(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	kernel := xdp.Stats{Interfaces: []xdp.Interface{{Name: "eth0", Mode: xdp.Native}}, Idle: xdp.Forbidden}
	if err := newMetrics(func() totals { return totals{kernel: kernel} }).register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		got = append(got, fmt.Sprintf("%s %d", f.GetName(), len(f.GetMetric())))
		for _, m := range f.GetMetric() {
			if f.GetName() == "meshgate_turn_kernel_idle" && (m.GetLabel()[0].GetValue() == "capabilities") != (m.GetGauge().GetValue() == 1) {
				t.Errorf("%s: %v", f.GetName(), m)
			}
		}
	}
	want := []string{
		"meshgate_turn_allocations 1", "meshgate_turn_allocations_limit 1", "meshgate_turn_allocations_total 1", "meshgate_turn_auth_failures_total 7",
		"meshgate_turn_connections 1", "meshgate_turn_datagrams_total 2", "meshgate_turn_draining 1", "meshgate_turn_drops_total 17", "meshgate_turn_errors_total 15",
		"meshgate_turn_kernel_bytes_total 10", "meshgate_turn_kernel_channels 1", "meshgate_turn_kernel_idle 5", "meshgate_turn_kernel_interfaces 1",
		"meshgate_turn_kernel_packets_total 10", "meshgate_turn_kernel_refused_channels_total 1",
		"meshgate_turn_refusals_total 12", "meshgate_turn_relay_failures_total 1", "meshgate_turn_relayed_bytes_total 2", "meshgate_turn_relayed_packets_total 2",
		"meshgate_turn_relays 1", "meshgate_turn_socket_calls_total 2", "meshgate_turn_switched_packets_total 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
