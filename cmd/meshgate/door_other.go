// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import "net"

// ownUser reports whether the other end of a socket may be served. Here the mode
// of the file says so.
func ownUser(net.Conn) bool { return true }
