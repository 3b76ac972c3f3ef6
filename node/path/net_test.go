// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"time"
)

// world is an internet in memory, in which time passes as events happen.
type world struct {
	now      time.Time
	events   events
	order    int
	internet *realm
	rnd      *rand.Rand
	delay    time.Duration // of each hop
	// lose and again are the shares of packets that get lost or come twice; up to
	// jitter is added to each delay.
	lose, again float64
	jitter      time.Duration
	dark        bool // everything gets lost
}

func newWorld(seed uint64) *world {
	w := &world{now: time.Unix(1_800_000_000, 0), rnd: rand.New(rand.NewPCG(seed, 1)), delay: 10 * time.Millisecond}
	w.internet = newRealm(w, nil)
	return w
}

type event struct {
	at    time.Time
	order int
	do    func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// at has something done at a time, or now if that has passed.
func (w *world) at(t time.Time, do func()) {
	if t.Before(w.now) {
		t = w.now
	}
	w.order++
	heap.Push(&w.events, event{t, w.order, do})
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now.Add(d), do) }

// transmit carries a packet over one hop.
func (w *world) transmit(do func()) {
	if w.dark || w.rnd.Float64() < w.lose {
		return
	}
	n := 1
	if w.rnd.Float64() < w.again {
		n = 2
	}
	for range n {
		d := w.delay
		if w.jitter > 0 {
			d += time.Duration(w.rnd.Int64N(int64(w.jitter)))
		}
		w.after(d, do)
	}
}

// run lets time pass until done says so; false if it has not by then.
func (w *world) run(d time.Duration, done func() bool) bool {
	end := w.now.Add(d)
	for {
		if done != nil && done() {
			return true
		}
		if len(w.events) == 0 || w.events[0].at.After(end) {
			w.now = end
			return done != nil && done()
		}
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.do()
	}
}

// device takes packets.
type device interface {
	receive(src, dst netip.AddrPort, b []byte)
}

// realm is a network whose devices reach one another, and the rest by a NAT.
type realm struct {
	w     *world
	hosts map[netip.Addr]device
	up    *nat
}

func newRealm(w *world, up *nat) *realm { return &realm{w, map[netip.Addr]device{}, up} }

func (r *realm) send(src, dst netip.AddrPort, b []byte) {
	if d := r.hosts[dst.Addr()]; d != nil {
		r.w.transmit(func() { d.receive(src, dst, b) })
	} else if r.up != nil {
		r.up.send(src, dst, b)
	}
}

// behaviour is how a NAT maps or filters (RFC 4787 sections 4.1 and 5).
type behaviour int

const (
	independent behaviour = iota // of the other end
	byAddress
	byPort
)

func (b behaviour) String() string { return [...]string{"E", "A", "P"}[b] }

// key is as much of the other end as counts.
func (b behaviour) key(other netip.AddrPort) netip.AddrPort {
	switch b {
	case independent:
		return netip.AddrPort{}
	case byAddress:
		return netip.AddrPortFrom(other.Addr(), 0)
	}
	return other
}

// nat translates between an inner and an outer realm. One that does not
// translate is a firewall that lets answers in.
type nat struct {
	w            *world
	mapping      behaviour
	filter       behaviour
	ext          netip.Addr
	inner, outer *realm
	hairpin      bool
	plain        bool // a firewall: addresses stay
	closed       bool // lets nothing out
	next         uint16
	out          map[mapKey]uint16
	in           map[uint16]*mapped
}

type mapKey struct{ src, dst netip.AddrPort }

type mapped struct {
	src     netip.AddrPort
	last    time.Time
	allowed map[netip.AddrPort]time.Time
}

// natMemory is how long a NAT remembers what it saw.
const natMemory = 30 * time.Second

func newNAT(outer *realm, ext string, mapping, filter behaviour) *nat {
	n := &nat{w: outer.w, mapping: mapping, filter: filter, ext: netip.MustParseAddr(ext), outer: outer, next: 40000}
	n.forget()
	n.inner = newRealm(outer.w, n)
	outer.hosts[n.ext] = n
	return n
}

// forget is what a restart does, or conntrack -F.
func (n *nat) forget() { n.out, n.in = map[mapKey]uint16{}, map[uint16]*mapped{} }

// translate returns the outer source of a packet.
func (n *nat) translate(src, dst netip.AddrPort) netip.AddrPort {
	k := mapKey{src, n.mapping.key(dst)}
	port, ok := n.out[k]
	if n.plain {
		port, ok = src.Port(), n.in[src.Port()] != nil
	}
	if ok && n.w.now.Sub(n.in[port].last) > natMemory {
		delete(n.in, port)
		ok = false
	}
	if !ok {
		if !n.plain {
			n.next++
			port = n.next
		}
		n.out[k] = port
		n.in[port] = &mapped{src: src, allowed: map[netip.AddrPort]time.Time{}}
	}
	m := n.in[port]
	m.last = n.w.now
	m.allowed[n.filter.key(dst)] = n.w.now
	if n.plain {
		return src
	}
	return netip.AddrPortFrom(n.ext, port)
}

func (n *nat) send(src, dst netip.AddrPort, b []byte) {
	if n.closed || dst.Addr() == n.ext && !n.hairpin {
		return
	}
	n.outer.send(n.translate(src, dst), dst, b)
}

func (n *nat) receive(src, dst netip.AddrPort, b []byte) {
	m := n.in[dst.Port()]
	if m == nil || n.w.now.Sub(m.last) > natMemory {
		return
	}
	seen, ok := m.allowed[n.filter.key(src)]
	if n.filter != independent && (!ok || n.w.now.Sub(seen) > natMemory) {
		return
	}
	n.inner.send(src, m.src, b)
}

// server is a gateway that relays. Its allocations have ports.
type server struct {
	w     *world
	addr  netip.Addr
	ports map[uint16]*allocation
	down  bool
}

func newServer(w *world, addr string) *server {
	s := &server{w: w, addr: netip.MustParseAddr(addr), ports: map[uint16]*allocation{}}
	w.internet.hosts[s.addr] = s
	return s
}

// allocation is a relayed address; the leg to its owner is not modelled but for
// its delay.
type allocation struct {
	s       *server
	port    uint16
	allowed map[netip.Addr]time.Time
	deliver func(src netip.AddrPort, b []byte)
}

// permitted is for how long a relay lets packets in after the last one went out.
const permitted = 5 * time.Minute

func (s *server) allocate(deliver func(netip.AddrPort, []byte)) *allocation {
	a := &allocation{s, uint16(49152 + len(s.ports)), map[netip.Addr]time.Time{}, deliver}
	s.ports[a.port] = a
	return a
}

func (a *allocation) addr() netip.AddrPort { return netip.AddrPortFrom(a.s.addr, a.port) }

func (a *allocation) send(dst netip.AddrPort, b []byte) {
	a.s.w.transmit(func() {
		if !a.s.down {
			a.allowed[dst.Addr()] = a.s.w.now
			a.s.w.internet.send(a.addr(), dst, b)
		}
	})
}

func (s *server) receive(src, dst netip.AddrPort, b []byte) {
	if a := s.ports[dst.Port()]; a != nil && !s.down && s.w.now.Sub(a.allowed[src.Addr()]) < permitted {
		s.w.transmit(func() { a.deliver(src, b) })
	}
}
