// SPDX-License-Identifier: Apache-2.0

package bridge

import "sync"

// blockSize is the unit in which a queue holds bytes. A queue of small
// messages fills its blocks, so that it never takes much more memory than it
// has bytes.
const blockSize = 2 * MessageSize

var blocks = sync.Pool{New: func() any { return new([blockSize]byte) }}

// queue holds received bytes in order. Its methods need the caller's lock,
// but the slice that space returned may be written, and the one that front
// returned may be read, without it.
type queue struct {
	list [][]byte // each of cap blockSize or, for one large message, of its own size
	off  int      // what of list[0] is consumed
	size int      // bytes to be read
}

// space returns room for the next message at the end of the queue.
func (q *queue) space() []byte {
	if n := len(q.list); n > 0 {
		if tail := q.list[n-1]; cap(tail)-len(tail) >= MessageSize {
			return tail[len(tail):cap(tail)]
		}
	}
	q.list = append(q.list, blocks.Get().(*[blockSize]byte)[:0])
	return q.list[len(q.list)-1][:blockSize]
}

// commit adds the n bytes that were written to the last space.
func (q *queue) commit(n int) {
	i := len(q.list) - 1
	q.list[i] = q.list[i][:len(q.list[i])+n]
	q.size += n
}

// add appends a message that did not fit into a space.
func (q *queue) add(p []byte) {
	q.list = append(q.list, p[:len(p):len(p)])
	q.size += len(p)
}

// front is the longest run of bytes that can be read in one piece.
func (q *queue) front() []byte {
	q.trim()
	if len(q.list) == 0 {
		return nil
	}
	return q.list[0][q.off:]
}

// consume drops n bytes of front.
func (q *queue) consume(n int) {
	q.off += n
	q.size -= n
	q.trim()
}

// trim gives back blocks that were read to their end. The last one stays: its
// space may be in use.
func (q *queue) trim() {
	for len(q.list) > 1 && q.off == len(q.list[0]) {
		free(q.list[0])
		q.list[0] = nil
		q.list, q.off = q.list[1:], 0
	}
}

func free(b []byte) {
	if cap(b) == blockSize {
		blocks.Put((*[blockSize]byte)(b[:blockSize]))
	}
}
