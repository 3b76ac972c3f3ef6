// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"errors"
	"io"
	"net"
	"time"
)

// CloseWrite says that no more bytes follow; the other direction stays open.
func (s *Stream) CloseWrite() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.sendFin()
}

// sendFin is CloseWrite without the writer's lock: a Close may not wait for a
// Write that waits for credit.
func (s *Stream) sendFin() error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	if s.finSent || s.writeErr != nil {
		s.mu.Unlock()
		return nil
	}
	s.finSent = true
	s.writeErr = io.ErrClosedPipe
	both := s.finGot
	s.mu.Unlock()
	err := s.send(Control{Type: TypeFin})
	if both {
		s.finished()
	}
	return err
}

// finished runs after both fins: the server closes the channel, the client
// waits for that.
func (s *Stream) finished() {
	if s.cfg.Server {
		s.closeChannel()
		return
	}
	_ = s.ch.SetReadDeadline(time.Now().Add(closeWait))
}

// Close ends both directions. What was written is still delivered, followed by
// a fin; what was not read is lost.
func (s *Stream) Close() error {
	err := s.sendFin()
	s.end(net.ErrClosed, true)
	s.closeChannel()
	return err
}

// Abort ends both directions and tells the other side why.
func (s *Stream) Abort(code, message string) {
	s.mu.Lock()
	over := s.finSent && s.finGot || s.chClosed
	s.mu.Unlock()
	if !over {
		_ = s.send(Control{Type: TypeReset, Code: code, Message: message})
	}
	s.fail(&Error{Code: code, Message: message})
	s.closeChannel()
}

// fail breaks both directions; the first cause counts. What was received
// before stays readable if the other side had ended its direction properly.
func (s *Stream) fail(cause error) { s.end(cause, false) }

// end is fail, or with drop set Close, after which nothing is readable.
func (s *Stream) end(cause error, drop bool) {
	s.mu.Lock()
	if s.readErr == nil || drop {
		s.readErr = cause
	}
	if s.writeErr == nil {
		s.writeErr = cause
	}
	if !isClosed(s.failed) {
		close(s.failed)
	}
	lost := 0
	if !errors.Is(s.readErr, io.EOF) {
		lost = s.in.size
		s.in = queue{} // its blocks are not reused: a reader may still be at one
	}
	s.mu.Unlock()
	s.cancel()
	s.release(lost)
	signal(s.readable)
	signal(s.writable)
}

// closeChannel closes our direction and gives the other side some time to
// close its own.
func (s *Stream) closeChannel() {
	s.mu.Lock()
	closed := s.chClosed
	s.chClosed = true
	s.mu.Unlock()
	if !closed {
		_ = s.ch.Close()
		_ = s.ch.SetReadDeadline(time.Now().Add(closeWait))
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
