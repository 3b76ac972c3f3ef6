// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// The memory that datagrams are received into. Each slot has room for the largest,
// the core's header in front of it and padding behind. Most datagrams touch its
// first page alone; an odd number of cache lines between slots keeps those from
// falling on each other in the caches.
const (
	slots     = 256
	slotSize  = 17*4096 + 64
	fullBatch = slots - share // slots in use with which a batch ends
	fullOut   = maxPackets / 2
	fullCopy  = 256 << 10 // bytes that the core has copied: more than thrice that it does not keep room for
)

// receiver is memory for a batch of datagrams and the heads that describe it.
type receiver struct {
	memory   []byte // of the kernel, not of the heap: it is never moved or scanned
	used     int    // slots
	copied   int    // bytes of datagrams that came merged
	merge    bool   // ask for merged datagrams
	heads    [slots]header
	iovs     [slots]unix.Iovec
	names    [slots]name
	controls [slots]controlBuffer

	errorHead    unix.Msghdr
	errorName    name
	errorControl controlBuffer
}

func newReceiver(merge bool) (*receiver, error) {
	memory, err := unix.Mmap(-1, 0, slots*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", slots*slotSize, err)
	}
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // only what is used shall take memory
	r := &receiver{memory: memory, merge: merge}
	for i := range r.heads {
		iov, h := &r.iovs[i], &r.heads[i]
		iov.Base = &r.slot(i)[core.Headroom]
		iov.SetLen(largest)
		h.Name, h.Iov, h.Control = (*byte)(unsafe.Pointer(&r.names[i])), iov, &r.controls[i].b[0]
		h.SetIovlen(1)
		r.reset(i)
	}
	return r, nil
}

func (r *receiver) close() { _ = unix.Munmap(r.memory) }

func (r *receiver) slot(i int) []byte { return r.memory[i*slotSize : (i+1)*slotSize] }

// reset undoes what the kernel has written into a head.
func (r *receiver) reset(i int) {
	h := &r.heads[i]
	h.Namelen = unix.SizeofSockaddrInet6
	h.SetControllen(controlRoom)
	h.Flags = 0
}

// prepare asks for what the thread wants to know about a port's datagrams. What
// the kernel does not know costs speed or numbers, not function.
func (r *receiver) prepare(p *port) {
	s := p.socket
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	if r.merge {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	}
	if p.relay != 0 {
		s.queues(relayQueue)
		if s.ipv6 {
			_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		} else {
			_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		}
		return
	}
	s.queues(sharedQueue)
	if s.addr.Addr().IsUnspecified() {
		p.locals = make(map[netip.AddrPort]local)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
}

// receive receives a port's share. It reports how many datagrams there were, and
// whether there may be more. err says that the socket is broken.
func (t *thread) receive(now time.Time, p *port) (got int, more bool, err error) {
	if t.rx.used > fullBatch || len(t.out.Actions) > fullOut || t.rx.copied > fullCopy {
		t.finish(now)
		if p.closed {
			return 0, false, nil
		}
	}
	n := share
	if p.lane.merged {
		n = mergedShare
	}
	first := t.rx.used
	r, errno := receiveBatch(p.socket.fd, &t.rx.heads[first], n)
	switch {
	case errno == unix.EAGAIN:
		p.lane.failures = 0
		return 0, false, nil
	case errno != 0:
		if p.lane.failures++; broken(errno) || p.lane.failures > maxFailures {
			return 0, false, fmt.Errorf("receive: %w", errno)
		}
		return 0, true, nil // an error that came for a datagram is told once
	}
	p.lane.failures = 0
	t.rx.used += r
	t.messages += r
	t.stats.Receives++
	p.lane.merged = false
	from := netip.AddrPort{}
	for i := first; i < first+r; i++ {
		if i == first || !t.rx.names[i].same(&t.rx.names[i-1]) {
			from = t.rx.names[i].get(t.rx.heads[i].Namelen)
			if p.relay != 0 {
				from = t.cfg.Relays.Outside(from)
			}
		}
		got += t.accept(now, p, i, from)
		t.rx.reset(i)
	}
	t.stats.Received += uint64(got)
	return got, r == n, nil
}

// accept gives what is in a slot to the core. It returns how many datagrams that was.
func (t *thread) accept(now time.Time, p *port, i int, from netip.AddrPort) int {
	h := &t.rx.heads[i]
	n := int(h.n)
	var c control
	if h.Controllen > 0 {
		c = parseControl(t.rx.controls[i].b[:min(h.Controllen, controlRoom)])
		if c.overflowed != 0 {
			t.stats.Overflowed += uint64(c.overflowed - p.lane.overflowed) // wraps as the kernel's does
			p.lane.overflowed = c.overflowed
		}
	}
	if h.Flags&unix.MSG_TRUNC != 0 {
		t.stats.Truncated++
		return 1
	}
	slot := t.rx.slot(i)
	if c.segment <= 0 || c.segment >= n {
		if p.relay != 0 {
			t.fromPeer(now, p.relay, from, slot[:core.Headroom+n:core.Headroom+n+core.Tailroom], core.Headroom, &t.out)
		} else {
			t.fromListener(now, p, from, slot[core.Headroom:core.Headroom+n:core.Headroom+n], c.local, &t.out)
		}
		return 1
	}
	// Several: what one of them is surrounded by belongs to its neighbours. The
	// core copies those that need a header.
	p.lane.merged = true
	if p.relay != 0 {
		t.rx.copied += n
	}
	got := 0
	for data := slot[core.Headroom : core.Headroom+n]; len(data) > 0; got++ {
		one := data[:min(c.segment, len(data))]
		one, data = one[:len(one):len(one)], data[len(one):]
		if p.relay != 0 {
			t.fromPeer(now, p.relay, from, one, 0, &t.out)
		} else {
			t.fromListener(now, p, from, one, c.local, &t.out)
		}
	}
	t.stats.Merged += uint64(got)
	return got
}

// receiveErrors tells the core about packets to peers that did not arrive. It
// reports whether there may be more.
func (t *thread) receiveErrors(now time.Time, p *port) bool {
	r := t.rx
	for range errorShare {
		r.errorHead = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&r.errorName)), Namelen: unix.SizeofSockaddrInet6, Control: &r.errorControl.b[0]}
		r.errorHead.SetControllen(controlRoom)
		if _, errno := receiveError(p.socket.fd, &r.errorHead); errno != 0 {
			return errno == unix.EINTR
		}
		to := r.errorName.get(r.errorHead.Namelen)
		e, ok := parseError(r.errorControl.b[:min(r.errorHead.Controllen, controlRoom)])
		if ok && to.IsValid() {
			t.core.PeerError(now, p.relay, t.cfg.Relays.Outside(to), e.kind, e.code, e.mtu, &t.out)
		}
	}
	return true
}
