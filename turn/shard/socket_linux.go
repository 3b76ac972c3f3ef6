// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// fragment is how large IPv6 packets are that are larger than a datagram may
// pass whole: that fits every link (RFC 8200 section 5).
const fragment = 1280

// Socket is an open UDP socket.
type Socket struct {
	addr   netip.AddrPort
	fd     int
	ipv6   bool
	owned  atomic.Bool
	closed atomic.Bool
}

// Listen opens a UDP socket at addr; port 0 lets the kernel choose. An IPv6
// address takes no IPv4. With shared several shards may have a socket each at the
// same address, among which the kernel distributes clients.
func Listen(addr netip.AddrPort, shared bool) (*Socket, error) {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket for %v: %w", addr, err)
	}
	s := &Socket{fd: fd, ipv6: family == unix.AF_INET6}
	if err := s.bind(addr, shared); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen at %v: %w", addr, err)
	}
	return s, nil
}

func (s *Socket) bind(addr netip.AddrPort, shared bool) error {
	if s.ipv6 {
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	if shared {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
	}
	if err := unix.Bind(s.fd, sockaddr(addr)); err != nil {
		return err
	}
	s.fitNarrow()
	if addr.Port() != 0 {
		s.addr = addr
		return nil
	}
	return s.name()
}

// name asks the kernel where the socket is.
func (s *Socket) name() error {
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return err
	}
	switch v := name.(type) {
	case *unix.SockaddrInet4:
		s.addr = netip.AddrPortFrom(netip.AddrFrom4(v.Addr), uint16(v.Port))
	case *unix.SockaddrInet6:
		s.addr, s.ipv6 = netip.AddrPortFrom(zoned(netip.AddrFrom16(v.Addr), v.ZoneId), uint16(v.Port)), true
	default:
		return unix.EAFNOSUPPORT
	}
	return nil
}

// fitNarrow lets what is sent through links with a smaller MTU than this host's:
// where ICMP is filtered nobody tells of them, and packets that may not be cut
// vanish. Without, only such links suffer, so that errors are none.
func (s *Socket) fitNarrow() {
	if !s.ipv6 {
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		return
	}
	_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
	_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU, fragment)
}

// keepWhole lets the datagrams that follow leave whole or not at all, or again as
// fitNarrow does.
func (s *Socket) keepWhole(on bool) {
	whole := 0
	if on {
		whole = 1
	} else {
		s.fitNarrow()
	}
	switch {
	case s.ipv6:
		if on {
			_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU, 0)
		}
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, whole)
	case on:
		_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}
}

// queues asks for room for n bytes each way.
func (s *Socket) queues(n int) {
	for _, option := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, option[0], n) != nil {
			_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, option[1], n)
		}
	}
}

// conn is the socket as one of package net, which owns it from here.
func (s *Socket) conn() (*net.UDPConn, error) {
	file := os.NewFile(uintptr(s.fd), s.addr.String())
	defer file.Close()
	c, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	s.closed.Store(true) // with the file
	return c.(*net.UDPConn), nil
}

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
	return unix.Close(s.fd)
}

func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16(), ZoneId: zone(addr.Addr())}
}

// zone is the number of the interface of a link-local address.
func zone(a netip.Addr) uint32 {
	name := a.Zone()
	if name == "" {
		return 0
	}
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(name); err == nil {
		return uint32(i.Index)
	}
	return 0
}

// zoned is a with the number of an interface, if it needs one.
func zoned(a netip.Addr, n uint32) netip.Addr {
	if n == 0 || !a.IsLinkLocalUnicast() {
		return a
	}
	return a.WithZone(strconv.FormatUint(uint64(n), 10))
}
