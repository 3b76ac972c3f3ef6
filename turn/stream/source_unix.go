// SPDX-License-Identifier: Apache-2.0

//go:build unix

package stream

import (
	"errors"
	"io"
	"syscall"
)

// plainSockets says that try works.
const plainSockets = true

// try reads once from a socket that is ready, or says that it is not.
func (s *source) try(fd uintptr) bool {
	c := s.buffers.get(s.size)
	for {
		n, err := syscall.Read(int(fd), c.b)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case n > 0:
			c.w, s.got, s.err = n, c, nil
			return true
		case err == nil:
			s.err = io.EOF
		default:
			s.err = err
		}
		s.buffers.put(c)
		return !errors.Is(err, syscall.EAGAIN)
	}
}
