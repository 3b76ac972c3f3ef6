// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// leanBatch is how many packets of its network a lean device takes at a time.
	leanBatch = 4
	// leanShare is what part of their usual length queues of it have.
	leanShare = 8
	// leanTries bounds the search for a port that both IP versions have free.
	leanTries = 100
)

// lean is a UDP bind for one of many devices. The library keeps a buffer of 64
// KiB for each datagram that a bind may receive at a time, 128 for the usual one,
// and hence one of this.
type lean struct {
	// control is called for each new socket, of IPv6 or not.
	control func(fd int, six bool)
	// sockets are nil while it is closed.
	sockets atomic.Pointer[leanSockets]
}

// leanSockets are those of one port; nil for an IP version that the host does
// not have.
type leanSockets struct{ four, six *net.UDPConn }

var _ conn.Bind = (*lean)(nil)

// Open implements conn.Bind.
func (l *lean) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if l.sockets.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	s, actual, err := l.listen(port)
	for tries := 0; port == 0 && tries < leanTries && errors.Is(err, syscall.EADDRINUSE); tries++ {
		s, actual, err = l.listen(port)
	}
	if err != nil {
		return nil, 0, err
	}
	var fns []conn.ReceiveFunc
	for _, c := range []*net.UDPConn{s.four, s.six} {
		if c != nil {
			fns = append(fns, receiveOne(c))
		}
	}
	l.sockets.Store(s)
	return fns, actual, nil
}

// listen opens the sockets at a port; 0 means any.
func (l *lean) listen(port uint16) (_ *leanSockets, actual uint16, err error) {
	s := new(leanSockets)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, family := range []struct {
		network string
		into    **net.UDPConn
	}{{"udp4", &s.four}, {"udp6", &s.six}} {
		cfg := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { l.control(int(fd), network == "udp6") })
		}}
		// It ends at once.
		c, err := cfg.ListenPacket(context.Background(), family.network, net.JoinHostPort("", strconv.Itoa(int(port))))
		if errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		*family.into = c.(*net.UDPConn)
		port = (*family.into).LocalAddr().(*net.UDPAddr).AddrPort().Port()
	}
	if s.four == nil && s.six == nil {
		return nil, 0, syscall.EAFNOSUPPORT
	}
	return s, port, nil
}

func (s *leanSockets) close() error {
	var errs []error
	for _, c := range []*net.UDPConn{s.four, s.six} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// receiveOne returns the receive function of a socket.
func receiveOne(c *net.UDPConn) conn.ReceiveFunc {
	var last *conn.StdNetEndpoint // nobody changes one
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, from, err := c.ReadFromUDPAddrPort(packets[0])
		if err != nil {
			return 0, err
		}
		if last == nil || last.AddrPort != from {
			last = &conn.StdNetEndpoint{AddrPort: from}
		}
		sizes[0], eps[0] = n, last
		return 1, nil
	}
}

// Send implements conn.Bind. The host chooses the address that packets leave
// from.
func (l *lean) Send(packets [][]byte, ep conn.Endpoint) error {
	to, ok := ep.(*conn.StdNetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	s := l.sockets.Load()
	if s == nil {
		return net.ErrClosed
	}
	addr := unmapped(to.AddrPort)
	c := s.four
	if addr.Addr().Is6() {
		c = s.six
	}
	if c == nil {
		return syscall.EAFNOSUPPORT
	}
	for _, p := range packets {
		if _, err := c.WriteToUDPAddrPort(p, addr); err != nil {
			return err
		}
	}
	return nil
}

// ParseEndpoint implements conn.Bind.
func (*lean) ParseEndpoint(s string) (conn.Endpoint, error) {
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &conn.StdNetEndpoint{AddrPort: at}, nil
}

// Close implements conn.Bind.
func (l *lean) Close() error {
	if s := l.sockets.Swap(nil); s != nil {
		return s.close()
	}
	return nil
}

// SetMark implements conn.Bind. Nothing here marks packets.
func (*lean) SetMark(mark uint32) error {
	if mark == 0 {
		return nil
	}
	return fmt.Errorf("mark packets of a lean device: %w", errors.ErrUnsupported)
}

// BatchSize implements conn.Bind.
func (*lean) BatchSize() int { return 1 }
