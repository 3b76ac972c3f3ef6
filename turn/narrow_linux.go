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

// fitNarrow makes what is sent both ways on connections to a TCP listener get
// through links with a smaller MTU than this host's. Where ICMP is filtered nobody
// tells of them, and packets that may not be cut vanish. Without, only such links
// suffer, so that errors are none.
func fitNarrow(l net.Listener) {
	c, ok := l.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, segment) })
}
