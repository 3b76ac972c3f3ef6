// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
)

const (
	// maxQueued are the packets that wait for one peer. It is more than SCTP has
	// on its way, and less than the memory of one channel.
	maxQueued = 1024
	// packetSize holds what DTLS sends on all paths. Larger packets are rare and
	// are not pooled.
	packetSize = 2 << 10
)

var packets = sync.Pool{New: func() any { return new([packetSize]byte) }}

// packetQueue holds packets in order, for any number of readers. It drops what
// does not fit.
type packetQueue struct {
	ended atomic.Bool

	mu    sync.Mutex // guards the fields below
	ready sync.Cond
	ring  []packet // grows up to maxQueued
	first int
	n     int
}

type packet struct {
	b    []byte
	pool *[packetSize]byte // what b is part of, or nil
	from *net.UDPAddr
}

func newPacketQueue() *packetQueue {
	q := &packetQueue{}
	q.ready.L = &q.mu
	return q
}

// put adds a copy of p. It returns false if there is no room.
func (q *packetQueue) put(p []byte, from *net.UDPAddr) bool {
	item := packet{from: from}
	if len(p) <= packetSize {
		item.pool = packets.Get().(*[packetSize]byte)
		item.b = item.pool[:copy(item.pool[:], p)]
	} else {
		item.b = append([]byte(nil), p...)
	}
	q.mu.Lock()
	if q.ended.Load() || q.n == maxQueued {
		ended := q.ended.Load()
		q.mu.Unlock()
		item.free()
		return ended // nothing is lost of a peer that is gone
	}
	if q.n == len(q.ring) {
		q.grow()
	}
	q.ring[(q.first+q.n)%len(q.ring)] = item
	q.n++
	q.mu.Unlock()
	q.ready.Signal()
	return true
}

// grow needs the caller's lock.
func (q *packetQueue) grow() {
	ring := make([]packet, min(max(2*len(q.ring), 16), maxQueued))
	for i := range q.n {
		ring[i] = q.ring[(q.first+i)%len(q.ring)]
	}
	q.ring, q.first = ring, 0
}

// get waits for a packet and copies it to b, as far as it fits. It returns
// io.EOF once the queue is closed.
func (q *packetQueue) get(b []byte) (int, *net.UDPAddr, error) {
	q.mu.Lock()
	for q.n == 0 && !q.ended.Load() {
		q.ready.Wait()
	}
	if q.ended.Load() {
		q.mu.Unlock()
		return 0, nil, io.EOF
	}
	item := q.ring[q.first]
	q.ring[q.first] = packet{}
	q.first = (q.first + 1) % len(q.ring)
	q.n--
	q.mu.Unlock()
	n := copy(b, item.b)
	item.free()
	return n, item.from, nil
}

func (q *packetQueue) isClosed() bool { return q.ended.Load() }

// close drops what waits and ends all readers.
func (q *packetQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended.Swap(true) {
		return
	}
	for i := range q.n {
		q.ring[(q.first+i)%len(q.ring)].free()
	}
	q.ring, q.n = nil, 0
	q.ready.Broadcast()
}

func (p packet) free() {
	if p.pool != nil {
		packets.Put(p.pool)
	}
}
