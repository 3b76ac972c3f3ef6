// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net/netip"
	"sync"
)

// packet is a buffer with a packet from the server. It belongs to the reader of
// the link until the inbox takes it, and goes back to the pool from there.
type packet struct {
	buf  [packetSize]byte
	n    int
	from netip.AddrPort
	data []byte // in buf
}

func (p *packet) bytes() []byte { return p.buf[:p.n] }

var packets = sync.Pool{New: func() any { return new(packet) }}

// inbox is what waits for ReadBatch: a ring of at most maxWaiting packets. A
// packet that finds no room is dropped.
type inbox struct {
	ready chan struct{} // capacity 1: there may be something

	mu           sync.Mutex // guards the fields below
	ring         [maxWaiting]*packet
	first, count int
	dropped      uint64
	tooSmall     uint64 // buffers of the reader
}

// put takes the packets and leaves empty ones in their place.
func (q *inbox) put(taken []*packet) {
	q.mu.Lock()
	for i, p := range taken {
		if q.count == maxWaiting {
			q.dropped += uint64(len(taken) - i)
			break
		}
		q.ring[(q.first+q.count)%maxWaiting] = p
		q.count++
		taken[i] = packets.Get().(*packet)
	}
	q.mu.Unlock()
	q.signal()
}

func (q *inbox) signal() {
	select {
	case q.ready <- struct{}{}:
	default: // signalled already
	}
}

// get moves packets into bufs and returns how many.
func (q *inbox) get(bufs [][]byte, sizes []int, from []netip.AddrPort) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(bufs) && q.count > 0 {
		p := q.ring[q.first]
		q.ring[q.first] = nil
		q.first = (q.first + 1) % maxWaiting
		q.count--
		if len(p.data) <= len(bufs[n]) {
			sizes[n], from[n] = copy(bufs[n], p.data), p.from
			n++
		} else {
			q.tooSmall++
		}
		p.data = nil
		packets.Put(p)
	}
	if q.count > 0 {
		q.signal() // there may be another reader
	}
	return n
}

func (q *inbox) lost() (waiting, small uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped, q.tooSmall
}

// ReadBatch waits for packets from peers and copies them into bufs, their sizes
// into sizes and their senders into from, which are as long as bufs. It returns
// how many there were, at least one. A packet that is larger than its buffer is
// dropped; buffers of MaxPacket bytes hold all. After the end of the allocation
// it returns the error of Err.
func (a *Allocation) ReadBatch(bufs [][]byte, sizes []int, from []netip.AddrPort) (int, error) {
	for {
		if n := a.inbox.get(bufs, sizes[:len(bufs)], from[:len(bufs)]); n > 0 || len(bufs) == 0 {
			return n, nil
		}
		select {
		case <-a.inbox.ready:
		case <-a.done:
			return 0, a.Err()
		}
	}
}
