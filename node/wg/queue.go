// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// packet is an IP packet on its way to WireGuard: one of ours (pkt, possibly
// a TCP super-segment) or a forwarded one (frame).
type packet struct {
	pkt   *stack.PacketBuffer
	frame *frame
}

// packetQueue is a bounded first-in first-out queue of packets, for many
// writers and one reader.
type packetQueue struct {
	mu       sync.Mutex // guards the fields below
	notEmpty sync.Cond
	notFull  sync.Cond
	ring     []packet
	head     int
	count    int
	closed   bool
}

// newPacketQueue makes a queue for size packets.
func newPacketQueue(size int) *packetQueue {
	q := &packetQueue{ring: make([]packet, size)}
	q.notEmpty.L, q.notFull.L = &q.mu, &q.mu
	return q
}

// push appends p. When the queue is full it waits for room if wait is set,
// else it gives up. It reports whether the queue took p; if not, p stays with
// the caller.
func (q *packetQueue) push(p packet, wait bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.count == len(q.ring) && wait && !q.closed {
		q.notFull.Wait()
	}
	if q.closed || q.count == len(q.ring) {
		return false
	}
	q.ring[(q.head+q.count)%len(q.ring)] = p
	q.count++
	if q.count == 1 {
		q.notEmpty.Signal()
	}
	return true
}

// pop moves packets into dst and returns how many. With wait set it waits for
// the first one; then 0 means that the queue is closed.
func (q *packetQueue) pop(dst []packet, wait bool) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.count == 0 && wait && !q.closed {
		q.notEmpty.Wait()
	}
	if q.closed {
		return 0
	}
	n := min(q.count, len(dst))
	for i := range n {
		slot := &q.ring[(q.head+i)%len(q.ring)]
		dst[i], *slot = *slot, packet{}
	}
	q.head = (q.head + n) % len(q.ring)
	q.count -= n
	if n > 0 {
		q.notFull.Broadcast()
	}
	return n
}

// close wakes everybody up for good and returns what was still queued.
func (q *packetQueue) close() []packet {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	rest := make([]packet, 0, q.count)
	for i := range q.count {
		rest = append(rest, q.ring[(q.head+i)%len(q.ring)])
	}
	q.count = 0
	clear(q.ring)
	q.notEmpty.Broadcast()
	q.notFull.Broadcast()
	return rest
}
