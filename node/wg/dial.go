// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
)

// DialContext connects to address in the mesh. Networks are "tcp" and "udp",
// also with "4" or "6" behind; address is "ip:port", since names are not
// resolved here. TCP connections have CloseWrite.
//
// Addresses that are neither ours nor behind a peer fail at once with ErrNoRoute.
func (d *Device) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	kind, dst, err := d.parse(network, address)
	if err == nil && !d.filter.load().reachable(dst.Addr()) {
		err = ErrNoRoute
	}
	var c net.Conn
	if err == nil {
		c, err = d.plane.dial(ctx, kind, dst)
	}
	if err != nil {
		return nil, opError("dial", network, address, err)
	}
	return c, nil
}

// Listen accepts TCP connections on one of our own addresses. Port 0 chooses one.
func (d *Device) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	local, err := d.parseLocal("tcp", network, address)
	var l net.Listener
	if err == nil {
		l, err = d.plane.listen(ctx, local)
	}
	if err != nil {
		return nil, opError("listen", network, address, err)
	}
	return l, nil
}

// ListenPacket receives UDP datagrams on one of our own addresses. Port 0 chooses one.
func (d *Device) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	local, err := d.parseLocal("udp", network, address)
	var c net.PacketConn
	if err == nil {
		c, err = d.plane.listenPacket(ctx, local)
	}
	if err != nil {
		return nil, opError("listen", network, address, err)
	}
	return c, nil
}

// parse checks a network and an address.
func (d *Device) parse(network, address string) (kind string, addr netip.AddrPort, err error) {
	if d.closed.Load() {
		return "", addr, net.ErrClosed
	}
	kind = strings.TrimRight(network, "46")
	if kind != "tcp" && kind != "udp" || len(network) > len(kind)+1 {
		return "", addr, fmt.Errorf("unknown network: %w", mesh.ErrInvalid)
	}
	addr, err = netip.ParseAddrPort(address)
	if err != nil {
		return "", addr, fmt.Errorf("%w: %w", err, mesh.ErrInvalid)
	}
	if addr.Addr().Zone() != "" {
		return "", addr, fmt.Errorf("address with a zone: %w", mesh.ErrInvalid)
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if family := network[len(kind):]; family == "4" && !addr.Addr().Is4() || family == "6" && addr.Addr().Is4() {
		return "", addr, fmt.Errorf("address of the other family: %w", mesh.ErrInvalid)
	}
	return kind, addr, nil
}

// parseLocal checks an address to listen on.
func (d *Device) parseLocal(kind, network, address string) (netip.AddrPort, error) {
	got, local, err := d.parse(network, address)
	if err != nil {
		return local, err
	}
	if got != kind {
		return local, fmt.Errorf("unknown network: %w", mesh.ErrInvalid)
	}
	if !d.filter.load().ownAddr(local.Addr()) {
		return local, fmt.Errorf("not an address of this node: %w", mesh.ErrInvalid)
	}
	return local, nil
}

// opError says what failed, as the net package does, unless it already has.
func opError(op, network, address string, err error) error {
	if said := new(net.OpError); errors.As(err, &said) {
		return err
	}
	return &net.OpError{Op: op, Net: network, Addr: textAddr{network, address}, Err: err}
}

// textAddr is an address as the caller gave it.
type textAddr struct{ network, address string }

// Network implements net.Addr.
func (a textAddr) Network() string { return a.network }

// String implements net.Addr.
func (a textAddr) String() string { return a.address }

// SetMTU changes the MTU of the packets that a device in ModeNetstack sends itself,
// in bytes: 1280 to what Options had. In ModeTUN the error wraps
// mesh.ErrUnsupported: the interface is the host's.
func (d *Device) SetMTU(mtu int) error {
	if mtu < minMTU || mtu > d.mtu {
		return fmt.Errorf("mtu %d is not in %d..%d: %w", mtu, minMTU, d.mtu, mesh.ErrInvalid)
	}
	if err := d.plane.setMTU(mtu); err != nil {
		return fmt.Errorf("set mtu %d: %w", mtu, err)
	}
	return nil
}
