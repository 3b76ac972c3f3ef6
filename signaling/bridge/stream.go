// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// StreamConfig says how a Stream works.
type StreamConfig struct {
	// Server answers with Accept or Reject and closes the channel at the end.
	Server bool
	// Queue is how many bytes may wait in the channel's send queue at this
	// moment; nil means Window.
	Queue func() int
	// Memory is shared by the streams of one peer connection and bounds what
	// they hold together for readers; nil means no bound besides Window.
	Memory Memory
	// Local and Remote are what LocalAddr and RemoteAddr return; may be nil.
	Local, Remote net.Addr
}

// Memory is what streams may hold together for readers; a semaphore.Weighted
// is one. Acquire waits for room for n bytes, or returns the error of ctx.
type Memory interface {
	Acquire(ctx context.Context, n int64) error
	Release(n int64)
}

// Stream is one byte stream in a data channel of its own, spoken as
// "meshgate.1": binary messages are bytes, text messages are Control. It is a
// net.Conn with CloseWrite.
//
// Each direction has a window: the sender never has more than Window bytes on
// the way or unread, and the reader gives credit as it consumes. So one stream
// that is not read holds Window bytes and stops its sender, and no other.
//
// One goroutine per Stream receives; it ends when the channel does, at the
// latest some seconds after Close.
type Stream struct {
	ch  Channel
	cfg StreamConfig

	opened chan struct{}   // closed when the server answered
	failed chan struct{}   // closed when the stream is broken or closed
	done   chan struct{}   // closed when the receiving goroutine ended
	ctx    context.Context //nolint:containedctx // ends with failed; for Memory
	cancel context.CancelFunc

	readable, writable          chan struct{} // of capacity 1
	readDeadline, writeDeadline deadline
	reading, writing            sync.Mutex // held by the one that reads, and writes
	sending                     sync.Mutex // keeps bytes from following a fin

	mu        sync.Mutex // guards the fields below
	in        queue
	allowed   int64 // bytes that may have been received, ever
	received  int64
	consumed  int // not yet told to the sender
	credit    int // what may be sent
	openErr   error
	readErr   error // io.EOF after fin; what Read returns once in is empty
	writeErr  error
	finSent   bool
	finGot    bool
	chClosed  bool
	openGiven bool
}

var _ net.Conn = (*Stream)(nil)

// NewStream returns the stream in ch, which it owns from now on. The context
// ends with the peer connection at the latest: a stream that waits for Memory
// would not notice otherwise.
func NewStream(ctx context.Context, ch Channel, cfg StreamConfig) *Stream {
	if cfg.Queue == nil {
		cfg.Queue = func() int { return Window }
	}
	s := &Stream{
		ch: ch, cfg: cfg, credit: Window, allowed: Window,
		opened: make(chan struct{}), failed: make(chan struct{}), done: make(chan struct{}),
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	go s.receive()
	return s
}

// Accept tells the client that its connection stands.
func (s *Stream) Accept() error {
	return s.send(Control{Type: TypeOpen, Window: Window})
}

// Reject tells the client why there is no connection. The client closes the
// channel; if it does not within rejectWait, the stream does. Closing at once
// would lose the reason: Chromium drops what arrived in a channel that ends
// before its own side of it is open.
func (s *Stream) Reject(code, message string) {
	_ = s.send(Control{Type: TypeError, Code: code, Message: message})
	s.fail(&Error{Code: code, Message: message})
	_ = s.ch.SetReadDeadline(time.Now().Add(rejectWait))
}

// Opened waits for the server's answer: nil, or an *Error.
func (s *Stream) Opened(ctx context.Context) error {
	select {
	case <-s.opened:
	case <-s.failed:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.openErr != nil:
		return s.openErr
	case s.openGiven:
		return nil
	}
	return s.writeErr
}

// Done is closed when nothing of the stream is left.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Context ends when Failed is closed.
func (s *Stream) Context() context.Context { return s.ctx }

// Failed is closed when the stream is closed or broken, in both directions.
func (s *Stream) Failed() <-chan struct{} { return s.failed }

// Read implements net.Conn.
func (s *Stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	front, err := s.waitReadable()
	if err != nil {
		return 0, err
	}
	n := copy(p, front)
	s.consume(n)
	return n, nil
}

// WriteTo implements io.WriterTo: it writes to w until the other side's fin.
func (s *Stream) WriteTo(w io.Writer) (int64, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	var total int64
	for {
		front, err := s.waitReadable()
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(front)
		total += int64(n)
		s.consume(n)
		if err != nil {
			return total, err
		}
	}
}

// waitReadable returns bytes that stay valid until they are consumed.
func (s *Stream) waitReadable() ([]byte, error) {
	for {
		passed := s.readDeadline.wait()
		if isClosed(passed) {
			return nil, os.ErrDeadlineExceeded
		}
		s.mu.Lock()
		front, err := s.in.front(), s.readErr
		s.mu.Unlock()
		if len(front) > 0 {
			return front, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-s.readable:
		case <-passed:
		}
	}
}

// consume gives n read bytes back: to the shared memory, and to the sender as
// credit once they are enough to be worth a message.
func (s *Stream) consume(n int) {
	s.mu.Lock()
	if s.in.size < n {
		s.mu.Unlock() // the stream broke and let go of what was being read
		return
	}
	s.in.consume(n)
	s.consumed += n
	update := 0
	if s.consumed >= updateSize && !s.finGot {
		update, s.consumed = s.consumed, 0
		s.allowed += int64(update)
	}
	s.mu.Unlock()
	s.release(n)
	if update > 0 {
		_ = s.send(Control{Type: TypeWindow, Bytes: update}) // a broken channel shows in receive
	}
}

func (s *Stream) release(n int) {
	if s.cfg.Memory != nil && n > 0 {
		s.cfg.Memory.Release(int64(n))
	}
}

// Write implements net.Conn. It blocks while the other side does not read.
func (s *Stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	total := 0
	for total < len(p) {
		n, err := s.waitCredit(len(p) - total)
		if err != nil {
			return total, err
		}
		if err := s.sendBytes(p[total : total+n]); err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// ReadFrom implements io.ReaderFrom: it sends what r gives until its end. It
// reads only what may be sent at once, so nothing piles up behind a reader
// that has stopped. It does not send fin.
func (s *Stream) ReadFrom(r io.Reader) (int64, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	buf := copyBuffers.Get().(*[2 * MessageSize]byte)
	defer copyBuffers.Put(buf)
	var total int64
	for {
		limit, err := s.waitCredit(len(buf))
		if err != nil {
			return total, err
		}
		n, err := r.Read(buf[:limit])
		if n > 0 {
			if err := s.sendBytes(buf[:n]); err != nil {
				return total, err
			}
			total += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, &readError{err}
		}
	}
}

// readError marks an error as that of the reader given to ReadFrom.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// waitCredit waits until bytes may be sent and says how many, at most want.
func (s *Stream) waitCredit(want int) (int, error) {
	for {
		passed := s.writeDeadline.wait()
		if isClosed(passed) {
			return 0, os.ErrDeadlineExceeded
		}
		s.mu.Lock()
		credit, err := s.credit, s.writeErr
		s.mu.Unlock()
		if err != nil {
			return 0, err
		}
		var low <-chan struct{}
		if high := s.cfg.Queue(); s.ch.Buffered() >= high {
			low = s.ch.LowWater(high / 2)
			if s.ch.Buffered() <= high/2 {
				continue
			}
		} else if credit > 0 {
			return min(want, credit), nil
		}
		select {
		case <-s.writable:
		case <-low:
		case <-passed:
		case <-s.failed:
		}
	}
}

// sendBytes sends at most as much as waitCredit allowed.
func (s *Stream) sendBytes(p []byte) error {
	s.mu.Lock()
	s.credit -= len(p)
	s.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), MessageSize)
		if err := s.sendMessage(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (s *Stream) sendMessage(p []byte) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	err := s.writeErr
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := s.ch.WriteMessage(p, false); err != nil {
		err = fmt.Errorf("send: %w", err)
		s.fail(err)
		return err
	}
	return nil
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return s.cfg.Local }

// RemoteAddr implements net.Conn.
func (s *Stream) RemoteAddr() net.Addr { return s.cfg.Remote }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.readDeadline.set(t)
	s.writeDeadline.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.readDeadline.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.writeDeadline.set(t)
	return nil
}

func (s *Stream) send(c Control) error { return s.ch.WriteMessage(c.Encode(), true) }
