// SPDX-License-Identifier: Apache-2.0

// Package bridge carries bytes between data channels and connections, and
// owns the buffers and the back-pressure between them.
//
// Four things travel in a data channel: the in-band protocol "meshgate.1"
// with credit windows and half-close (Stream, Pump), the raw bytes of v1
// clients (Raw), datagrams (Datagrams) and WireGuard packets (Packets). None
// of them holds more than Window bytes for one connection in one direction.
package bridge

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// Window is how many bytes the sender of one direction may have on the
	// way or unread, and so what each side holds at most.
	Window = 1 << 20
	// MessageSize is the largest message that is sent with bytes of a stream.
	// Every browser takes 16 KiB without interleaving (RFC 8831 section 6.6).
	MessageSize = 16 << 10
	// updateSize is how much is consumed before the sender is told.
	updateSize = Window / 4
	// closeWait is how long the other side has to close its direction of a
	// channel after ours, and a connection to end after the channel did.
	closeWait = 10 * time.Second
	// rejectWait is how long a client has to close a channel that was refused.
	rejectWait = 2 * time.Second

	largeMessage = 66 << 10  // a v1 client's largest, with room
	maxMessage   = 256 << 10 // what descriptions announce
)

// Channel is an open data channel; rtc.Channel is one, and says more.
type Channel interface {
	// ReadMessage reads one message. One that is longer than b gives
	// io.ErrShortBuffer and stays. After the other side closed the channel it
	// returns io.EOF. One goroutine reads.
	ReadMessage(b []byte) (n int, text bool, err error)
	// WriteMessage queues one message without blocking.
	WriteMessage(b []byte, text bool) error
	// Buffered is the number of bytes written and not yet acknowledged.
	Buffered() int
	// LowWater sets a level and returns the channel that is signalled when
	// Buffered falls to it from above. One goroutine waits.
	LowWater(n int) <-chan struct{}
	// SetReadDeadline ends a blocked ReadMessage at t.
	SetReadDeadline(t time.Time) error
	// Close closes our direction once everything queued was sent.
	Close() error
}

// Counter is told of bytes as they pass. It must be safe for concurrent use.
// The zero value counts nothing.
type Counter struct {
	// Up counts bytes from the channel to the connection, Down the others.
	Up, Down func(n int)
	// Drop counts datagrams that were given up, with one of a few reasons.
	Drop func(reason string)
}

func (c Counter) up(n int) {
	if c.Up != nil && n > 0 {
		c.Up(n)
	}
}

func (c Counter) down(n int) {
	if c.Down != nil && n > 0 {
		c.Down(n)
	}
}

func (c Counter) drop(reason string) {
	if c.Drop != nil {
		c.Drop(reason)
	}
}

// messageReader reads messages of any size with a small buffer of its own.
type messageReader struct {
	ch  Channel
	buf []byte
}

func newMessageReader(ch Channel) *messageReader {
	return &messageReader{ch: ch, buf: make([]byte, MessageSize)}
}

// next returns one message, which is good until the following call.
func (r *messageReader) next() (message []byte, text bool, err error) {
	n, text, err := r.ch.ReadMessage(r.buf)
	if errors.Is(err, io.ErrShortBuffer) && len(r.buf) < largeMessage {
		r.buf = make([]byte, largeMessage)
		n, text, err = r.ch.ReadMessage(r.buf)
	}
	if !errors.Is(err, io.ErrShortBuffer) {
		return r.buf[:n], text, err
	}
	// Rare enough to be worth an allocation rather than 256 KiB for good.
	huge := make([]byte, maxMessage)
	n, text, err = r.ch.ReadMessage(huge)
	return huge[:n], text, err
}

// copyBuffers are what connections are read into.
var copyBuffers = sync.Pool{New: func() any { return new([2 * MessageSize]byte) }}
