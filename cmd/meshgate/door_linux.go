// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"syscall"
)

// ownUser reports whether the process at the other end of a socket runs as the
// user of this one, or as root.
func ownUser(c net.Conn) bool {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	var who *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		who, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	return err == nil && failed == nil && (who.Uid == 0 || int(who.Uid) == os.Geteuid())
}
