// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

const (
	// streamPort is where the stream of a test goes.
	streamPort = 7000
	// recordEvery is how often a record of recordSize bytes is sent on it.
	recordEvery = 10 * time.Millisecond
	recordSize  = 512
	// A stream is calm when no record has let wait for hiccup, for so long.
	calm, hiccup = time.Second, 300 * time.Millisecond

	// shortStall is for what packets need not notice, and longStall for what
	// nobody tells the nodes of.
	shortStall, longStall = time.Second, 6 * time.Second
)

// stream is a TCP connection between two nodes, on which numbered records come
// all the time.
type stream struct {
	mu      sync.Mutex // guards the fields below
	next    uint64     // the number of the next record
	last    time.Time  // when the one before came
	from    time.Time  // waits before this do not count
	longest time.Duration
	uneasy  time.Time // when the last hiccup ended
	began   time.Time
	err     error
}

// connect connects two nodes over the mesh. The caller closes both ends.
func connect(t testing.TB, from, to *labNode) (out, in net.Conn) {
	t.Helper()
	at := netip.AddrPortFrom(to.addr, streamPort)
	var l net.Listener
	if err := to.side.Run(func() (err error) { l, err = net.Listen("tcp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err := from.side.Run(func() (err error) {
		out, err = net.DialTimeout("tcp", at.String(), patience)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if in, err = l.Accept(); err != nil {
		t.Fatal(errors.Join(err, out.Close()))
	}
	return out, in
}

// openStream begins a stream between two nodes. It ends with the test.
func openStream(t testing.TB, from, to *labNode) *stream {
	t.Helper()
	out, in := connect(t, from, to)
	now := time.Now()
	s := &stream{last: now, from: now, uneasy: now, began: now}
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { s.send(out, ended) })
	running.Go(func() { s.receive(in) })
	t.Cleanup(func() {
		close(ended)
		_, _ = out.Close(), in.Close()
		running.Wait()
	})
	return s
}

// send sends records until ended.
func (s *stream) send(c net.Conn, ended <-chan struct{}) {
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	b := make([]byte, recordSize)
	for n := uint64(0); ; n++ {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		binary.BigEndian.PutUint64(b, n)
		if _, err := c.Write(b); err != nil {
			s.fail(fmt.Errorf("send: %w", err))
			return
		}
	}
}

// receive takes records until the connection ends.
func (s *stream) receive(c net.Conn) {
	b := make([]byte, recordSize)
	for {
		if _, err := io.ReadFull(c, b); err != nil {
			s.fail(fmt.Errorf("receive: %w", err))
			return
		}
		s.came(binary.BigEndian.Uint64(b))
	}
}

func (s *stream) came(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	since := s.last
	if s.from.After(since) {
		since = s.from
	}
	wait := now.Sub(since)
	s.longest = max(s.longest, wait)
	if wait > hiccup {
		s.uneasy = now
	}
	if n != s.next && s.err == nil {
		s.err = fmt.Errorf("record %d came in place of %d", n, s.next)
	}
	s.last = now
	s.next++
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// mark forgets the waits so far.
func (s *stream) mark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from, s.longest = time.Now(), 0
}

// flows reports whether records have come without hiccups for a while since
// the last mark.
func (s *stream) flows() (bool, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.err != nil {
		return true, s.err.Error()
	}
	return s.last.After(s.from) && now.Sub(s.last) < hiccup && now.Sub(s.uneasy) > calm && now.Sub(s.from) > calm,
		fmt.Sprintf("the last record came %s ago, after a hiccup %s ago", now.Sub(s.last), now.Sub(s.uneasy))
}

// endure has something happen, and fails the test when no record comes for
// longer than a limit. Where that something lasts, the time after it counts.
func (s *stream) endure(t testing.TB, what string, limit time.Duration, happen func()) {
	t.Helper()
	began := time.Now()
	s.mark()
	happen()
	eventually(t, patience, s.flows)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Logf("%-44s longest stall %6s, over after %s", what, s.longest.Round(time.Millisecond), time.Since(began).Round(100*time.Millisecond))
	if s.err != nil {
		t.Fatalf("%s: the stream ended: %v", what, s.err)
	}
	if s.longest > limit {
		t.Errorf("%s: nothing came for %s, want at most %s", what, s.longest, limit)
	}
}

// lasts waits until the stream is so old, and fails the test if it does not flow
// all the time from now to then, or has carried less than half of what is sent in
// its time: stalls, each of which has its limit, are all that may be missing.
func (s *stream) lasts(t testing.TB, age time.Duration) {
	t.Helper()
	s.mark()
	pause := time.NewTimer(time.Until(s.began.Add(age)))
	defer pause.Stop()
	<-pause.C
	s.mu.Lock()
	defer s.mu.Unlock()
	old := time.Since(s.began)
	t.Logf("the stream is %s old and has carried %d records; longest stall at rest %s",
		old.Round(100*time.Millisecond), s.next, s.longest.Round(time.Millisecond))
	least := uint64(old / recordEvery / 2)
	switch {
	case s.err != nil:
		t.Errorf("the stream ended: %v", s.err)
	case s.longest > shortStall:
		t.Errorf("at rest nothing came for %s, want at most %s", s.longest, shortStall)
	case s.next < least:
		t.Errorf("%d records came in %s, want at least %d", s.next, old, least)
	}
}

// says counts how often a node has logged something.
func (n *labNode) says(text string) int { return strings.Count(n.log.String(), text) }

// awaitDirect waits until nodes have had a direct way to each other or to others.
func awaitDirect(t testing.TB, nodes ...*labNode) {
	t.Helper()
	eventually(t, patience, func() (bool, string) {
		for _, n := range nodes {
			if n.says("packets go directly")+n.says("direct=true") == 0 {
				return false, n.id + " goes nowhere directly"
			}
		}
		return true, ""
	})
}

// awaitSaid waits until nodes have logged something.
func awaitSaid(t testing.TB, text string, nodes ...*labNode) {
	t.Helper()
	eventually(t, patience, func() (bool, string) {
		for _, n := range nodes {
			if n.says(text) == 0 {
				return false, n.id + " does not say: " + text
			}
		}
		return true, ""
	})
}

// restart ends the gateway by a signal and starts it again.
func (m *labMesh) restart(t testing.TB, s syscall.Signal) {
	t.Helper()
	_ = m.gate.cmd.Process.Signal(s)
	select {
	case <-m.gate.done:
	case <-time.After(patience):
		t.Fatal("the gateway does not end")
	}
	m.gate.process = m.gate.run(t, m.up...)
}

// reaches says how long it takes until a node reaches the gateway.
func (m *labMesh) reaches(t testing.TB, n *labNode, what string) {
	t.Helper()
	began := time.Now()
	if err := n.ping(m.gate.addr, longStall); err != nil {
		t.Errorf("%s: %s does not reach its gateway: %v", what, n.id, err)
		return
	}
	t.Logf("%-44s %s reaches the gateway after %s", what, n.id, time.Since(began).Round(time.Millisecond))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A TCP connection between two nodes survives whatever happens to the network.
func TestLife_StreamGoesOn(t *testing.T) {
	live(t, netlab.PortRestricted, netlab.CGNAT, 4*time.Second, 0)
}

// live has two nodes behind some kinds of access go through all that happens,
// while a stream runs for a time at least. While the second one is in the dark
// nothing comes for so long.
func live(t *testing.T, first, second netlab.Kind, dark, age time.Duration) {
	m := newLabMesh(t)
	a, b := m.node(t, "ada", first), m.node(t, "bob", second)
	direct := netlab.Direct(first, second)
	must(t, a.side.Part(b.side))
	m.enter(t, a)
	m.enter(t, b)

	s := openStream(t, a, b)
	s.endure(t, "from the gateway to a pair", shortStall, func() { awaitSaid(t, "pair stands", a, b) })
	s.endure(t, "from a relay to a direct way", shortStall, func() {
		must(t, a.side.Meet(b.side))
		if direct {
			awaitDirect(t, a, b)
		}
	})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		what := "restart of the gateway, " + sig.String()
		heard := [2]int{a.says("gateway heard"), b.says("gateway heard")}
		s.endure(t, what, shortStall, func() {
			m.restart(t, sig)
			if !direct {
				s.mark() // what it relays stands still until it is back
			}
		})
		back := time.Now()
		eventually(t, patience, func() (bool, string) {
			return a.says("gateway heard") > heard[0] && b.says("gateway heard") > heard[1], "the nodes do not hear the gateway"
		})
		t.Logf("%-44s both nodes hear it %s later", what, time.Since(back).Round(100*time.Millisecond))
	}
	for _, n := range []*labNode{a, b} {
		s.endure(t, n.id+" has its NAT forget it", longStall, func() { must(t, n.side.Rebind()) })
		m.reaches(t, n, n.id+" has its NAT forget it")
		s.endure(t, n.id+" gets another address", longStall, func() { must(t, n.side.SetAddr(n.otherAddr())) })
		m.reaches(t, n, n.id+" gets another address")
	}
	s.endure(t, fmt.Sprintf("blackout of %s", dark), longStall, func() {
		must(t, b.side.Blackout())
		pause := time.NewTimer(dark)
		defer pause.Stop()
		<-pause.C
		must(t, b.side.Restore())
		s.mark()
	})
	m.reaches(t, b, "blackout")
	s.lasts(t, age)
}

// otherAddr is one that the node's host does not have.
func (n *labNode) otherAddr() netip.Addr {
	at := n.side.Addr4()
	if !at.IsValid() {
		at = n.side.Addr6()
	}
	return at.Next().Next()
}

// A member that floods its gateway and another node with what looks like messages
// for them, and vanishes, takes nothing from the others.
func TestLife_OthersAreNotHurt(t *testing.T) {
	m := newLabMesh(t)
	a, b, mallory := m.node(t, "ada", netlab.FullCone), m.node(t, "bob", netlab.PortRestricted), m.node(t, "mallory", netlab.Open)
	for _, n := range []*labNode{a, b, mallory} {
		m.enter(t, n)
	}
	s := openStream(t, a, b)
	awaitDirect(t, a, b)
	mallory.exchange(t, a, 1<<10)
	s.endure(t, "a flood, and a member that vanishes", shortStall, func() {
		mallory.kill()
		must(t, mallory.side.Run(func() error { return flood(m.gate.side.Addr4(), 51820, 3478) }))
	})
	m.reaches(t, a, "after the flood")
	if n := a.says("pair is broken"); n > 1 { // that with the one that vanished
		t.Errorf("%d pairs broke", n)
	}
}

// flood sends thousands of datagrams to ports of a host: the beginnings of all
// that these ports take, with nothing true in them.
func flood(to netip.Addr, ports ...uint16) error {
	c, err := net.ListenPacket("udp4", ":51820")
	if err != nil {
		return err
	}
	defer c.Close()
	binding := make([]byte, 100)
	copy(binding, "\x00\x01\x00\x50\x21\x12\xa4\x42")
	channel := append([]byte{0x40, 0, 0, 96}, make([]byte, 96)...)
	allocate := make([]byte, 100)
	copy(allocate, "\x00\x03\x00\x50\x21\x12\xa4\x42")
	initiation := append([]byte{1, 0, 0, 0}, make([]byte, 144)...)
	data := append([]byte{4, 0, 0, 0}, make([]byte, 96)...)
	for i := range 2000 {
		for _, b := range [][]byte{binding, channel, allocate, initiation, data} {
			binary.BigEndian.PutUint32(b[8:], uint32(i)) // ids, counters, keys
			for _, port := range ports {
				at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, port))
				if _, err := c.WriteTo(b, at); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
					return err
				}
			}
		}
	}
	return nil
}

// Copies get through links with a small MTU about which nobody tells, directly
// and over a relay that is reached by TLS.
func TestLife_NarrowLinks(t *testing.T) { copies(t, 1<<20) }

// copies copies so many bytes both ways over links of several MTUs.
func copies(t *testing.T, size int64) {
	m := newLabMesh(t)
	a, b, walled := m.node(t, "ada", netlab.PortRestricted), m.node(t, "bob", netlab.CGNAT), m.node(t, "walled", netlab.Only443)
	for _, n := range []*labNode{a, b, walled} {
		must(t, n.side.DropICMP())
		must(t, n.side.MTU(1280)) // joining is to work there, too
		m.enter(t, n)
	}
	for _, to := range []*labNode{b, walled} {
		a.exchange(t, to, 1<<10)
	}
	awaitDirect(t, a, b)
	awaitSaid(t, "pair stands", walled)
	for _, mtu := range []int{1280, 1400, 1500} {
		must(t, errors.Join(a.side.MTU(mtu), walled.side.MTU(mtu)))
		for _, to := range []*labNode{b, walled} {
			took := a.exchange(t, to, size)
			t.Logf("MTU %d, %s: %d bytes each way at once in %s", mtu, to.id, size, took.Round(time.Millisecond))
		}
	}
	for _, n := range []*labNode{a, b, walled} {
		if n.says("pair is broken") > 0 {
			t.Errorf("%s lost a pair meanwhile: the gateway carried it", n.id)
		}
	}
	if walled.says("packets go directly")+walled.says("direct=true") > 0 {
		t.Error("the node that has only port 443 goes directly")
	}
}

// The same over IPv6, whose packets no router cuts: directly, and over a relay to a
// node that has only IPv4.
//
// FIXME: of one in ten runs, a megabyte each way at once over that relay stands
// still for a minute or more, with some of it missing. TestLife_NarrowIPv6Long has it.
func TestLife_NarrowIPv6(t *testing.T) { copies6(t, 1<<20, 1<<14, 1280, 1400, 1500) }

// copies6 copies so many bytes both ways between a node that has only IPv6 and
// another one, and so many over a relay, over links of some MTUs, one after the
// other.
func copies6(t *testing.T, size, relayed int64, mtus ...int) {
	m := newLabMesh(t)
	a, b, old := m.node(t, "ada", netlab.IPv6Only), m.node(t, "bob", netlab.IPv6Only), m.node(t, "old", netlab.PortRestricted)
	for _, n := range []*labNode{a, b, old} {
		must(t, n.side.DropICMP())
		must(t, n.side.MTU(1280)) // joining is to work there, too
		m.enter(t, n)
	}
	for _, to := range []*labNode{b, old} {
		a.exchange(t, to, 1<<10)
	}
	awaitDirect(t, a, b)
	awaitSaid(t, "pair stands", old)
	for _, mtu := range mtus {
		must(t, errors.Join(a.side.MTU(mtu), b.side.MTU(mtu), old.side.MTU(mtu)))
		took := a.exchange(t, b, size)
		t.Logf("MTU %d, %s: %d bytes each way at once in %s", mtu, b.id, size, took.Round(time.Millisecond))
		took = a.exchange(t, old, relayed)
		t.Logf("MTU %d, %s: %d bytes each way at once in %s", mtu, old.id, relayed, took.Round(time.Millisecond))
	}
	for _, n := range []*labNode{a, b, old} {
		if n.says("pair is broken") > 0 {
			t.Errorf("%s lost a pair meanwhile: the gateway carried it", n.id)
		}
	}
}

// exchange sends so many bytes to another node and gets as many from it at the
// same time, and returns how long that took.
func (n *labNode) exchange(t testing.TB, to *labNode, size int64) time.Duration {
	t.Helper()
	out, in := connect(t, n, to)
	began := time.Now()
	deadline := began.Add(patience)
	var g sync.WaitGroup
	for _, c := range []net.Conn{out, in} {
		must(t, c.SetDeadline(deadline))
		g.Go(func() {
			if _, err := io.CopyN(c, noughts{}, size); err != nil {
				t.Errorf("from %s to %s: send: %v", c.LocalAddr(), c.RemoteAddr(), err)
			}
		})
		g.Go(func() {
			if got, err := io.CopyN(io.Discard, c, size); err != nil {
				t.Errorf("from %s to %s: %d bytes of %d came: %v", c.RemoteAddr(), c.LocalAddr(), got, size, err)
			}
		})
	}
	g.Wait()
	must(t, errors.Join(out.Close(), in.Close()))
	return time.Since(began)
}

// noughts are as many as are wanted.
type noughts struct{}

func (noughts) Read(b []byte) (int, error) { clear(b); return len(b), nil }
