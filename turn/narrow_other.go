// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package turn

import "net"

// fitNarrow leaves sockets as they are: only Linux is known to forbid routers to
// cut packets.
func fitNarrow(net.Listener) {}
