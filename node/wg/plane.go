// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/tun"
)

// plane is the side of a device that faces applications: the userspace network
// stack, or the host's. Networks are "tcp" and "udp"; addresses were checked.
type plane interface {
	tun.Device
	// setAddresses makes want our addresses.
	setAddresses(want []netip.Addr) error
	// setMTU changes the MTU, in bytes.
	setMTU(mtu int) error
	// wait waits for the goroutines of a closed plane.
	wait()
	dial(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error)
	listen(ctx context.Context, local netip.AddrPort) (net.Listener, error)
	listenPacket(ctx context.Context, local netip.AddrPort) (net.PacketConn, error)
}
