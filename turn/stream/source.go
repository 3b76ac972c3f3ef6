// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"net"
	"syscall"
)

// minFrame is the length of the smallest frame, ChannelData without data.
const minFrame = 4

// source reads from a connection and holds no buffer while there is nothing to
// read. It belongs to one goroutine.
type source struct {
	conn    net.Conn
	buffers *buffers
	raw     syscall.RawConn // of a plain socket; nil for other connections

	// Of the attempt to read that waits.
	size    size
	attempt func(fd uintptr) bool
	got     *chunk
	err     error

	first [minFrame]byte // what wakes the reader of another connection
}

func newSource(conn net.Conn, b *buffers) *source {
	s := &source{conn: conn, buffers: b}
	if c, ok := conn.(syscall.Conn); ok && plainSockets {
		if raw, err := c.SyscallConn(); err == nil {
			s.raw, s.attempt = raw, s.try
		}
	}
	return s
}

// next waits for bytes and returns them in a chunk, which is the caller's. The
// size is a wish: bytes of a connection that is no plain socket come a few first.
func (s *source) next(z size) (*chunk, error) {
	if s.raw != nil {
		s.size, s.got, s.err = z, nil, nil
		if err := s.raw.Read(s.attempt); err != nil {
			return nil, err
		}
		return s.got, s.err
	}
	n, err := s.conn.Read(s.first[:])
	if n == 0 {
		return nil, err
	}
	c := s.buffers.get(z)
	c.w = copy(c.b, s.first[:n])
	return c, nil
}

// more waits for bytes behind those of c, which must have room.
func (s *source) more(c *chunk) error {
	n, err := s.conn.Read(c.b[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// fill is next for who copies: over TLS it holds its chunk while it waits, and
// reads whole records.
func (s *source) fill(z size) (*chunk, error) {
	if s.raw != nil {
		return s.next(z)
	}
	c := s.buffers.get(z)
	if err := s.more(c); err != nil {
		s.buffers.put(c)
		return nil, err
	}
	return c, nil
}
