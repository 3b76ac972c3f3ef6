// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/store"
)

const (
	// maxGreeting bounds a hello and a welcome, in bytes.
	maxGreeting = 4 << 10
	// maxFrame bounds a request and a response, in bytes: the largest batch,
	// and what protobuf adds to the most operations and conditions.
	maxFrame = store.MaxBatch + 64*store.MaxOps
	// maxQueued is how many bytes may wait to be written to a stream before who
	// has more waits as well.
	maxQueued = 256 << 10
	// keptBuffer is the largest buffer that a stream keeps for what comes next,
	// in bytes.
	keptBuffer = 32 << 10
)

// writeFrame writes a message with its length before it, in one Write.
func writeFrame(w io.Writer, m proto.Message, limit int) error {
	data, err := appendFrame(nil, m, limit)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// appendFrame appends to buf what writeFrame writes; after an error buf is as
// it was.
func appendFrame(buf []byte, m proto.Message, limit int) ([]byte, error) {
	n := proto.Size(m)
	if n > limit {
		return buf, fmt.Errorf("message of %d bytes, the most is %d", n, limit)
	}
	framed, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(binary.BigEndian.AppendUint32(buf, uint32(n)), m)
	if err != nil {
		return buf, err
	}
	return framed, nil
}

// readFrame reads a message that writeFrame wrote and returns its length. The
// memory that it takes grows with what arrives, not with what was announced.
func readFrame(r io.Reader, m proto.Message, limit int) (int, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > int64(limit) {
		return 0, fmt.Errorf("message of %d bytes, the most is %d", n, limit)
	}
	if b, ok := r.(*bufio.Reader); ok && n <= int64(b.Size()) {
		data, err := b.Peek(int(n)) // a message shares no memory with what it was read from
		if err != nil {
			return 0, err
		}
		if err := proto.Unmarshal(data, m); err != nil {
			return 0, err
		}
		return b.Discard(int(n))
	}
	data, err := io.ReadAll(io.LimitReader(r, n))
	if err != nil {
		return 0, err
	}
	if int64(len(data)) < n {
		return 0, io.ErrUnexpectedEOF
	}
	return len(data), proto.Unmarshal(data, m)
}

// errNotQueued says that a stream ended, or a wait for room, before a message
// was queued.
var errNotQueued = errors.New("the stream takes no more messages")

// newFrameReader returns a reader for readFrame that takes what has arrived in
// one Read.
func newFrameReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, keptBuffer) }

// frameWriter writes messages to a stream: those that come while others are
// written, or ready to be, go out together. newFrameWriter makes one.
type frameWriter struct {
	conn  net.Conn
	limit int           // of a message, in bytes
	done  chan struct{} // closed when run has ended
	more  chan struct{} // holds a token while there is something to write

	mu     sync.Mutex // guards the fields below
	queued []byte
	// room is closed and replaced when what was queued is taken.
	room chan struct{}
}

func newFrameWriter(conn net.Conn, limit int) *frameWriter {
	return &frameWriter{conn: conn, limit: limit, done: make(chan struct{}), more: make(chan struct{}, 1), room: make(chan struct{})}
}

// put queues a message. It waits while there is too much to write, until stop is
// closed. After an error nothing of the message is written; unless the error is
// errNotQueued it never can be.
func (w *frameWriter) put(stop <-chan struct{}, m proto.Message) error {
	for {
		full, err := w.queue(m)
		if full == nil {
			return err
		}
		select {
		case <-full:
		case <-stop:
			return errNotQueued
		case <-w.done:
			return errNotQueued
		}
	}
}

// queue queues a message, or returns a channel that is closed when there may be
// room for it.
func (w *frameWriter) queue(m proto.Message) (full <-chan struct{}, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.done:
		return nil, errNotQueued
	default:
	}
	if len(w.queued) >= maxQueued {
		return w.room, nil
	}
	if w.queued, err = appendFrame(w.queued, m, w.limit); err != nil {
		return nil, err
	}
	select {
	case w.more <- struct{}{}:
	default:
	}
	return nil, nil
}

// take returns what is queued; buf is for what comes next.
func (w *frameWriter) take(buf []byte) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	data := w.queued
	w.queued = buf[:0]
	w.room = renew(w.room)
	return data
}

// run writes until stop is closed, or something cannot be written within
// callWrite: all that is queued at a time, in one Write. It is called once.
func (w *frameWriter) run(stop <-chan struct{}) error {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		close(w.done)
	}()
	var buf []byte
	for {
		select {
		case <-w.more:
		case <-stop:
			return nil
		}
		runtime.Gosched() // others that were woken by the same thing have messages, too
		data := w.take(buf)
		if err := w.conn.SetWriteDeadline(time.Now().Add(callWrite)); err != nil {
			return err
		}
		if _, err := w.conn.Write(data); err != nil {
			return err
		}
		if buf = data; cap(buf) > keptBuffer {
			buf = nil
		}
	}
}
