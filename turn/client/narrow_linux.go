// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// fitNarrow lets routers cut what is sent on a UDP socket. Where ICMP is filtered
// nobody tells of links with a smaller MTU, and packets that may not be cut vanish
// there. Without, only such links suffer, so that errors are none.
func fitNarrow(conn net.Conn) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		// The socket is of one family, and knows the option of that one.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
	})
}
