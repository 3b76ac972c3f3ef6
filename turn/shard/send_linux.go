// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"hash/maphash"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bounds of a batch of sends. What is beyond begins the next.
const (
	maxPackets  = 1024
	maxGroups   = 512
	maxMessages = 256
	tableSize   = 2 * maxGroups
)

// Bounds of the kernel for datagrams that leave as one packet.
const (
	maxSegments  = 64
	maxSegmented = 65000 // bytes: room for headers in 65535
)

// packet is a datagram to be sent.
type packet struct {
	data []byte
	next int32 // of its group; -1: none
}

// group is what goes from a port to an address, in its order.
type group struct {
	port        *port
	to          netip.AddrPort
	whole       bool // unfragmented or not at all
	segment     int  // the largest that may leave as one of several
	first, last int32
	next        int32 // of its port; -1: none
	from        local // where it leaves, if not where the port is bound to
	name        name
	named       uint32 // bytes of name
}

// sender collects datagrams and sends those of a port with one call, and those
// of equal size to the same address as one packet.
type sender struct {
	stats *Stats
	// lost is told of what was not sent.
	lost   func(p *port, to netip.AddrPort, data []byte, err error)
	cut    bool   // the kernel cuts packets into datagrams (GSO)
	number uint32 // of the batch, from 1
	seed   maphash.Seed

	packets []packet
	groups  []group
	ports   []*port            // that have groups
	table   [tableSize]place   // groups by port and address
	shun    [shunned]undivided // addresses to which packets cannot be cut
	shuns   bool               // there are some

	heads    [maxMessages]header
	iovs     [maxPackets]unix.Iovec
	controls [maxMessages]controlBuffer
	of       [maxMessages]message
}

// place is a group in the table; one of another batch is free.
type place struct {
	number uint32
	group  int32
}

// message is what a header stands for.
type message struct {
	first int32 // packet
	count int32
	size  int32 // of all but the last
	group int32
}

func newSender(stats *Stats, cut bool) *sender {
	return &sender{
		stats: stats, cut: cut, lost: func(*port, netip.AddrPort, []byte, error) {}, number: 1, seed: maphash.MakeSeed(),
		packets: make([]packet, 0, maxPackets), groups: make([]group, 0, maxGroups), ports: make([]*port, 0, maxGroups),
	}
}

// add takes a datagram. Its data must stay as it is until flush.
func (x *sender) add(p *port, to netip.AddrPort, whole bool, data []byte) {
	if len(x.packets) == maxPackets {
		x.flush()
	}
	g := x.group(p, to, whole)
	if g == nil {
		x.lose(p, to, data, unix.EAFNOSUPPORT)
		return
	}
	at := int32(len(x.packets))
	x.packets = append(x.packets, packet{data: data, next: -1})
	if g.last >= 0 {
		x.packets[g.last].next = at
	} else {
		g.first = at
	}
	g.last = at
}

// group finds or begins what goes from p to an address. It is nil when nothing can.
func (x *sender) group(p *port, to netip.AddrPort, whole bool) *group {
	if p.lane.batch == x.number {
		if g := &x.groups[p.lane.latest]; g.to == to && g.whole == whole {
			return g
		}
	}
	at := x.hash(p, to)
	for ; x.table[at].number == x.number; at = (at + 1) % tableSize {
		if g := &x.groups[x.table[at].group]; g.port == p && g.to == to && g.whole == whole {
			p.lane.latest = x.table[at].group
			return g
		}
	}
	if len(x.groups) == maxGroups {
		x.flush()
		at = x.hash(p, to)
	}
	return x.begin(p, to, whole, at)
}

func (x *sender) begin(p *port, to netip.AddrPort, whole bool, at uint32) *group {
	if p.closed || to.Addr().Is6() && !p.socket.ipv6 || !to.IsValid() {
		return nil
	}
	index := int32(len(x.groups))
	x.groups = append(x.groups, group{port: p, to: to, whole: whole, first: -1, last: -1, next: -1})
	g := &x.groups[index]
	g.named = g.name.set(to, p.socket.ipv6)
	g.segment = x.limit(p, to)
	if p.locals != nil {
		g.from = p.locals[to]
	}
	if p.lane.batch == x.number {
		x.groups[p.lane.newest].next = index
	} else {
		p.lane.batch, p.lane.oldest, p.lane.whole = x.number, index, false
		x.ports = append(x.ports, p)
	}
	p.lane.newest, p.lane.latest = index, index
	p.lane.whole = p.lane.whole || whole
	x.table[at] = place{number: x.number, group: index}
	return g
}

func (x *sender) hash(p *port, to netip.AddrPort) uint32 {
	return uint32(hashAddr(x.seed, to)^uint64(p.socket.fd)*0x9E3779B97F4A7C15) % tableSize
}

// hashAddr is unpredictable to who chooses addresses.
func hashAddr(seed maphash.Seed, a netip.AddrPort) uint64 {
	b := a.Addr().As16()
	var key [18]byte
	copy(key[:], b[:])
	key[16], key[17] = byte(a.Port()), byte(a.Port()>>8)
	return maphash.Bytes(seed, key[:])
}

// flush sends everything.
func (x *sender) flush() {
	for i, p := range x.ports {
		x.ports[i] = nil
		x.flushPort(p)
	}
	clear(x.packets) // the data belongs to others
	x.packets, x.groups, x.ports = x.packets[:0], x.groups[:0], x.ports[:0]
	if x.number++; x.number == 0 {
		x.number = 1
		x.table = [tableSize]place{}
	}
}

func (x *sender) flushPort(p *port) {
	x.flushGroups(p, false)
	if p.lane.whole {
		p.socket.keepWhole(true)
		x.flushGroups(p, true)
		p.socket.keepWhole(false)
	}
}

func (x *sender) flushGroups(p *port, whole bool) {
	messages, iovs := 0, 0
	for at := p.lane.oldest; at >= 0; at = x.groups[at].next {
		g := &x.groups[at]
		if g.whole != whole {
			continue
		}
		for next := g.first; next >= 0; {
			if messages == maxMessages {
				x.push(p, messages)
				messages, iovs = 0, 0
			}
			next, iovs = x.build(messages, g, at, next, iovs)
			messages++
		}
	}
	if messages > 0 {
		x.push(p, messages)
	}
}

// build makes message number n of the packets of g from first on, as many as fit
// in one. It returns the packet after them, and how many iovs are in use.
func (x *sender) build(n int, g *group, at, first int32, iovs int) (int32, int) {
	pk := &x.packets[first]
	size, total := len(pk.data), len(pk.data)
	m := message{first: first, count: 1, size: int32(size), group: at}
	start := iovs
	iovs = x.gather(start, iovs, pk.data)
	next := pk.next
	for full := size; next >= 0 && size <= g.segment && size > 0 && full == size && m.count < maxSegments; {
		pk = &x.packets[next]
		full = len(pk.data)
		if full == 0 || full > size || total+full > maxSegmented {
			break
		}
		iovs = x.gather(start, iovs, pk.data)
		total += full
		m.count++
		next = pk.next
	}
	x.of[n] = m
	h := &x.heads[n]
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&g.name)), g.named
	h.Iov = &x.iovs[start]
	h.SetIovlen(iovs - start)
	w := controlWriter{to: &x.controls[n]}
	if m.count > 1 {
		w.segments(size)
	}
	if g.from.addr.IsValid() {
		w.from(g.from)
	}
	if h.Control = nil; w.n > 0 {
		h.Control = &w.to.b[0]
	}
	h.SetControllen(w.n)
	return next, iovs
}

// nothing is what an empty datagram points to.
var nothing byte

// gather adds data to the iovs of a message that begin at start. What lies behind
// the last of them in memory makes that longer: the kernel has less to look at.
func (x *sender) gather(start, n int, data []byte) int {
	base := &nothing
	if len(data) > 0 {
		base = &data[0]
	}
	if n > start {
		last := &x.iovs[n-1]
		if uintptr(unsafe.Pointer(last.Base))+uintptr(last.Len) == uintptr(unsafe.Pointer(base)) {
			last.SetLen(int(last.Len) + len(data))
			return n
		}
	}
	x.iovs[n].Base = base
	x.iovs[n].SetLen(len(data))
	return n + 1
}

// push sends the first n messages from p. What the kernel does not take is
// dropped: nobody waits.
func (x *sender) push(p *port, n int) {
	retried := false
	for at := 0; at < n; {
		sent, errno := x.call(p, at, n-at)
		if errno == 0 {
			x.count(at, sent)
			at += sent
			retried = false
			continue
		}
		switch errno {
		case unix.EINTR:
		case unix.EAGAIN: // the socket's queue is full
			x.unsent(at, n-at, errno)
			return
		case unix.ENOBUFS, unix.ENOMEM: // this packet found no room further down
			x.unsent(at, 1, errno)
			at++
		default:
			switch {
			case !retried: // maybe an error of an earlier packet, which is told once
				retried = true
				continue
			case x.of[at].count > 1 && uncut(errno):
				x.separately(p, at)
			default:
				x.unsent(at, 1, errno)
			}
			at++
		}
		retried = false
	}
}

// call sends up to n messages from number at on.
func (x *sender) call(p *port, at, n int) (int, unix.Errno) {
	h := &x.heads[at]
	x.stats.Sends++
	if n == 1 && h.Control == nil && h.Iovlen == 1 {
		return 1, sendOne(p.socket.fd, &h.Msghdr)
	}
	return sendBatch(p.socket.fd, h, n)
}

func (x *sender) count(at, n int) {
	for _, m := range x.of[at : at+n] {
		x.stats.Sent += uint64(m.count)
		if m.count > 1 {
			x.stats.Segmented += uint64(m.count)
		}
	}
}

// unsent drops n messages from number at on.
func (x *sender) unsent(at, n int, errno unix.Errno) {
	for _, m := range x.of[at : at+n] {
		g := &x.groups[m.group]
		for i, next := int32(0), m.first; i < m.count; i++ {
			pk := &x.packets[next]
			next = pk.next
			x.lose(g.port, g.to, pk.data, errno)
		}
	}
}

// lose drops a datagram.
func (x *sender) lose(p *port, to netip.AddrPort, data []byte, errno unix.Errno) {
	x.stats.Unsent++
	x.lost(p, to, data, errno)
}

// shunned is how many addresses are remembered to which packets cannot be cut.
const shunned = 256

// undivided is an address to which a packet of segments of size could not be
// sent: the path is too narrow, or encrypted.
type undivided struct {
	to     netip.AddrPort
	size   int
	number uint32 // of the batch
}

// shunFor is for how many batches such an address is remembered.
const shunFor = 1 << 16

func (x *sender) shunAt(to netip.AddrPort) *undivided {
	return &x.shun[hashAddr(x.seed, to)%shunned]
}

// limit is how large datagrams to an address may be that leave as one packet.
func (x *sender) limit(p *port, to netip.AddrPort) int {
	if !x.cut {
		return 0
	}
	n := maxSegmented
	if p.socket.ipv6 {
		n = fragment - 40 - 8 // what is cut must pass whole
	}
	if !x.shuns {
		return n
	}
	if s := x.shunAt(to); s.to == to && x.number-s.number < shunFor {
		n = min(n, s.size-1)
	}
	return n
}

// uncut reports whether an error says that a packet could not be cut: narrow paths
// give the first two, encrypted ones the third.
func uncut(err unix.Errno) bool {
	return err == unix.EINVAL || err == unix.EMSGSIZE || err == unix.EIO || err == unix.EOPNOTSUPP
}

// separately sends the packets of a message one by one.
func (x *sender) separately(p *port, at int) {
	m := x.of[at]
	g := &x.groups[m.group]
	x.shuns = true
	*x.shunAt(g.to) = undivided{to: g.to, size: int(m.size), number: x.number}
	g.segment = min(g.segment, int(m.size)-1)
	h := header{Msghdr: x.heads[at].Msghdr}
	w := controlWriter{to: &x.controls[at]}
	if g.from.addr.IsValid() {
		w.from(g.from)
	}
	if h.Control = nil; w.n > 0 {
		h.Control = &w.to.b[0]
	}
	h.SetControllen(w.n)
	for i, next := int32(0), m.first; i < m.count; i++ {
		pk := &x.packets[next]
		next = pk.next
		iov := unix.Iovec{Base: &nothing}
		if len(pk.data) > 0 {
			iov.Base = &pk.data[0]
		}
		iov.SetLen(len(pk.data))
		h.Iov = &iov
		h.SetIovlen(1)
		x.stats.Sends++
		if sent, errno := sendBatch(p.socket.fd, &h, 1); sent == 1 && errno == 0 {
			x.stats.Sent++
		} else {
			x.lose(p, g.to, pk.data, errno)
		}
	}
}
