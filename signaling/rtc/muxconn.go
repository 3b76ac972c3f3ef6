// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"time"
)

// muxConn is the share of one peer in the socket, for one address family. ICE
// reads it in one goroutine for each of the machine's addresses.
type muxConn struct {
	mux    *udpMux
	checks *checks
	queue  *packetQueue

	// The lock of the mux guards the fields below.
	addresses   []netip.AddrPort // that it owns, oldest first
	outstanding []transaction    // up to maxOutstanding, then a ring
	oldest      int              // of the ring
}

func newMuxConn(m *udpMux, c *checks) *muxConn {
	return &muxConn{mux: m, checks: c, queue: newPacketQueue()}
}

// forget needs the lock of the mux.
func (c *muxConn) forget(a netip.AddrPort) {
	if i := slices.Index(c.addresses, a); i >= 0 {
		c.addresses = slices.Delete(c.addresses, i, i+1)
	}
}

func (c *muxConn) deliver(p []byte, from *net.UDPAddr) {
	if !c.queue.put(p, from) {
		c.mux.engine.drops.overrun.Add(1)
	}
}

// ReadFrom implements net.PacketConn.
func (c *muxConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.queue.get(b)
	if err != nil {
		return 0, nil, err
	}
	return n, from, nil
}

// WriteTo implements net.PacketConn.
func (c *muxConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	if c.queue.isClosed() {
		return 0, io.ErrClosedPipe
	}
	if isCheck(p) {
		to, ok := addrPort(addr)
		if !ok {
			return 0, net.InvalidAddrError("no UDP address")
		}
		now := time.Now()
		if !c.checks.allow(path{c, to}, now) {
			return len(p), nil
		}
		c.mux.ask(c, transaction(p[8:stunHeader]), to, now)
	}
	return c.mux.socket.WriteTo(p, addr)
}

// Close implements net.PacketConn.
func (c *muxConn) Close() error {
	c.queue.close()
	c.mux.mu.Lock()
	defer c.mux.mu.Unlock()
	c.mux.free(c)
	return nil
}

// LocalAddr implements net.PacketConn.
func (c *muxConn) LocalAddr() net.Addr { return c.mux.socket.LocalAddr() }

// SetDeadline implements net.PacketConn. ICE sets deadlines only before Close,
// which ends a blocked ReadFrom.
func (c *muxConn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.PacketConn; see SetDeadline.
func (c *muxConn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.PacketConn; see SetDeadline.
func (c *muxConn) SetWriteDeadline(time.Time) error { return nil }
