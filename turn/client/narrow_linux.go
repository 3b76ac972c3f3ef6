// SPDX-License-Identifier: Apache-2.0

package client

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// fragment is as large as IPv6 packets are of what the host's link has no room for:
// that fits every link. Callers make their packets larger than a link where only
// fragments get through. Batches of full packets do not fit the usual link anyway,
// with the four bytes that TURN adds.
const fragment = 1280

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
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU, fragment)
	})
}
