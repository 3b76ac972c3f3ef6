// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// segment is the largest piece of a TCP stream that fits every link on which
// IPv6 may run: 1280 bytes without the headers.
const segment = 1220

// fragment is as large as IPv6 packets are of what the host's link has no room for:
// that fits every link. Nodes make their packets larger than a link where only
// fragments get through.
const fragment = 1280

// fitNarrow makes what is sent on a UDP socket, and both ways on connections to a
// TCP listener, get through links with a smaller MTU than this host's. Where ICMP
// is filtered nobody tells of them, and packets that may not be cut vanish.
// Without, only such links suffer, so that errors are none.
func fitNarrow(socket any) {
	c, ok := socket.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_, stream := socket.(net.Listener)
	_ = raw.Control(func(fd uintptr) {
		if stream {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, segment)
			return
		}
		// Of the two only that of the family of the socket is known to it; one of
		// IPv6 that takes IPv4 as well knows both.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU, fragment)
	})
}
