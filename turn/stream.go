// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"
)

// Patience with stream connections. A client that works sends its first
// request at once and whole; nobody may hold a connection by dripping bytes.
const (
	helloTimeout = 10 * time.Second // without an allocation: to get one, or another one
	frameTimeout = 10 * time.Second // from the first byte of a frame to its last
	writeTimeout = 10 * time.Second // for a client that does not read
)

var errNoFrame = errors.New("stream holds neither STUN nor channel data")

// settler is a connection that is told whether its client holds an allocation.
type settler interface{ Settled(holds bool) }

// stream cuts a TCP or TLS connection into frames (RFC 8656 section 3.1,
// section 12.5) and presents them as packets. Its memory is one buffer; a
// connection that breaks the framing or stalls ends, and only that one.
type stream struct {
	net.Conn
	r        *bufio.Reader
	settled  func() bool   // whether the client holds an allocation
	told     bool          // what the connection was told of that
	idle     time.Duration // how long a settled client may be silent
	since    time.Time     // when the client was last known to be settled, or connected
	oversize func()        // counts a frame that is skipped
}

func newStream(c net.Conn, idle time.Duration, settled func() bool, oversize func()) *stream {
	return &stream{
		Conn: c, r: bufio.NewReaderSize(c, maxPacket), settled: settled, idle: idle, since: time.Now(), oversize: oversize,
	}
}

// ReadFrom returns the next frame that fits p. Every error is final.
func (s *stream) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, err := s.next()
		if err != nil {
			return 0, nil, err
		}
		if n > len(p) {
			s.oversize()
			if _, err := s.r.Discard(n); err != nil {
				return 0, nil, err
			}
			continue
		}
		_, err = io.ReadFull(s.r, p[:n])
		return n, s.RemoteAddr(), err
	}
}

// next waits for a frame and returns its length, padding included. On return
// the deadline for the rest of the frame is set.
func (s *stream) next() (int, error) {
	now := time.Now()
	deadline := s.since.Add(helloTimeout)
	settled := s.settled()
	if c, ok := s.Conn.(settler); ok && settled != s.told {
		s.told = settled
		c.Settled(settled)
	}
	if settled {
		s.since = now
		deadline = now.Add(s.idle)
	}
	_ = s.SetReadDeadline(deadline) // fails on a closed connection, as reading does once the buffer is empty
	if _, err := s.r.Peek(1); err != nil {
		return 0, err
	}
	_ = s.SetReadDeadline(time.Now().Add(frameTimeout))
	head, err := s.r.Peek(4)
	if err != nil {
		return 0, err
	}
	first, n := binary.BigEndian.Uint16(head), int(binary.BigEndian.Uint16(head[2:]))
	switch {
	case settled && minChannel <= first && first <= maxChannel: // to a stranger "GE" of GET is no channel
		return 4 + padded(n), nil
	case head[0]>>6 != 0:
		return 0, errNoFrame
	}
	if head, err = s.r.Peek(8); err != nil {
		return 0, err
	}
	if binary.BigEndian.Uint32(head[4:]) != cookie {
		return 0, errNoFrame
	}
	return headerLen + n, nil
}

// WriteTo sends p to the client, whatever the address says. Half a frame would
// break the stream, so a write that does not end in time ends the connection.
func (s *stream) WriteTo(p []byte, _ net.Addr) (int, error) {
	if err := s.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := s.Write(p)
	if err != nil {
		s.Close()
	}
	return n, err
}
