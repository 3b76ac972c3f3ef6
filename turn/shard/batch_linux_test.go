// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// A batch has no more slots, actions and copies than it may, whatever comes at once.
func TestThread_BoundsABatch(t *testing.T) {
	const relays, each = 24, 20
	var th *thread
	var used, copied, actions int
	w := newWorld(t, func(cfg *Config) {
		cfg.Core.Permit = func(_ string, p core.Peer) bool {
			if p.Traffic && th != nil { // on the thread
				used, copied, actions = max(used, th.rx.used), max(copied, th.rx.copied), max(actions, len(th.out.Actions))
			}
			return true
		}
		cfg.Core.Fleeting = func(netip.AddrPort) bool { return true } // ask about each packet
	})
	peer := newBurst(t, loopback4)
	at := make([]netip.AddrPort, relays)
	for i := range at {
		c := w.client(loopback4, "ann")
		at[i] = c.allocate()
		c.bind(0x4000, peer.port.socket.Addr())
	}
	flood := func(each, size int) { // as many packets of 64 datagrams for each relay
		for range each {
			for _, to := range at {
				for n := range maxSegments {
					peer.add(peer.port, to, false, payload(n, size))
				}
			}
			peer.flush()
		}
	}
	idle := func() (ok bool) {
		w.asks(func(b *books) { ok = th.ready.len() == 0 && actions > 0 })
		return ok
	}
	for _, size := range []int{1000, 5} {
		w.asks(func(*books) { th, used, copied, actions = w.engine.(*thread), 0, 0, 0 })
		flood(1, size) // from now on it is known that they come merged
		eventually(t, "all is taken", idle)
		w.asks(func(*books) { used, copied, actions = 0, 0, 0 })
		w.held(func() { flood(each, size) })
		eventually(t, "all is taken", idle)
		w.asks(func(*books) {
			if used > fullBatch+share || copied > fullCopy+mergedShare*maxSegmented || actions > fullOut+mergedShare*maxSegments {
				t.Errorf("of %d bytes: %d slots, %d bytes copied, %d actions", size, used, copied, actions)
			}
			if actions < fullOut/2 {
				t.Errorf("of %d bytes there were no more than %d actions: nothing was tried", size, actions)
			}
		})
	}
}

// emptyCore is a core without allocations.
func emptyCore(t *testing.T) *core.Core {
	t.Helper()
	c, err := core.New(time.Now(), core.Config{
		Realm: "meshgate", Offers: core.Offers{IPv4: true}, Authenticator: users{},
		Listeners: []core.Listener{{Addr: netip.MustParseAddrPort("127.0.0.1:9")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A thread with nothing to do waits until something is due, never shorter than that:
// it would look again and again.
func TestThread_Patience(t *testing.T) {
	th := &thread{books: &books{core: emptyCore(t)}}
	if got := th.patience(); got != -1 {
		t.Errorf("for nothing: %d ms", got)
	}
	th.offloaded = map[core.Flow]struct{}{{}: {}}
	for after, want := range map[time.Duration]int{-time.Second: 1, 0: 1, 24 * time.Hour: 3600_000} {
		th.credit = time.Now().Add(after)
		if got := th.patience(); got != want {
			t.Errorf("after %s: %d ms, want %d", after, got, want)
		}
	}
}

// A socket that fails is given up when it can never work again, or fails all the time.
func TestThread_GivesBrokenSocketsUp(t *testing.T) {
	rx, err := newReceiver(false)
	if err != nil {
		t.Fatal(err)
	}
	defer rx.close()
	th := &thread{books: &books{core: emptyCore(t)}, rx: rx}
	if _, _, err := th.receive(time.Now(), &port{socket: &Socket{fd: -1}}); err == nil {
		t.Error("a socket that is none goes on")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // it is not connected, and says so each time
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p := &port{socket: &Socket{fd: fd}}
	for n := range maxFailures {
		if got, more, err := th.receive(time.Now(), p); got != 0 || !more || err != nil {
			t.Fatalf("failure %d: %d, %v, %v", n, got, more, err)
		}
	}
	if _, _, err := th.receive(time.Now(), p); err == nil {
		t.Error("a socket that always fails goes on")
	}
	// One datagram, or none, and all is well.
	s, err := Listen(netip.AddrPortFrom(loopback4, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p.socket, p.lane.failures = s, maxFailures
	if got, more, err := th.receive(time.Now(), p); got != 0 || more || err != nil || p.lane.failures != 0 {
		t.Errorf("nothing to receive: %d, %v, %v, %d failures", got, more, err, p.lane.failures)
	}
	conn, _ := socket(t, loopback4)
	conn.WriteToUDPAddrPort([]byte("junk"), s.Addr())
	p.lane.failures = maxFailures
	if got, _, err := th.receive(time.Now(), p); got != 1 || err != nil || p.lane.failures != 0 {
		t.Errorf("one to receive: %d, %v, %d failures", got, err, p.lane.failures)
	}
}

// Sockets are asked for what the thread wants to know, and have room for what waits.
func TestThread_PreparesItsSockets(t *testing.T) {
	rx, err := newReceiver(true)
	if err != nil {
		t.Fatal(err)
	}
	defer rx.close()
	type option struct{ level, name, want int }
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for name, test := range map[string]struct {
		at    netip.Addr
		relay core.RelayID
		want  []option
	}{
		"relay":      {loopback4, 1, []option{{unix.IPPROTO_IP, unix.IP_RECVERR, 1}, {unix.SOL_SOCKET, unix.SO_RCVBUF, 2 * relayQueue}, {unix.SOL_SOCKET, unix.SO_SNDBUF, 2 * relayQueue}}},
		"IPv6 relay": {loopback6, 1, []option{{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1}}},
		"listener":   {loopback4, 0, []option{{unix.IPPROTO_IP, unix.IP_PKTINFO, 0}, {unix.SOL_SOCKET, unix.SO_RCVBUF, 2 * sharedQueue}}},
		"of all":     {any4, 0, []option{{unix.IPPROTO_IP, unix.IP_PKTINFO, 1}}},
		"of all, 6":  {any6, 0, []option{{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1}, {unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}}},
	} {
		s, err := Listen(netip.AddrPortFrom(test.at, 0), false)
		if err != nil {
			t.Fatal(err)
		}
		p := &port{socket: s, relay: test.relay}
		rx.prepare(p)
		for _, o := range append(test.want, option{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1}, option{unix.IPPROTO_UDP, unix.UDP_GRO, 1}) {
			if got, err := unix.GetsockoptInt(s.fd, o.level, o.name); err != nil || got != o.want {
				t.Errorf("%s: option %d of level %d is %d (%v), want %d", name, o.name, o.level, got, err, o.want)
			}
		}
		if (p.locals != nil) != test.at.IsUnspecified() {
			t.Errorf("%s: where clients come in is %v", name, p.locals)
		}
		s.Close()
	}
}

// A socket that package net has is not closed by its old number, which is somebody
// else's by then; one that a shard owns only by the shard.
func TestSocket_ClosesWhatItHas(t *testing.T) {
	s, err := Listen(netip.AddrPortFrom(loopback4, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.conn()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	next, err := Listen(netip.AddrPortFrom(loopback4, 0), false) // has the number now
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil || next.fd != s.fd {
		t.Errorf("closed with %v; the numbers are %d and %d", err, s.fd, next.fd)
	}
	next.owned.Store(true)
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	if _, err := unix.Getsockname(next.fd); err != nil {
		t.Errorf("the socket of a shard: %v", err)
	}
	if err := next.close(); err != nil {
		t.Error(err)
	}
	if _, err := unix.Getsockname(next.fd); err == nil {
		t.Error("the shard's own socket is open still")
	}
}

func TestZone(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]uint32{"fe80::1": 0, "fe80::1%7": 7, "fe80::1%lo": uint32(lo.Index), "fe80::1%nowhere0": 0} {
		if got := zone(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %d, want %d", addr, got, want)
		}
	}
	for _, test := range []struct {
		addr string
		n    uint32
		want string
	}{{"fe80::1", 7, "fe80::1%7"}, {"fe80::1", 0, "fe80::1"}, {"2001:db8::1", 7, "2001:db8::1"}, {"192.0.2.1", 7, "192.0.2.1"}} {
		if got := zoned(netip.MustParseAddr(test.addr), test.n).String(); got != test.want {
			t.Errorf("%s of interface %d: %s, want %s", test.addr, test.n, got, test.want)
		}
	}
}
