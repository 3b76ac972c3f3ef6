// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"sync"

	"github.com/meshgate/meshgate/turn/core"
)

// size is one of the sizes of chunks.
type size uint8

const (
	small  size = iota // the largest frame of a stranger
	medium             // what a client with an allocation sends in one go
	large              // the largest frame
	numSizes
)

// maxStrange is how long the frame of a client without an allocation may be: a
// request with all its attributes fits twice.
const maxStrange = 2048

func (z size) bytes() int { return [...]int{maxStrange, 16 << 10, core.MaxFrame}[z] }

// sizeFor is the smallest size that holds n bytes, at least z.
func sizeFor(n int, z size) size {
	for z < large && z.bytes() < n {
		z++
	}
	return z
}

// chunk holds bytes that came in: b[r:w] are not used yet. It belongs to one
// goroutine at a time, which puts it back.
type chunk struct {
	b    []byte
	r, w int
	size size
}

func (c *chunk) unread() []byte { return c.b[c.r:c.w] }

// buffers are chunks that nobody uses, and buffers of writers.
type buffers struct {
	chunks [numSizes]sync.Pool // of *chunk
	queues sync.Pool           // of *[]byte
}

// get returns an empty chunk.
func (p *buffers) get(z size) *chunk {
	if c, ok := p.chunks[z].Get().(*chunk); ok {
		return c
	}
	return &chunk{b: make([]byte, z.bytes()), size: z}
}

// put takes a chunk back; nil is none.
func (p *buffers) put(c *chunk) {
	if c != nil {
		c.r, c.w = 0, 0
		p.chunks[c.size].Put(c)
	}
}

// Buffers of writers begin with firstQueue bytes and grow; those beyond
// keptQueue go to the garbage collector.
const firstQueue, keptQueue = 8 << 10, 256 << 10

func (p *buffers) getQueue() []byte {
	if b, ok := p.queues.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, firstQueue)
}

func (p *buffers) putQueue(b []byte) {
	if cap(b) >= firstQueue && cap(b) <= keptQueue {
		p.queues.Put(&b)
	}
}
