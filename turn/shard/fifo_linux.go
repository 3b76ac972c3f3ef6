// SPDX-License-Identifier: Apache-2.0

package shard

// fifo is a queue of ports. Its size is bounded by the relays that are open: each
// is in it once.
type fifo struct {
	ring     []*port // a power of two
	at, size int
}

func (f *fifo) len() int { return f.size }

func (f *fifo) push(p *port) {
	if f.size == len(f.ring) {
		ring := make([]*port, max(64, 2*f.size))
		for i := range f.size {
			ring[i] = f.ring[(f.at+i)&(len(f.ring)-1)]
		}
		f.ring, f.at = ring, 0
	}
	f.ring[(f.at+f.size)&(len(f.ring)-1)] = p
	f.size++
}

func (f *fifo) pop() *port {
	p := f.ring[f.at]
	f.ring[f.at] = nil
	f.at = (f.at + 1) & (len(f.ring) - 1)
	f.size--
	return p
}
