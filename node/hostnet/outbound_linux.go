// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// setMark marks a socket. Who may not do so can use no exit either, and needs
// none.
func setMark(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark)
	})
}
