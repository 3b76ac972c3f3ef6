// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// touch is how often a packet of each direction goes through user space (TOUCH in turn.c).
const touch = 20 * time.Second

// coarse is by how much the program's clock may be behind: it ticks like the
// kernel's timers. Nothing is to be served late for that.
const coarse = 10 * time.Millisecond

// maxBurst is how long the bucket of an allocation may have to save for a
// datagram: a rate of a byte per second has no use for more.
const maxBurst = 24 * time.Hour

// maxIdle is how many allocations without bindings are remembered until somebody
// asks what they have relayed.
const maxIdle = 1024

// table keeps what the program's maps hold. The program reads keys and ways, and
// shares slots and meters with it. A table belongs to one goroutine at a time.
type table struct {
	fromClients, fromPeers *ebpf.Map
	outcomes               *ebpf.Map
	slots, meters          shared
	spareSlots             spare
	spareMeters            spare
	flows                  map[core.Flow]*flow
	rates                  map[*core.Rate]*sharing
	refused                uint64
	idle                   int // flows without bindings

	fresh []binding // used by set alone, to keep its memory
}

// flow is an allocation that has bindings in the kernel, or had when it was
// asked about them last.
type flow struct {
	meter    uint32              // 0: none
	rate     *core.Rate          // whose meter it is, with others; nil: its own
	bindings map[uint16]*binding // by channel
	left     core.Usage          // of bindings that have ended; not told yet
}

// sharing is a meter of several flows.
type sharing struct {
	meter uint32
	flows int
}

// binding is a channel as the maps hold it: two ways with one slot.
type binding struct {
	channel uint16
	peer    netip.AddrPort
	until   [2]time.Time

	client fromClient
	back   fromPeer
	slot   uint32
	told   [2]counts // what Counters has told of
}

// newTable takes over the maps, which stay the caller's to close.
func newTable(maps map[string]*ebpf.Map) (*table, error) {
	t := &table{
		fromClients: maps["from_clients"], fromPeers: maps["from_peers"], outcomes: maps["outcomes"],
		flows: make(map[core.Flow]*flow), rates: make(map[*core.Rate]*sharing),
	}
	var err error
	if t.slots, err = share(maps["slots"]); err != nil {
		return nil, err
	}
	if t.meters, err = share(maps["meters"]); err != nil {
		return nil, errors.Join(err, t.slots.close())
	}
	// Slot 0 is that of the self-test, meter 0 that of allocations without a bound.
	t.spareSlots = spare{next: 1, end: t.slots.entries}
	t.spareMeters = spare{next: 1, end: t.meters.entries}
	return t, nil
}

func (t *table) close() error { return errors.Join(t.slots.close(), t.meters.close()) }

// held is how many bindings the maps hold.
func (t *table) held() int {
	n := 0
	for _, f := range t.flows {
		n += len(f.bindings)
	}
	return n
}

// counted adds up what the program has counted on each processor.
func (t *table) counted(s *Stats) {
	var each [][2]uint64 // struct count, by processor
	for i := range s.Packets {
		if t.outcomes.Lookup(uint32(i), &each) != nil {
			continue // it is there as long as the program
		}
		for _, n := range each {
			s.Packets[i] += n[0]
			s.Bytes[i] += n[1]
		}
	}
}

// set makes the maps serve for an allocation what all yields, and nothing else.
// server is the listener's address on this host. What cannot be served is left to
// user space.
func (t *table) set(key core.Flow, server netip.AddrPort, all iter.Seq[local]) {
	f := t.flows[key]
	if f == nil {
		f = &flow{bindings: make(map[uint16]*binding)}
	} else {
		t.forget(key, f)
	}
	kept, full := make(map[uint16]bool, len(f.bindings)), false
	t.fresh = t.fresh[:0]
	for l := range all {
		if (f.meter != 0) != (l.BytesPerSecond > 0) {
			t.drop(f) // the maps say for each binding which meter it has
		}
		full = !t.bound(f, l.BytesPerSecond, l.Rate)
		b := binding{
			channel: l.Channel, peer: l.Peer, until: l.until(),
			client: newFromClient(key.Client, server, l.Channel), back: newFromPeer(l.Peer, l.at),
		}
		// The host's addresses may be others now (Follow).
		if old := f.bindings[l.Channel]; old != nil && old.client == b.client && old.back == b.back {
			kept[l.Channel] = true
			t.extend(old.slot, b.until)
		} else {
			t.fresh = append(t.fresh, b)
		}
	}
	// What ends goes first: a peer may have moved to another channel.
	for channel, b := range f.bindings {
		if !kept[channel] {
			t.remove(f, b)
		}
	}
	for i := range t.fresh {
		b := t.fresh[i]
		if full || t.insert(f, key, server, &b) != nil {
			t.refused++
			continue
		}
		f.bindings[b.channel] = &b
	}
	t.fresh = t.fresh[:0]
	t.settle(key, f)
}

// settle remembers an allocation for as long as somebody will ask for it.
func (t *table) settle(key core.Flow, f *flow) {
	if len(f.bindings) > 0 {
		t.flows[key] = f
		return
	}
	t.unbound(f)
	if f.left != (core.Usage{}) && t.idle < maxIdle {
		t.flows[key] = f
		t.idle++
	}
}

// forget takes an allocation out of the books.
func (t *table) forget(key core.Flow, f *flow) {
	delete(t.flows, key)
	if len(f.bindings) == 0 {
		t.idle--
	}
}

// local is a binding with the relay's address on this host.
type local struct {
	core.Binding
	at netip.AddrPort
}

func (l local) until() [2]time.Time { return [2]time.Time{l.ToPeer, l.FromPeer} }

// insert puts a binding into the maps, or nothing of it.
func (t *table) insert(f *flow, key core.Flow, server netip.AddrPort, b *binding) (err error) {
	if b.slot, err = t.spareSlots.take(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			t.spareSlots.give(b.slot)
		}
	}()
	t.clear(b.slot)
	t.extend(b.slot, b.until)
	relay := b.back.relay()
	toPeer := newWay(relay, b.peer, b.channel, b.slot, f.meter)
	toClient := newWay(server, key.Client, b.channel, b.slot, f.meter)
	if err := t.fromClients.Put(&b.client, &toPeer); err != nil {
		return fmt.Errorf("give the kernel channel %#x of %v: %w", b.channel, key.Client, err)
	}
	if err := t.fromPeers.Put(&b.back, &toClient); err != nil {
		return errors.Join(fmt.Errorf("give the kernel peer %v of %v: %w", b.peer, key.Client, err), t.fromClients.Delete(&b.client))
	}
	return nil
}

// remove takes a binding out of the maps, and what it has counted to the flow.
func (t *table) remove(f *flow, b *binding) {
	// Deadlines hold whatever becomes of the keys.
	t.extend(b.slot, [2]time.Time{})
	// What is not there is gone, as it should be.
	_ = t.fromClients.Delete(&b.client)
	_ = t.fromPeers.Delete(&b.back)
	f.left = t.count(b, f.left)
	delete(f.bindings, b.channel)
	t.spareSlots.give(b.slot)
}

// drop takes all of a flow out of the maps.
func (t *table) drop(f *flow) {
	for _, b := range f.bindings {
		t.remove(f, b)
	}
	t.unbound(f)
}

// used returns what has been relayed for an allocation since used was called last.
func (t *table) used(key core.Flow) core.Usage {
	f := t.flows[key]
	if f == nil {
		return core.Usage{}
	}
	u := f.left
	f.left = core.Usage{}
	for _, b := range f.bindings {
		u = t.count(b, u)
	}
	if len(f.bindings) == 0 {
		t.forget(key, f)
	}
	return u
}

// count adds to u what a binding has counted and not told yet.
func (t *table) count(b *binding, u core.Usage) core.Usage {
	now := [2]counts{t.counts(b.slot, toPeer), t.counts(b.slot, toClient)}
	u.SentPackets += now[toPeer].packets - b.told[toPeer].packets
	u.SentBytes += now[toPeer].bytes - b.told[toPeer].bytes
	u.ReceivedPackets += now[toClient].packets - b.told[toClient].packets
	u.ReceivedBytes += now[toClient].bytes - b.told[toClient].bytes
	b.told = now
	return u
}

// The directions, and the fields of struct side in maps.h, in words of 8 bytes.
const (
	toPeer   = 0
	toClient = 1

	sideUntil   = 0
	sideTouch   = 1
	sidePackets = 2
	sideBytes   = 3
	sideWords   = 8
)

// counts are the counters of a side.
type counts struct{ packets, bytes uint64 }

func (t *table) side(slot uint32, direction int) []uint64 {
	return t.slots.entry(slot)[direction*sideWords:][:sideWords]
}

func (t *table) counts(slot uint32, direction int) counts {
	s := t.side(slot, direction)
	return counts{packets: atomic.LoadUint64(&s[sidePackets]), bytes: atomic.LoadUint64(&s[sideBytes])}
}

// clear makes a slot ready for a binding.
func (t *table) clear(slot uint32) {
	next := uint64(monotonic() + touch)
	for direction := range 2 {
		s := t.side(slot, direction)
		for i := range s {
			atomic.StoreUint64(&s[i], 0)
		}
		atomic.StoreUint64(&s[sideTouch], next)
	}
}

// extend says when the directions of a binding end; the zero time is at once.
func (t *table) extend(slot uint32, until [2]time.Time) {
	now := monotonic()
	for direction, end := range until {
		var at uint64
		if left := time.Until(end); !end.IsZero() && left > 0 {
			at = uint64(now + left)
			at -= min(at, uint64(coarse))
		}
		atomic.StoreUint64(&t.side(slot, direction)[sideUntil], at)
	}
}

// bound gives a flow the meter that it is to have, of its own or with others. It
// is false when there is none left.
func (t *table) bound(f *flow, perSecond int64, rate *core.Rate) bool {
	if perSecond <= 0 {
		return true
	}
	if f.meter != 0 {
		t.turn(f.meter, perSecond)
		return true
	}
	s := t.rates[rate]
	if rate == nil || s == nil {
		index, err := t.spareMeters.take()
		if err != nil {
			return false
		}
		s = &sharing{meter: index}
		burst, room := t.meter(index, perSecond), time.Second
		if rate != nil {
			room = min(room, rate.Room(time.Now())) // who begins anew has no more than who goes on
		}
		m := t.meters.entry(index)
		atomic.StoreUint64(&m[meterFull], uint64(monotonic()+burst-room))
		atomic.StoreUint64(&m[meterShare], 0)
	}
	if f.meter, f.rate = s.meter, rate; rate != nil {
		s.flows++
		t.rates[rate] = s
	}
	return true
}

// unbound takes a flow's meter away.
func (t *table) unbound(f *flow) {
	if f.meter == 0 {
		return
	}
	last := true
	if s := t.rates[f.rate]; f.rate != nil {
		s.flows--
		if last = s.flows == 0; last {
			delete(t.rates, f.rate)
		}
	}
	if last {
		t.spareMeters.give(f.meter)
	}
	f.meter, f.rate = 0, nil
}

// The fields of struct meter in maps.h.
const (
	meterFull  = 0
	meterRate  = 1
	meterBurst = 2
	meterShare = 3
)

// meter sets how fast a bucket fills, and returns how long until it is full. It
// holds what a second brings, and at least one datagram of any size. As that of the core
// does it begins with a second's worth, if not less.
func (t *table) meter(index uint32, rate int64) (burst time.Duration) {
	burst = time.Second
	if rate < 1<<16 {
		burst = min(time.Duration(float64(time.Second)*(1<<16)/float64(rate)), maxBurst)
	}
	m := t.meters.entry(index)
	atomic.StoreUint64(&m[meterRate], uint64(rate))
	atomic.StoreUint64(&m[meterBurst], uint64(burst))
	return burst
}

// turn changes how fast a bucket in use fills, if that is another rate. It misses as many
// bytes as before, at most as many as it holds.
func (t *table) turn(index uint32, rate int64) {
	m := t.meters.entry(index)
	old := atomic.LoadUint64(&m[meterRate])
	if old == uint64(rate) {
		return
	}
	burst := t.meter(index, rate)
	// After the rate, and always another time: what the program works out with the
	// rate before no longer counts.
	for {
		before, now := atomic.LoadUint64(&m[meterFull]), uint64(monotonic())
		missing := float64(max(before, now)-now) * float64(old) / float64(rate)
		if atomic.CompareAndSwapUint64(&m[meterFull], before, now+uint64(min(missing, float64(burst)))) {
			break
		}
	}
	atomic.StoreUint64(&m[meterShare], 0)
}

// monotonic is the time of the clock that the program reads.
func monotonic() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err) // it exists on every Linux
	}
	return time.Duration(now.Nano())
}

// shared is the memory of an array that the program uses at the same time.
type shared struct {
	raw     []byte
	words   []uint64
	size    int // of an entry, in words
	entries uint32
}

func share(m *ebpf.Map) (shared, error) {
	length := int(m.ValueSize()) * int(m.MaxEntries())
	raw, err := unix.Mmap(m.FD(), 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return shared{}, fmt.Errorf("share the memory of %s: %w", m, err)
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(raw))), length/8)
	return shared{raw: raw, words: words, size: int(m.ValueSize()) / 8, entries: m.MaxEntries()}, nil
}

func (s *shared) entry(index uint32) []uint64 { return s.words[int(index)*s.size:][:s.size] }

func (s *shared) close() error { return unix.Munmap(s.raw) }

// spare are the free indices of an array. The one that was given back first is
// taken first: a packet that is on its way while its binding ends finds a slot
// that nobody else has yet.
type spare struct {
	next, end uint32
	back      []uint32
}

var errFull = errors.New("the kernel path is full")

func (s *spare) take() (uint32, error) {
	if s.next < s.end {
		s.next++
		return s.next - 1, nil
	}
	if len(s.back) == 0 {
		return 0, errFull
	}
	index := s.back[0]
	s.back = s.back[1:]
	return index, nil
}

func (s *spare) give(index uint32) { s.back = append(s.back, index) }
