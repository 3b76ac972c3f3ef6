// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// icmpAttribute returns what a Data indication tells of an ICMP message: type,
// code and MTU.
func icmpAttribute(t testing.TB, m *stun.Message) (kind, code uint8, mtu uint32) {
	t.Helper()
	v, err := m.Get(0x8004)
	if err != nil || len(v) != 8 {
		t.Fatalf("%v has no ICMP: %v", m, err)
	}
	return v[2] >> 1, v[3], uint32(v[6])<<8 | uint32(v[7])
}

// The client is told that a peer's port is closed, and the relay goes on.
func TestThread_TellsOfPeersThatAreNotThere(t *testing.T) {
	for family, at := range families() {
		w := newWorld(t)
		c := w.client(at[0], "ann")
		relay := c.allocateFor(at[1])
		gone, goneAt := socket(t, at[1])
		gone.Close()
		peer, peerAt := socket(t, at[1])
		c.bind(0x4000, goneAt)
		c.bind(0x4001, peerAt)
		c.send(channelData(0x4000, []byte("anybody?")))
		want := [2]uint8{3, 3} // destination unreachable, port
		if at[1].Is6() {
			want = [2]uint8{1, 4}
		}
		if kind, code, _ := icmpAttribute(t, c.message()); [2]uint8{kind, code} != want {
			t.Errorf("%s: type %d code %d, want %v", family, kind, code, want)
		}
		c.send(channelData(0x4001, []byte("you?")))
		if from := expect(t, peer, []byte("you?")); from != relay {
			t.Errorf("%s: from %v, want %v", family, from, relay)
		}
	}
}

// On a listener of all addresses answers leave from the one that was asked, and so
// does data.
func TestShard_AnswersFromTheAddressThatWasAsked(t *testing.T) {
	both(t, answersFromTheAddressThatWasAsked)
}

func answersFromTheAddressThatWasAsked(t *testing.T, engine func(*Config)) {
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		s, err := Listen(netip.AddrPortFrom(any, 0), false)
		if err != nil {
			t.Fatal(err)
		}
		w := newWorld(t, engine, func(cfg *Config) {
			for _, l := range cfg.Listeners {
				l.Close()
			}
			cfg.Listeners = map[uint16]*Socket{0: s}
			cfg.Core.Listeners = []core.Listener{{Addr: netip.AddrPortFrom(loopback4, s.Addr().Port())}}
		})
		asked := []string{"127.0.0.1", "127.0.0.2", "127.3.2.1"}
		if any.Is6() {
			asked = []string{"::1"}
		}
		for _, a := range asked {
			to := netip.MustParseAddr(a)
			c := newClient(t, to, netip.AddrPortFrom(to, s.Addr().Port()), "ann")
			if any.Is4() {
				c = newClient(t, loopback4, netip.AddrPortFrom(to, s.Addr().Port()), "ann")
			}
			relay := c.allocate() // packet looks at where answers come from
			peer, peerAt := socket(t, loopback4)
			c.bind(0x4000, peerAt)
			for range 3 {
				peer.WriteToUDPAddrPort([]byte("x"), relay)
				c.packet()
			}
		}
		w.Close()
	}
}

// Many strangers on such a listener leave nothing behind.
func TestThread_ForgetsWhereStrangersCameIn(t *testing.T) {
	b := &books{}
	now := time.Now()
	c := plainCore(t, now)
	b.core = c
	p := &port{locals: map[netip.AddrPort]local{}}
	for i := range 10 * maxLocals {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 9)
		b.rememberLocal(p, core.Flow{Client: client}, local{addr: loopback4})
		if len(p.locals) > maxLocals {
			t.Fatalf("%d are remembered", len(p.locals))
		}
	}
}

// Naps go on while they find packets, stop when they do not, and are tried again.
func TestThread_RatesNaps(t *testing.T) {
	for name, test := range map[string]struct {
		found []int
		want  int // yield
	}{
		"nothing at first":   {[]int{0}, -awake},
		"one, and one":       {[]int{2, 1, 1}, 0},
		"one too often":      {[]int{2, 1, 1, 1}, -awake},
		"several":            {[]int{3, 0, 2}, 4},
		"very many, bounded": {[]int{1000, 0, 0}, maxYield - 4},
	} {
		th := &thread{}
		for _, n := range test.found {
			th.rate(n)
		}
		if th.yield != test.want {
			t.Errorf("%s: %d, want %d", name, th.yield, test.want)
		}
	}
}

// inNamespace runs f on a thread with a network of its own, whose loopback takes
// packets of 1500 bytes. Sockets that f opens stay there.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // and ends with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("a network namespace: %v; run as root", err)
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		lo, _ := unix.NewIfreq("lo")
		lo.SetUint32(1500)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, lo); err != nil {
			t.Error(err)
		}
		lo.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
			t.Error(err)
		}
		f()
	})
	done.Wait()
}

// prepared are relays whose sockets are open already.
type prepared struct {
	testRelays
	sockets map[core.Family]*Socket
}

func (r *prepared) Open(a core.Action) (first, second Opened, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened(r.sockets[a.Family]), Opened{}, nil
}

// On a narrow path datagrams of all sizes pass in fragments, merged bursts too; those
// that must stay whole do not, and the client learns how large they may be.
func TestThread_NarrowPath(t *testing.T) {
	for _, at := range []netip.Addr{loopback4, loopback6} {
		t.Run(at.String(), func(t *testing.T) {
			relays := &prepared{testRelays: testRelays{open: map[netip.AddrPort]bool{}}, sockets: map[core.Family]*Socket{}}
			var listener *Socket
			var clientConn, peer *net.UDPConn
			var sends *burst
			inNamespace(t, func() {
				sends = newBurst(t, at)
				listener = newBurst(t, at).port.socket
				relays.sockets[core.IPv4], relays.sockets[core.IPv6] = newBurst(t, at).port.socket, nil
				if at.Is6() {
					relays.sockets[core.IPv6], relays.sockets[core.IPv4] = relays.sockets[core.IPv4], nil
				}
				clientConn = netConn(t, sends.port.socket)
				peer, _ = socket(t, at)
			})
			if t.Failed() {
				return
			}
			newWorld(t, func(cfg *Config) {
				for _, l := range cfg.Listeners {
					l.Close()
				}
				cfg.Listeners = map[uint16]*Socket{0: listener}
				cfg.Core.Listeners = []core.Listener{{Addr: listener.Addr()}}
				cfg.Relays = relays
			})
			peerAt := peer.LocalAddr().(*net.UDPAddr).AddrPort()
			c := &client{TB: t, UDPConn: clientConn, server: listener.Addr(), user: "ann"}
			relay := c.allocateFor(at)
			c.bind(0x4000, peerAt)
			for _, size := range []int{100, 1228, 1300, 1468, 1469, 1600, 60000} {
				for n := range 4 {
					sends.add(sends.port, c.server, false, channelData(0x4000, payload(n, size)))
				}
				sends.flush()
				for n := range 4 {
					expect(t, peer, payload(n, size))
				}
				for n := range 4 {
					peer.WriteToUDPAddrPort(payload(n, size), relay)
				}
				for n := range 4 {
					if got := c.packet(); !bytes.Equal(got, channelData(0x4000, payload(n, size))) {
						t.Fatalf("size %d: the client got %d bytes", size, len(got))
					}
				}
			}
			whole := attr(stun.AttrDontFragment)
			c.send(indication(peerAt, payload(1, 1400), whole))
			expect(t, peer, payload(1, 1400))
			c.send(indication(peerAt, payload(1, 1500), whole))
			want := [2]uint8{3, 4} // fragmentation needed
			if at.Is6() {
				want = [2]uint8{2, 0} // packet too big
			}
			if kind, code, mtu := icmpAttribute(t, c.message()); [2]uint8{kind, code} != want || mtu != 1500 {
				t.Errorf("type %d code %d MTU %d, want %v and 1500", kind, code, mtu, want)
			}
			c.send(channelData(0x4000, payload(2, 1500))) // may be cut, as before
			expect(t, peer, payload(2, 1500))
		})
	}
}
