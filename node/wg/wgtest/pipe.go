// SPDX-License-Identifier: Apache-2.0

package wgtest

import (
	"io"
	"net"
	"sync"

	"github.com/meshgate/meshgate/node/wg"
)

// pipeQueue is how many datagrams a direction of a pipe holds.
const pipeQueue = 64

// pipeEnd is one end of a pipe.
type pipeEnd struct {
	in, out chan []byte
	// done is closed with either end; once guards it.
	done chan struct{}
	once *sync.Once
}

// Pipe makes two packet connections that are the ends of one. WritePacket
// waits when the other end does not read. Closing one end closes both.
func Pipe() (a, b wg.PacketConn) {
	x, y := make(chan []byte, pipeQueue), make(chan []byte, pipeQueue)
	done, once := make(chan struct{}), new(sync.Once)
	return &pipeEnd{in: x, out: y, done: done, once: once}, &pipeEnd{in: y, out: x, done: done, once: once}
}

// ReadPacket implements wg.PacketConn.
func (p *pipeEnd) ReadPacket(buf []byte) (int, error) {
	select {
	case <-p.done:
		return 0, io.EOF
	case b := <-p.in:
		if len(b) > len(buf) {
			return 0, io.ErrShortBuffer
		}
		return copy(buf, b), nil
	}
}

// WritePacket implements wg.PacketConn.
func (p *pipeEnd) WritePacket(buf []byte) error {
	select {
	case <-p.done: // also when there is room
		return net.ErrClosed
	default:
	}
	select {
	case <-p.done:
		return net.ErrClosed
	case p.out <- append([]byte(nil), buf...):
		return nil
	}
}

// Close implements wg.PacketConn.
func (p *pipeEnd) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}
