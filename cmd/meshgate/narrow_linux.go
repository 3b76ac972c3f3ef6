// SPDX-License-Identifier: Apache-2.0

package main

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// segment is the largest piece of a TCP stream that fits every link on which
// IPv6 may run: 1280 bytes without the headers.
const segment = 1220

// narrow makes connections to a listener get through links with a smaller MTU
// than this host's, both ways. Where ICMP is filtered nobody tells of them, and
// nodes that have nothing but this port would lose the mesh. Without, only such
// links suffer, so that an error is none.
func narrow(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, segment)
	})
}
