// SPDX-License-Identifier: Apache-2.0

//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package stream

import (
	"errors"
	"syscall"
)

// sharePort fails: connections from the port of a listener need SO_REUSEPORT.
func sharePort(string, string, syscall.RawConn) error { return errors.ErrUnsupported }
