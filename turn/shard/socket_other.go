// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package shard

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
)

// Socket is an open UDP socket.
type Socket struct {
	addr   netip.AddrPort
	udp    *net.UDPConn
	owned  atomic.Bool
	closed atomic.Bool
}

// Listen opens a UDP socket at addr; port 0 lets the kernel choose. An IPv6
// address takes no IPv4. shared, for several shards at one address, is not
// supported on this system.
func Listen(addr netip.AddrPort, shared bool) (*Socket, error) {
	if shared {
		return nil, errors.ErrUnsupported
	}
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6"
	}
	c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return &Socket{addr: netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), udp: c}, nil
}

func (s *Socket) conn() (*net.UDPConn, error) { return s.udp, nil }

// Addr is where the socket listens.
func (s *Socket) Addr() netip.AddrPort { return s.addr }

// Close closes the socket, unless a Shard owns it.
func (s *Socket) Close() error {
	if s.owned.Load() {
		return nil
	}
	return s.close()
}

// close closes the socket. It may be called again, and of nil.
func (s *Socket) close() error {
	if s == nil || s.closed.Swap(true) {
		return nil
	}
	return s.udp.Close()
}
