// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// boundUnsent has the kernel take no more for a connection than most bytes beyond
// what is on its way. Else it takes megabytes, and a client that reads slowly gets
// packets that are older than anybody wants them. What is on its way has no bound
// but TCP's, so that speed is not lost. Without, only slow clients suffer, so that
// errors are none.
func boundUnsent(n net.Conn, most int) {
	for n != nil {
		if c, ok := n.(syscall.Conn); ok {
			if raw, err := c.SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) {
					_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, most)
				})
			}
			return
		}
		v, ok := n.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		n = v.NetConn()
	}
}

// wasReset reports whether a connection that has come to its end, with nothing but
// data sent on it, did so by a reset. A write may have been told of that, and then
// a read sees an end like any other.
func wasReset(n net.Conn) (reset bool) {
	c, ok := n.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	const closed = 7 // TCP_CLOSE: after the peer's end it would be CLOSE_WAIT
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		reset = err == nil && info.State == closed
	})
	return reset
}
