// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// acceptBacklog bounds connections that nobody has accepted yet.
	acceptBacklog = 1024
	// A TCP peer that went away without a word is noticed within
	// keepaliveIdle + keepaliveCount*keepaliveInterval, a minute and a half.
	keepaliveIdle     = 30 * time.Second
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 4
)

// fullAddress converts an address for the stack's only network card.
func fullAddress(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	full := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
	if a.Addr().Is4() {
		return full, ipv4.ProtocolNumber
	}
	return full, ipv6.ProtocolNumber
}

// netError turns an error of the stack into the one that the host's sockets
// would give.
func netError(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNRESET
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	case *tcpip.ErrBadLocalAddress:
		return syscall.EADDRNOTAVAIL
	}
	return errors.New(err.String())
}

// keepAlive makes the stack probe idle connections of ep.
func keepAlive(ep tcpip.Endpoint) error {
	ep.SocketOptions().SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	for _, err := range []tcpip.Error{
		ep.SetSockOpt(&idle), ep.SetSockOpt(&interval), ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount),
	} {
		if err != nil {
			return fmt.Errorf("set keepalive: %w", netError(err))
		}
	}
	return nil
}

// dialTCP connects to dst.
func (n *netstack) dialTCP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	remote, protocol := fullAddress(dst)
	wq := new(waiter.Queue)
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, protocol, wq)
	if terr != nil {
		return nil, netError(terr)
	}
	if err := keepAlive(ep); err != nil {
		ep.Close()
		return nil, err
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Connect(remote)
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Close()
			return nil, ctx.Err()
		case <-n.closed:
			ep.Close()
			return nil, net.ErrClosed
		case <-ready:
		}
		terr = ep.LastError()
	}
	if terr != nil {
		ep.Close()
		return nil, netError(terr)
	}
	return &tcpConn{TCPConn: gonet.NewTCPConn(wq, ep)}, nil
}

// listen implements plane.
func (n *netstack) listen(_ context.Context, local netip.AddrPort) (net.Listener, error) {
	addr, protocol := fullAddress(local)
	wq := new(waiter.Queue)
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, protocol, wq)
	if terr != nil {
		return nil, netError(terr)
	}
	err := keepAlive(ep)
	if err == nil {
		err = netError(ep.Bind(addr))
	}
	if err == nil {
		err = netError(ep.Listen(acceptBacklog))
	}
	if err != nil {
		ep.Close()
		return nil, err
	}
	return &tcpListener{TCPListener: gonet.NewTCPListener(n.stack, wq, ep), ep: ep, wq: wq, done: make(chan struct{})}, nil
}

// openUDP opens a socket that is bound to local, connected to remote, or both;
// an invalid address means not.
func (n *netstack) openUDP(local, remote netip.AddrPort) (*udpConn, error) {
	family := local
	if remote.IsValid() {
		family = remote
	}
	_, protocol := fullAddress(family)
	wq := new(waiter.Queue)
	ep, terr := n.stack.NewEndpoint(udp.ProtocolNumber, protocol, wq)
	if terr != nil {
		return nil, netError(terr)
	}
	if local.IsValid() {
		addr, _ := fullAddress(local)
		terr = ep.Bind(addr)
	}
	if remote.IsValid() && terr == nil {
		addr, _ := fullAddress(remote)
		terr = ep.Connect(addr)
	}
	if terr != nil {
		ep.Close()
		return nil, netError(terr)
	}
	return &udpConn{UDPConn: gonet.NewUDPConn(wq, ep)}, nil
}

// closer remembers that a socket was closed, so that its errors can say so.
type closer struct{ closed atomic.Bool }

// cause gives errors of the stack's sockets the meaning that those of the
// host's have: net.ErrClosed and os.ErrDeadlineExceeded.
func (c *closer) cause(op, network string, err error) error {
	if err == nil {
		return nil
	}
	if c.closed.Load() {
		return &net.OpError{Op: op, Net: network, Err: net.ErrClosed}
	}
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return &net.OpError{Op: op, Net: network, Err: os.ErrDeadlineExceeded}
	}
	return err
}

// tcpConn is a TCP connection with CloseRead and CloseWrite.
type tcpConn struct {
	*gonet.TCPConn
	closer
}

// Read implements net.Conn.
func (c *tcpConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.cause("read", "tcp", err)
}

// Write implements net.Conn.
func (c *tcpConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, c.cause("write", "tcp", err)
}

// Close implements net.Conn.
func (c *tcpConn) Close() error {
	c.closed.Store(true)
	return c.TCPConn.Close()
}

// tcpListener accepts TCP connections. It does what gonet's does itself, since
// connections do not inherit the keepalive of the socket that they came in at.
type tcpListener struct {
	*gonet.TCPListener
	closer
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	done chan struct{} // closed by Close
}

// Accept implements net.Listener.
func (l *tcpListener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		ep, wq, terr := l.ep.Accept(nil)
		switch terr.(type) {
		case nil:
			if err := keepAlive(ep); err != nil {
				ep.Close() // it ended meanwhile
				continue
			}
			return &tcpConn{TCPConn: gonet.NewTCPConn(wq, ep)}, nil
		case *tcpip.ErrWouldBlock:
		default:
			return nil, l.cause("accept", "tcp", &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: netError(terr)})
		}
		select {
		case <-l.done:
			return nil, l.cause("accept", "tcp", net.ErrClosed)
		case <-ready:
		}
	}
}

// Close implements net.Listener.
func (l *tcpListener) Close() error {
	if !l.closed.Swap(true) {
		close(l.done)
	}
	l.Shutdown()
	return l.TCPListener.Close()
}

// udpConn is a UDP socket, connected or not.
type udpConn struct {
	*gonet.UDPConn
	closer
}

// Read implements net.Conn.
func (c *udpConn) Read(b []byte) (int, error) {
	n, err := c.UDPConn.Read(b)
	return n, c.cause("read", "udp", err)
}

// ReadFrom implements net.PacketConn.
func (c *udpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(b)
	return n, from, c.cause("read", "udp", err)
}

// Write implements net.Conn.
func (c *udpConn) Write(b []byte) (int, error) {
	n, err := c.UDPConn.Write(b)
	return n, c.cause("write", "udp", err)
}

// WriteTo implements net.PacketConn. The address is a *net.UDPAddr.
func (c *udpConn) WriteTo(b []byte, to net.Addr) (int, error) {
	ua, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: syscall.EINVAL}
	}
	if v4 := ua.IP.To4(); v4 != nil && len(ua.IP) != len(v4) {
		ua = &net.UDPAddr{IP: v4, Port: ua.Port}
	}
	n, err := c.UDPConn.WriteTo(b, ua)
	return n, c.cause("write", "udp", err)
}

// Close implements net.Conn.
func (c *udpConn) Close() error {
	c.closed.Store(true)
	return c.UDPConn.Close()
}
