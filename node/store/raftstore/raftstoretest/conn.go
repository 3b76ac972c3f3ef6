// SPDX-License-Identifier: Apache-2.0

package raftstoretest

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// window is how many bytes a direction holds before its writer waits.
const window = 1 << 20

// conn is one end of a connection.
type conn struct {
	in, out *half
	from    string
	to      string
}

// pipe returns both ends of a connection.
func pipe(hub *Hub, from, to string) (near, far *conn) {
	there, back := newHalf(hub, from, to), newHalf(hub, to, from)
	return &conn{back, there, from, to}, &conn{there, back, to, from}
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) { return c.out.write(p) }

// Close implements net.Conn.
func (c *conn) Close() error {
	c.in.set(func() { c.in.abandoned = true })
	c.out.set(func() { c.out.ended = true })
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return addr(c.from) }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return addr(c.to) }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.set(func() { c.in.readBy = t })
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.set(func() { c.out.writeBy = t })
	return nil
}

type addr string

// Network implements net.Addr.
func (addr) Network() string { return "memory" }

// String implements net.Addr.
func (a addr) String() string { return string(a) }

// half is one direction of a connection.
type half struct {
	hub      *Hub
	from, to string
	lag      time.Duration

	mu              sync.Mutex // guards the fields below
	buf             []byte
	writes          []arrivalOf // of what is in buf and on its way, in order
	ended           bool        // its writer closed
	abandoned       bool        // its reader closed
	readBy, writeBy time.Time
	changed         chan struct{} // closed and replaced with each change
}

// arrivalOf is when some bytes arrive.
type arrivalOf struct {
	n  int
	at time.Time
}

func newHalf(hub *Hub, from, to string) *half {
	return &half{hub: hub, from: from, to: to, changed: make(chan struct{})}
}

func (h *half) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.setLocked(change)
}

func (h *half) setLocked(change func()) {
	change()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) read(p []byte) (int, error) {
	for {
		flows, healed := h.hub.flows(h.from, h.to)
		h.mu.Lock()
		switch {
		case h.abandoned:
			h.mu.Unlock()
			return 0, net.ErrClosed
		case past(h.readBy):
			h.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case flows && len(h.writes) > 0 && !h.writes[0].at.After(time.Now()):
			n := h.takeLocked(p)
			h.mu.Unlock()
			return n, nil
		case flows && len(h.writes) == 0 && h.ended:
			h.mu.Unlock()
			return 0, io.EOF
		}
		changed, by := h.changed, h.readBy
		if len(h.writes) > 0 && flows && (by.IsZero() || h.writes[0].at.Before(by)) {
			by = h.writes[0].at
		}
		h.mu.Unlock()
		wait(changed, healed, by)
	}
}

// takeLocked reads from the oldest write.
func (h *half) takeLocked(p []byte) int {
	n := copy(p, h.buf[:h.writes[0].n])
	h.setLocked(func() {
		h.buf = h.buf[n:]
		if h.writes[0].n -= n; h.writes[0].n == 0 {
			h.writes = h.writes[1:]
		}
	})
	return n
}

// putLocked adds a write.
func (h *half) putLocked(p []byte) {
	h.setLocked(func() {
		h.buf = append(h.buf, p...)
		h.writes = append(h.writes, arrivalOf{len(p), time.Now().Add(h.lag)})
	})
}

func (h *half) write(p []byte) (n int, err error) {
	for {
		h.mu.Lock()
		switch room := window - len(h.buf); {
		case h.ended:
			h.mu.Unlock()
			return n, net.ErrClosed
		case h.abandoned:
			h.mu.Unlock()
			return n, io.ErrClosedPipe
		case past(h.writeBy):
			h.mu.Unlock()
			return n, os.ErrDeadlineExceeded
		case len(p) <= room:
			if len(p) > 0 {
				h.putLocked(p)
			}
			h.mu.Unlock()
			return n + len(p), nil
		case room > 0:
			h.putLocked(p[:room])
			n, p = n+room, p[room:]
		}
		changed, by := h.changed, h.writeBy
		h.mu.Unlock()
		wait(changed, nil, by)
	}
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func wait(changed, healed <-chan struct{}, by time.Time) {
	var expired <-chan time.Time
	if !by.IsZero() {
		timer := time.NewTimer(time.Until(by))
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-changed:
	case <-healed:
	case <-expired:
	}
}
