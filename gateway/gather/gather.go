// SPDX-License-Identifier: Apache-2.0

// Package gather joins what is written to a connection in quick succession.
//
// HTTP/2 answers a small call with three frames, each in a write of its own as
// soon as it is there, and many calls end at the same time: each write costs both
// ends more than what is in it.
package gather

import (
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxHeld bounds what waits to be written to a connection, in bytes; who
	// writes more waits.
	maxHeld = 64 << 10
	// large is from how many bytes on a write is worth a system call of its own.
	large = 8 << 10
	// stall bounds the write of what is held.
	stall = 30 * time.Second
	// lastWords is how long a connection that was closed may take for what was
	// written before.
	lastWords = time.Second
)

// Listener accepts connections of l whose writes are gathered once Start says so.
func Listener(l net.Listener) net.Listener {
	return &listener{l, &sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, large)} }}}
}

type listener struct {
	net.Listener
	buffers *sync.Pool // of *buffer
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, buffers: l.buffers}, nil
}

// Start gathers what is written to c from now on, if c is a connection of
// Listener, or TLS over one.
func Start(c net.Conn) {
	for {
		switch inner := c.(type) {
		case *conn:
			inner.gathers.Store(true)
			return
		case interface{ NetConn() net.Conn }:
			c = inner.NetConn()
		default:
			return
		}
	}
}

// buffer is where writes are gathered.
type buffer struct{ b []byte }

// conn is a connection whose writes may be gathered. Then Write returns before
// the bytes have left. They leave within stall, whatever deadlines are set, or the
// connection is closed, so that who reads hears of it, and later writes return why.
type conn struct {
	net.Conn
	buffers *sync.Pool
	gathers atomic.Bool

	mu       sync.Mutex // guards the fields below
	held     *buffer    // what is to be written; nil: nothing
	writing  bool       // somebody writes
	direct   bool       // it is a Write
	err      error      // why nothing can be written any more
	closed   bool
	deadline time.Time // of Write
	// moved is closed when there may be room, and when the deadline is another
	// one; nil: nobody waits for that.
	moved chan struct{}
}

// NetConn is the connection of the listener below, as of tls.Conn.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if !c.gathers.Load() {
		return c.Conn.Write(p)
	}
	for {
		c.mu.Lock()
		switch {
		case c.closed:
			c.mu.Unlock()
			return 0, net.ErrClosed
		case c.err != nil:
			err := c.err
			c.mu.Unlock()
			return 0, err
		case !c.writing && len(p) >= large:
			return c.writeLocked(p)
		case !c.writing || c.heldLocked()+len(p) <= maxHeld:
			c.gatherLocked(p)
			c.mu.Unlock()
			return len(p), nil
		}
		if c.moved == nil {
			c.moved = make(chan struct{})
		}
		moved, deadline := c.moved, c.deadline
		c.mu.Unlock()
		if err := wait(moved, deadline); err != nil {
			return 0, err
		}
	}
}

// wait returns when there is another try to be made, or when a deadline passes.
func wait(moved <-chan struct{}, deadline time.Time) error {
	var passed <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		passed = timer.C
	}
	select {
	case <-moved:
		return nil
	case <-passed:
		return os.ErrDeadlineExceeded
	}
}

// writeLocked writes p itself. It unlocks c.mu.
func (c *conn) writeLocked(p []byte) (n int, err error) {
	c.writing, c.direct = true, true
	err = c.Conn.SetWriteDeadline(c.deadline)
	c.mu.Unlock()
	if err == nil {
		n, err = c.Conn.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.direct = false
	if c.writing = c.held != nil || c.closed; c.writing { // others wrote meanwhile
		go c.write()
	}
	c.movedLocked()
	return n, err
}

func (c *conn) heldLocked() int {
	if c.held == nil {
		return 0
	}
	return len(c.held.b)
}

func (c *conn) gatherLocked(p []byte) {
	if c.held == nil {
		c.held = c.buffers.Get().(*buffer)
	}
	c.held.b = append(c.held.b, p...)
	if !c.writing {
		c.writing = true
		go c.write() // ends when nothing is held, at the latest at a deadline
	}
}

// write writes what is held until there is no more.
func (c *conn) write() {
	for {
		runtime.Gosched() // who was woken by the same thing writes now
		data := c.take()
		if data == nil {
			return
		}
		_, err := c.Conn.Write(data.b)
		c.release(data)
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// take returns what is held, nil when there is nothing: then nobody writes any
// more.
func (c *conn) take() *buffer {
	c.mu.Lock()
	defer c.mu.Unlock()
	data := c.held
	c.held = nil
	c.movedLocked()
	if data == nil {
		if c.writing = false; c.closed {
			_ = c.Conn.Close()
		}
		return nil
	}
	if !c.closed { // else Close has set it
		_ = c.Conn.SetWriteDeadline(time.Now().Add(stall))
	}
	return data
}

// release gives a buffer back, unless it has grown.
func (c *conn) release(data *buffer) {
	if cap(data.b) <= 2*large {
		data.b = data.b[:0]
		c.buffers.Put(data)
	}
}

// fail ends the connection.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err, c.held, c.writing = err, nil, false
	c.movedLocked()
	_ = c.Conn.Close()
}

// movedLocked wakes who waits.
func (c *conn) movedLocked() {
	if c.moved != nil {
		close(c.moved)
		c.moved = nil
	}
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if !c.gathers.Load() {
		return c.Conn.SetWriteDeadline(t)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limitLocked(t)
}

func (c *conn) limitLocked(t time.Time) error {
	c.deadline = t
	c.movedLocked()
	if !c.direct || c.closed {
		return nil // set before the next Write that is one
	}
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	if !c.gathers.Load() {
		return c.Conn.SetDeadline(t)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.limitLocked(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// Close implements net.Conn. What was written before is sent, if the other end
// takes it soon.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.movedLocked()
	if c.err != nil {
		return nil // fail has closed it
	}
	if !c.writing || !c.gathers.Load() {
		return c.Conn.Close()
	}
	now := time.Now()
	_ = c.Conn.SetWriteDeadline(now.Add(lastWords))
	return c.Conn.SetReadDeadline(now) // who reads hears of it at once
}
