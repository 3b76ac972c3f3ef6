// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Pump carries bytes between a stream and a connection until both directions
// have ended, and closes both. The end of one direction is passed on as such;
// an error on one side breaks the other. It returns the error, or nil.
func Pump(s *Stream, conn net.Conn, count Counter) error {
	var up error
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, up = s.WriteTo(countedWriter{conn, count.up}); up == nil {
			up = closeWrite(conn)
		}
		if up != nil {
			s.Abort(CodeBroken, "the connection was lost")
			_ = conn.Close()
		}
	})
	_, down := s.ReadFrom(countedReader{conn, count.down})
	if down == nil {
		down = s.CloseWrite()
	} else {
		s.Abort(CodeBroken, "the connection was lost")
		_ = conn.Close()
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
// connection fills SCTP's receive buffer and stops the client.
func Raw(ch Channel, conn net.Conn, queue func() int, count Counter) {
	var wg sync.WaitGroup
	gone := make(chan struct{}) // closed when nothing more comes from the channel
	wg.Go(func() {
		defer close(gone)
		rawUp(ch, conn, count)
	})
	rawDown(ch, conn, queue, gone, count)
	_ = ch.Close() // after what was queued
	_ = ch.SetReadDeadline(time.Now().Add(closeWait))
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

type countedWriter struct {
	w     io.Writer
	count func(int)
}

func (c countedWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.count(n)
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
