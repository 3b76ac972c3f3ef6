// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// piece is how much is written under one deadline: who takes less than that in
// writeTimeout does not read.
const piece = 64 << 10

// reserve is what of a queue only answers may use: data that does not fit is
// dropped, an answer that does not fit ends the connection.
const reserve = 16 << 10

// maxUnsent is how much the kernel may hold of a connection that it has not sent
// once, where it can be told.
const maxUnsent = 128 << 10

// strangeUnsent is maxUnsent of a client without an allocation: some answers.
const strangeUnsent = 4 << 10

// room is how much all queues together may hold.
type room struct {
	most int64 // bytes, with what is for anybody: data, and many answers to one client
	own  int   // bytes of a queue that may be beyond it: answers to one client
}

// room divides Limits.QueuedTotal: a quarter is for answers alone, and each client has a share
// of it. So who asks and does not read takes no memory that answers to others need.
func (l Limits) room() room {
	answers := l.QueuedTotal / 4
	return room{most: int64(l.QueuedTotal - answers), own: answers / max(l.Connections, 1)}
}

// verdict is what became of a frame.
type verdict uint8

const (
	queued verdict = iota
	dropped
	overflowed
)

// queue holds what waits to be written to one connection. Frames are copied
// behind each other, so that a batch of them is one write, and over TLS as few
// records as can be. Its buffers and its writer are there only while there is
// something to write. It is safe for concurrent use.
type queue struct {
	conn  net.Conn
	limit int           // bytes, those that are being written included
	total *atomic.Int64 // of all queues
	room  room          // for total
	plain bool          // conn is a plain socket: nobody else's writes have deadlines

	buffers *buffers
	writer  func() // starts the writer: a goroutine that calls write
	failed  func() // is told once that the connection does not take what is written

	mu      sync.Mutex // guards the fields below
	settled bool       // the client has an allocation: a buffer of some size is worth it
	waiting []byte
	writing int // bytes in the hands of the writer
	busy    bool
	closed  bool
	drained chan struct{} // closed when the writer ends; nil: nobody waits

	armed time.Time // the write deadline; the writer's
}

// isData reports whether a frame may be lost as a datagram may: ChannelData or a
// Data indication.
func isData(frame []byte) bool {
	const dataIndication = 0x0017
	return len(frame) >= 2 && (frame[0] >= 0x40 || binary.BigEndian.Uint16(frame) == dataIndication)
}

// add queues a copy of a frame. It does not block. Without room for all, data is dropped,
// and of answers a client may have only few that wait.
func (q *queue) add(frame []byte) verdict {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return dropped
	}
	n, used := len(frame), len(q.waiting)+q.writing
	all := q.total.Add(int64(n))
	switch full := all > q.room.most; {
	case isData(frame) && (full || used+n > q.limit-reserve):
		q.total.Add(-int64(n))
		return dropped
	case used+n > q.limit, full && used+n > q.room.own:
		q.total.Add(-int64(n))
		return overflowed
	}
	if q.waiting == nil && q.settled { // else it grows with what little there is
		q.waiting = q.buffers.getQueue()
	}
	q.waiting = append(q.waiting, frame...)
	if !q.busy {
		q.busy = true
		q.writer()
	}
	return queued
}

// settle notes whether the client has an allocation.
func (q *queue) settle(holds bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.settled = holds
}

// write writes what waits until nothing does.
func (q *queue) write() {
	var batch []byte
	for {
		if batch = q.swap(batch); batch == nil {
			return
		}
		for rest := batch; len(rest) > 0; {
			n := min(len(rest), piece)
			q.arm()
			if _, err := q.conn.Write(rest[:n]); err != nil {
				q.close()
				q.failed()
				break
			}
			rest = rest[n:]
		}
	}
}

// swap gives the writer's last batch back and returns the next, nil when there
// is none; the writer has then ended.
func (q *queue) swap(last []byte) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.total.Add(-int64(q.writing))
	q.writing = 0
	if len(q.waiting) > 0 {
		batch := q.waiting
		q.waiting, q.writing = last[:0], len(batch)
		return batch
	}
	q.buffers.putQueue(last)
	q.buffers.putQueue(q.waiting)
	q.waiting, q.busy = nil, false
	if !q.plain && !q.closed { // the reader of a TLS connection writes, too
		q.armed = time.Time{}
		_ = q.conn.SetWriteDeadline(q.armed)
	}
	if q.drained != nil {
		close(q.drained)
		q.drained = nil
	}
	return nil
}

// arm gives what is written next at least half of writeTimeout, and at most all
// of it: a deadline costs more than a look at the clock.
func (q *queue) arm() {
	if now := time.Now(); q.armed.Sub(now) < writeTimeout/2 {
		q.armed = now.Add(writeTimeout)
		_ = q.conn.SetWriteDeadline(q.armed) // fails on a closed connection, as writing does
	}
}

// drain waits until all is written, or done is closed.
func (q *queue) drain(done <-chan struct{}) {
	q.mu.Lock()
	if !q.busy {
		q.mu.Unlock()
		return
	}
	if q.drained == nil {
		q.drained = make(chan struct{})
	}
	drained := q.drained
	q.mu.Unlock()
	select {
	case <-drained:
	case <-done:
	}
}

// close forgets what waits, and all that comes.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.total.Add(-int64(len(q.waiting)))
	q.waiting = q.waiting[:0]
}
