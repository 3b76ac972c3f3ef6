// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// sendQueue bounds what waits for a slow stream, in bytes; messages of the
	// protocol may use controlRoom more.
	sendQueue   = 128 << 10
	controlRoom = 16 << 10
	// writeTimeout ends an allocation whose server takes nothing any more.
	writeTimeout = 20 * time.Second
	streamBuffer = 16 << 10
)

var errFraming = fmt.Errorf("the stream holds neither STUN nor channel data: %w", ErrProtocol)

// stream is a link over TCP or TLS. What is to be sent gathers while the
// connection is busy and leaves in one write.
type stream struct {
	net.Conn
	ready chan struct{} // capacity 1: there may be something to send
	done  chan struct{}

	mu      sync.Mutex // guards the fields below
	pending []byte
	spare   []byte // the other buffer, while it is not being written
	dropped uint64
	closed  bool
}

func newStream(conn net.Conn) *stream {
	return &stream{Conn: conn, ready: make(chan struct{}, 1), done: make(chan struct{})}
}

func (s *stream) control(m message) {
	s.mu.Lock()
	if len(s.pending)+len(m) <= sendQueue+controlRoom {
		s.pending = append(s.pending, m...)
	} else {
		s.dropped++
	}
	s.mu.Unlock()
	s.signal()
}

func (s *stream) send(b *burst) error {
	s.mu.Lock()
	for i := range b.frames[:b.n] {
		f := &b.frames[i]
		if len(s.pending)+f.headLen+len(f.data)+3 > sendQueue {
			s.dropped += uint64(b.n - i)
			break
		}
		s.pending = append(s.pending, f.head[:f.headLen]...)
		s.pending = append(s.pending, f.data...)
		s.pending = pad(s.pending, len(f.data))
	}
	s.mu.Unlock()
	s.signal()
	return nil
}

// pad appends the zeros that streams have after n bytes (RFC 8656 section 12.5).
func pad(b []byte, n int) []byte {
	return append(b, make([]byte, padded(n)-n)...)
}

func (s *stream) signal() {
	select {
	case s.ready <- struct{}{}:
	default: // signalled already
	}
}

// run writes what gathers, until the link is closed or broken.
func (s *stream) run() error {
	for {
		select {
		case <-s.done:
			return nil
		case <-s.ready:
		}
		s.mu.Lock()
		b := s.pending
		s.pending, s.spare = s.spare[:0], nil
		s.mu.Unlock()
		if len(b) == 0 {
			s.reuse(b)
			continue
		}
		if err := s.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return s.broken(err)
		}
		if _, err := s.Write(b); err != nil {
			return s.broken(err)
		}
		s.reuse(b)
	}
}

func (s *stream) reuse(b []byte) {
	s.mu.Lock()
	s.spare = b[:0]
	s.mu.Unlock()
}

// receive cuts the stream into frames. A frame that is no packet of an
// allocation but well-formed is skipped; without framing nothing is left to trust.
func (s *stream) receive(a *Allocation) {
	r := bufio.NewReaderSize(s.Conn, streamBuffer)
	frames := []*packet{packets.Get().(*packet)}
	defer func() { packets.Put(frames[0]) }()
	for {
		err := readFrame(r, frames[0])
		switch {
		case err == nil:
			a.take(frames)
		case errors.Is(err, errOversize):
			a.oversize.Add(1)
		default:
			a.fail(s.broken(err))
			return
		}
	}
}

// errOversize says that a frame was skipped.
var errOversize = errors.New("frame is larger than a packet")

// readFrame reads the next frame of r into p, without the padding of
// ChannelData. A frame that p cannot hold is skipped: errOversize.
func readFrame(r *bufio.Reader, p *packet) error {
	head, err := r.Peek(channelHead)
	if err != nil {
		return err
	}
	kind, n := binary.BigEndian.Uint16(head), int(binary.BigEndian.Uint16(head[2:]))
	padding := 0
	switch {
	case minChannel <= kind && kind <= maxChannel: // which the "HT" of HTTP is not
		n += channelHead
		padding = padded(n) - n
	case head[0]>>6 == 0 && n%4 == 0:
		if head, err = r.Peek(8); err != nil {
			return err
		}
		if binary.BigEndian.Uint32(head[4:]) != cookie {
			return errFraming
		}
		n += headerLen
	default:
		return errFraming
	}
	if n > packetSize {
		if _, err := r.Discard(n + padding); err != nil {
			return err
		}
		return errOversize
	}
	if _, err := io.ReadFull(r, p.buf[:n]); err != nil {
		return err
	}
	p.n = n
	_, err = r.Discard(padding)
	return err
}

// broken says what err means for the allocation.
func (s *stream) broken(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return net.ErrClosed
	case errors.Is(err, errFraming):
		return err
	default:
		return fmt.Errorf("%w (%w)", ErrBroken, err)
	}
}

func (s *stream) lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

func (s *stream) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	close(s.done)
	conn := s.Conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn() // a connection that takes nothing would hold up TLS's own goodbye
	}
	_ = conn.Close() // nothing is to be flushed
}
