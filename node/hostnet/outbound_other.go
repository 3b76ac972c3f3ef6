// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package hostnet

import "syscall"

// setMark does nothing: there are no exits.
func setMark(string, string, syscall.RawConn) error { return nil }
