// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/pion/stun"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/xdp"
)

// insideEnv says that the process runs one test in a network namespace of its own.
const insideEnv = "MESHGATE_TURN_TEST_INSIDE"

// inNamespace runs the test that calls it once more, in a process with a network
// namespace of its own, since a server's threads cannot be moved into one. It is
// true there; elsewhere the test is over, and has failed if it did there.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		for _, which := range []string{"all", "default", "lo"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("0"), 0); err != nil {
				t.Fatal(err)
			}
		}
		ip(t, "link", "set", "lo", "up")
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a network namespace: %v\n%s", err, out)
	}
	return false
}

// kernelPath is a server on loopback whose channels the kernel serves, and a peer
// at 127.0.0.2 that a hook allows.
type kernelPath struct {
	testing.TB
	*testServer
	friend   *net.UDPConn
	friendAt netip.AddrPort
	shut     atomic.Bool  // whether the hook has nothing for the friend
	open     atomic.Bool  // whether it has leave for everybody
	maps     [2]*ebpf.Map // by which the kernel finds what goes to peers and to clients
}

func newKernelPath(t *testing.T) *kernelPath {
	t.Helper()
	k := &kernelPath{TB: t}
	k.friend, k.friendAt = listenAt(t, "127.0.0.2:0")
	unsummed(t, k.friend)
	k.testServer = newServer(t, func(c *Config) {
		c.XDP, c.TCP = xdp.Generic, nil
		c.Relay.Public6, c.Relay.Bind6 = netip.IPv6Loopback(), netip.IPv6Loopback()
		c.Limits.AnswersPerSecond = 1000
		c.AllowPeer = func(_ string, p netip.AddrPort) bool { return p == k.friendAt && !k.shut.Load() || k.open.Load() }
	})
	for i, name := range []string{"from_clients", "from_peers"} {
		k.maps[i] = kernelMap(t, name)
	}
	return k
}

// unsummed has a socket send no checksums: those on loopback are never whole, and
// the kernel path leaves such packets to the server.
func unsummed(t testing.TB, c syscall.Conn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) }); err != nil || set != nil {
		t.Fatal(err, set)
	}
}

// kernelMap is the map with a name that this process has open, by what the kernel says.
func kernelMap(t testing.TB, name string) *ebpf.Map {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, _ := os.ReadFile(file) // that of Glob is gone
		_, rest, _ := strings.Cut(string(raw), "map_id:")
		var id uint32
		if _, err := fmt.Sscan(rest, &id); err != nil {
			continue
		}
		m, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := m.Info(); err != nil {
			t.Fatal(err)
		} else if info.Name == name {
			t.Cleanup(func() { m.Close() })
			return m
		}
		m.Close()
	}
	t.Fatalf("there is no map %s", name)
	return nil
}

// held is how many channels the kernel would serve, to peers and to clients.
func (k *kernelPath) held() (n [2]int) {
	k.Helper()
	for i, m := range k.maps {
		var key, value []byte
		entries := m.Iterate()
		for entries.Next(&key, &value) {
			n[i]++
		}
		if err := entries.Err(); err != nil {
			k.Fatal(err)
		}
	}
	return n
}

// seen is how many packets had a channel in the kernel, whatever became of them.
func (k *kernelPath) seen() (n uint64) {
	for _, v := range k.kernel.Stats().Packets {
		n += v
	}
	return n
}

// client is one with relays of both families and the channel 0x4000 to the friend.
func (k *kernelPath) client(user string) (c *rawClient, relay netip.AddrPort) {
	k.Helper()
	c = dialUDP(k, k.testServer, k.secrets.Mint(user, time.Minute))
	unsummed(k, c.Conn.(*net.UDPConn))
	relay = c.allocate(transportUDP, bothFamilies)
	if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(k.friendAt))); got != 0 {
		k.Fatalf("channel to the friend: %d", got)
	}
	return c, relay
}

// converse has client and friend say something to each other, by the kernel.
func (k *kernelPath) converse(c *rawClient, relay netip.AddrPort) {
	k.Helper()
	before := k.kernel.Stats().Packets[xdp.Sent]
	c.send([]byte("\x40\x00\x00\x04ping"))
	if from := expect(k, k.friend, []byte("ping")); from != relay {
		k.Errorf("the friend heard %v, want %v", from, relay)
	}
	k.friend.WriteToUDPAddrPort([]byte("pong"), relay)
	if got := c.packet(); string(got) != "\x40\x00\x00\x04pong" {
		k.Errorf("the client got %q", got)
	}
	if n := k.kernel.Stats().Packets[xdp.Sent] - before; n != 2 {
		k.Errorf("the kernel has sent %d of 2 packets: %+v", n, k.kernel.Stats())
	}
}

// silent shows that nothing passes between client and friend in either direction.
func (k *kernelPath) silent(c *rawClient, relay netip.AddrPort) {
	k.Helper()
	c.send([]byte("\x40\x00\x00\x04late"))
	c.binding()
	expectNothing(k, k.friend)
	k.friend.WriteToUDPAddrPort([]byte("late"), relay)
	c.binding()
}

// The kernel path knows of no forbidden peer, by any spelling: what a client tries
// leaves no trace in its maps, and packets on the channel are none of its own.
func TestKernel_NoSpellingReachesAForbiddenPeer(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	k := newKernelPath(t)
	c, relay := k.client("u")
	k.converse(c, relay)
	before := k.seen()
	peers := append(forbiddenPeers(t), k.UDPAddrs()[0], netip.AddrPortFrom(loopback, 22), netip.MustParseAddrPort("[::1]:22"),
		netip.AddrPortFrom(k.friendAt.Addr(), 22))
	for _, p := range peers {
		if got := code(c.request(stun.MethodChannelBind, channelNumber(0x4001), peerAddress(p))); got != 403 {
			t.Errorf("channel to %v: %d, want 403", p, got)
		}
		c.send([]byte("\x40\x01\x00\x01x"))
		if n := k.held(); n != [2]int{1, 1} {
			t.Fatalf("after %v the kernel holds %d channels, want that of the friend alone", p, n)
		}
	}
	c.binding()
	if n := k.seen() - before; n != 0 {
		t.Errorf("%d packets to forbidden peers had a channel in the kernel", n)
	}
	if n := k.dropped(core.DropNoChannel); n != len(peers) {
		t.Errorf("the server has seen %d of %d packets", n, len(peers))
	}
	k.converse(c, relay)
}

// What a policy allows and then forbids leaves the kernel while the allocations
// stand, and is there again when it is allowed again.
func TestKernel_ForgetsWhoGetsForbidden(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	k := newKernelPath(t)
	k.open.Store(true)
	var clients []*rawClient
	var users []string
	const each = 16 // channels of an allocation, that to the friend included
	bound := 0
	for _, p := range append(forbiddenPeers(t), publicPeer) {
		if bound%each == 0 {
			users = append(users, fmt.Sprint("user-", len(clients)))
			c, _ := k.client(users[len(clients)])
			clients = append(clients, c)
			bound++
		}
		number := channelNumber(uint16(0x4000 + bound%each))
		if code(clients[len(clients)-1].request(stun.MethodChannelBind, number, peerAddress(p))) == 0 {
			bound++
		}
	}
	all, n := k.held(), len(clients)
	const few = 40 // other spellings lead to the same, or to nobody; and some peers are the server's to serve
	if all[0] != all[1] || all[0] < few {
		t.Fatalf("of %d channels the kernel holds %d", bound, all)
	}
	for _, c := range []struct {
		name   string
		change func()
		want   int
	}{
		{"a hook that allows nobody but the friend", func() { k.open.Store(false); k.PolicyChanged(users...) }, n + 1},
		{"no network", func() { k.SetNetworks(nil) }, n},
		{"a hook that allows nobody", func() { k.shut.Store(true); k.PolicyChanged() }, 0},
		{"all networks", func() { k.SetNetworks(everywhere()) }, 1},
		{"no network again", func() { k.SetNetworks(nil) }, 0},
	} {
		c.change()
		eventually(t, c.name, func() bool { return k.held() == [2]int{c.want, c.want} })
	}
	seen, forbidden := k.seen(), k.dropped(core.DropForbidden)
	for i := range bound {
		clients[i/each].send([]byte{0x40, byte(i % each), 0, 1, 'x'})
	}
	for _, c := range clients {
		c.binding()
	}
	if n := k.seen() - seen; n != 0 {
		t.Errorf("%d packets to forbidden peers had a channel in the kernel", n)
	}
	if n := k.dropped(core.DropForbidden) - forbidden; n != bound {
		t.Errorf("the server has refused %d of %d packets", n, bound)
	}
	k.shut.Store(false)
	k.open.Store(true)
	k.PolicyChanged(users...)
	eventually(t, "all are allowed again", func() bool { return k.held() == all })
}

// Whatever ends a channel ends it in the kernel, for both directions.
func TestKernel_EndsWithTheServer(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	k := newKernelPath(t)
	for _, by := range []struct {
		name string
		end  func(c *rawClient)
	}{
		{"the hook", func(*rawClient) { k.shut.Store(true); k.PolicyChanged("the hook") }},
		{"the end of its user", func(*rawClient) { k.Evict("the end of its user") }},
		{"the API", func(*rawClient) { k.CloseAllocation(k.Allocations()[0].ID) }},
		{"the client", func(c *rawClient) { c.request(stun.MethodRefresh, lifetimeSeconds(0)) }},
		{"the end of one relay of two", func(c *rawClient) { c.request(stun.MethodRefresh, lifetimeSeconds(0), familyOf4) }},
	} {
		c, relay := k.client(by.name)
		k.converse(c, relay)
		by.end(c)
		eventually(t, by.name, func() bool { return k.held() == [2]int{} })
		seen := k.seen()
		k.silent(c, relay)
		if n := k.seen() - seen; n != 0 {
			t.Errorf("%s: %d packets had a channel in the kernel", by.name, n)
		}
		k.shut.Store(false)
		k.Evict(by.name)
	}
	// A rate ends nothing; it holds in the kernel.
	c, relay := k.client("the rate")
	k.converse(c, relay)
	if err := k.SetLimits(Limits{AnswersPerSecond: 1000, BytesPerSecond: 1}); err != nil {
		t.Fatal(err)
	}
	k.each(func(time.Time, *core.Core, *core.Output) {}) // what came of the call before is done then
	k.silent(c, relay)
	if n := k.kernel.Stats().Packets[xdp.Limited]; n != 2 || k.held() != [2]int{1, 1} {
		t.Errorf("the kernel has dropped %d of 2 packets, and holds %d", n, k.held())
	}
}

// A server may be there before its interfaces are, and says so meanwhile.
func TestKernel_FindsInterfacesLater(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	registry := prometheus.NewPedanticRegistry()
	s := newServer(t, func(c *Config) {
		host := netip.MustParseAddr(serverHost)
		c.XDP, c.Relay, c.Registerer = xdp.Auto, Relay{Public: host, Bind: host}, registry
	})
	shows := func(want string) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if name, ok := strings.CutPrefix(f.GetName(), "meshgate_turn_kernel_i"); ok && m.GetGauge().GetValue() == 1 {
					got = append(got, name)
					for _, l := range m.GetLabel() {
						got = append(got, l.GetValue())
					}
				}
			}
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("metrics show %q, want %q", got, want)
		}
	}
	shows("dle interfaces")
	ip(t, "link", "add", "near", "type", "veth", "peer", "name", "end")
	ip(t, "addr", "add", serverHost+"/24", "dev", "near")
	s.follow()
	shows("nterfaces near generic")
	ip(t, "link", "set", "near", "name", "close")
	s.follow()
	shows("nterfaces close generic")
}
