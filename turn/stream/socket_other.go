// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package stream

import "net"

// boundUnsent does nothing: what is not sent waits in the kernel, too.
func boundUnsent(net.Conn, int) {}

// wasReset cannot tell.
func wasReset(net.Conn) bool { return false }
