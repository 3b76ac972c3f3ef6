// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"slices"
)

// Tunnels are the interfaces of other nodes on the host, which are in meshes of
// their own: a tunnel that runs in another one, which may run in it, carries
// nothing but itself. It is immutable; nil has none.
type Tunnels struct {
	// addresses are those of the interfaces.
	addresses []netip.Addr
	// routes lead into them, and beside the host's other routes but for default ones.
	routes, beside []netip.Prefix
}

// Lead reports whether the host would send packets for addr into one of the
// tunnels, or has the address on one itself.
func (t *Tunnels) Lead(addr netip.Addr) bool {
	if t == nil {
		return false
	}
	addr = addr.Unmap().WithZone("")
	return slices.Contains(t.addresses, addr) || longest(t.routes, addr) > longest(t.beside, addr)
}

// longest is the length of the closest network around addr; -1 without one.
func longest(networks []netip.Prefix, addr netip.Addr) int {
	bits := -1
	for _, p := range networks {
		if p.Contains(addr) {
			bits = max(bits, p.Bits())
		}
	}
	return bits
}
