// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package stream

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// sharePort lets a socket have the port of others that allow it, too: the
// listener of a relay and the connections from its port. A listener allows it
// only when it is bound, so that two relays never have one port.
func sharePort(_, _ string, raw syscall.RawConn) error {
	var err error
	if failed := raw.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
	}); failed != nil {
		return failed
	}
	return err
}
