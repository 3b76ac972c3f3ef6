// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Pump carries bytes between a stream and a connection until both directions
// have ended, and closes both. The end of one direction is passed on as such;
// an error on one side breaks the other. It returns the error, or nil.
//
// A connection that neither takes nor gives anything does not notice by itself
// that the stream broke; it then has closeWait for each step of its own end.
func Pump(s *Stream, conn net.Conn, count Counter) error {
	var up error
	var wg sync.WaitGroup
	var upDone atomic.Bool
	lastAnswer := func() {
		if upDone.Load() && isClosed(s.Failed()) {
			_ = conn.SetReadDeadline(time.Now().Add(closeWait))
		}
	}
	defer context.AfterFunc(s.Context(), func() {
		_ = conn.SetWriteDeadline(time.Now().Add(closeWait))
		lastAnswer()
	})()
	wg.Go(func() {
		if _, up = s.WriteTo(pumpWriter{conn, s.Failed(), count.up}); up == nil {
			up = closeWrite(conn)
		}
		if up != nil {
			s.Abort(CodeBroken, "the connection was lost")
			_ = conn.Close()
		}
		upDone.Store(true)
		lastAnswer()
	})
	_, down := s.ReadFrom(countedReader{conn, count.down})
	var lost *readError
	switch {
	case down == nil:
		down = s.CloseWrite()
	case errors.As(down, &lost):
		s.Abort(CodeBroken, "the connection was lost")
		_ = conn.Close()
	default:
		// The stream broke. The other direction may still have to deliver what
		// the client sent before it left; meanwhile a service gets rid of its
		// last words, but not of more than it could have on the way.
		_, _ = io.CopyN(io.Discard, conn, Window)
	}
	wg.Wait()
	_ = conn.Close()
	_ = s.Close()
	return errors.Join(up, down)
}

// Raw carries bytes between the channel of a v1 client and a connection. That
// protocol has no half-close: the end of the connection closes the channel,
// and a closed channel ends the connection, after what was read from the
// channel has been written. Raw returns when both are closed.
//
// It does not read the channel while the connection takes nothing, so a slow
// connection fills SCTP's receive buffer and stops the client. For the same
// reason it may not notice the end of the channel: ctx must end with the peer
// connection, and the connection soon after it.
func Raw(ctx context.Context, ch Channel, conn net.Conn, queue func() int, count Counter) {
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now().Add(closeWait)) })()
	var wg sync.WaitGroup
	gone := make(chan struct{}) // closed when nothing more comes from the channel
	wg.Go(func() {
		defer close(gone)
		rawUp(ch, conn, count)
	})
	rawDown(ch, conn, queue, gone, count)
	_ = ch.Close() // after what was queued
	_ = ch.SetReadDeadline(time.Now().Add(closeWait))
	_ = conn.SetWriteDeadline(time.Now().Add(closeWait))
	wg.Wait()
	_ = conn.Close()
}

// rawUp writes messages to conn until the channel ends, then gives conn some
// time to end as well.
func rawUp(ch Channel, conn net.Conn, count Counter) {
	r := newMessageReader(ch)
	for {
		message, _, err := r.next()
		if err != nil {
			break
		}
		n, err := conn.Write(message)
		count.up(n)
		if err != nil {
			_ = conn.Close()
			_ = ch.Close()
			return
		}
	}
	if closeWrite(conn) != nil {
		_ = conn.Close()
		return
	}
	// A connection closed with bytes unread would answer with a reset, and
	// that could destroy what it has not sent yet.
	_ = conn.SetReadDeadline(time.Now().Add(closeWait))
}

// rawDown sends what conn gives until its end, or until the channel is gone.
func rawDown(ch Channel, conn net.Conn, queue func() int, gone <-chan struct{}, count Counter) {
	buf := copyBuffers.Get().(*[2 * MessageSize]byte)
	defer copyBuffers.Put(buf)
	for {
		if !waitQueue(ch, queue(), gone) {
			// Ended by the deadline of rawUp. What a connection still had on its
			// way is drained; one that goes on sending is cut off.
			_, _ = io.CopyN(io.Discard, conn, Window)
			return
		}
		n, err := conn.Read(buf[:MessageSize])
		if n > 0 {
			if ch.WriteMessage(buf[:n], false) != nil {
				continue // the channel is closed, so gone is or will be
			}
			count.down(n)
		}
		if err != nil {
			return
		}
	}
}

// waitQueue waits until fewer than high bytes wait to be sent. It returns
// false if the channel is gone.
func waitQueue(ch Channel, high int, gone <-chan struct{}) bool {
	if ch.Buffered() < high {
		return !isClosed(gone)
	}
	low := ch.LowWater(high / 2)
	for ch.Buffered() > high/2 {
		select {
		case <-low:
		case <-gone:
			return false
		}
	}
	return !isClosed(gone)
}

// closeWrite ends the writing direction of conn, or all of it if it has no
// such thing.
func closeWrite(conn net.Conn) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return conn.Close()
}

// pumpWriter counts what is written. After the stream failed, each write has
// its own deadline: what the client left behind may take long, but not stop.
type pumpWriter struct {
	conn   net.Conn
	failed <-chan struct{}
	count  func(int)
}

func (w pumpWriter) Write(p []byte) (int, error) {
	if isClosed(w.failed) {
		_ = w.conn.SetWriteDeadline(time.Now().Add(closeWait))
	}
	n, err := w.conn.Write(p)
	w.count(n)
	return n, err
}

type countedReader struct {
	r     io.Reader
	count func(int)
}

func (c countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.count(n)
	return n, err
}
