// SPDX-License-Identifier: Apache-2.0

package wg

import "sync"

// frame is a pooled buffer with one datagram or packet in it. Whoever takes
// a frame out of a queue puts it back into its pool.
type frame struct{ data []byte }

// framePool hands out frames of one size.
type framePool struct {
	pool sync.Pool
	size int
}

// newFramePool makes a pool of frames that hold size bytes.
func newFramePool(size int) *framePool {
	p := &framePool{size: size}
	p.pool.New = func() any { return &frame{data: make([]byte, size)} }
	return p
}

// get returns a frame of n bytes with undefined content.
func (p *framePool) get(n int) *frame {
	if n > p.size {
		return &frame{data: make([]byte, n)}
	}
	f := p.pool.Get().(*frame)
	f.data = f.data[:n]
	return f
}

// copyOf returns a frame with a copy of b.
func (p *framePool) copyOf(b []byte) *frame {
	f := p.get(len(b))
	copy(f.data, b)
	return f
}

// put takes a frame back.
func (p *framePool) put(f *frame) {
	if cap(f.data) == p.size {
		p.pool.Put(f)
	}
}
