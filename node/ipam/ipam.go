// SPDX-License-Identifier: Apache-2.0

// Package ipam chooses addresses from a network and the set of those taken.
package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
)

// Next returns the first address of the IPv4 network prefix that is not taken,
// as a /32. It starts with the address after the network's own and leaves out
// the broadcast address, which is the last; a /31 and a /32 thus hold none.
//
// The error wraps mesh.ErrInvalid when prefix is no IPv4 network, and
// mesh.ErrExhausted when every address is taken. Equal arguments give equal
// results: whoever needs the address reserves it in the same step as it asks.
func Next(prefix netip.Prefix, taken func(netip.Addr) bool) (netip.Prefix, error) {
	if !prefix.IsValid() || !prefix.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("choose address: %v is no IPv4 network: %w", prefix, mesh.ErrInvalid)
	}
	network := prefix.Masked().Addr()
	broadcast := lastOf(prefix)
	for addr := network.Next(); addr.IsValid() && addr.Less(broadcast); addr = addr.Next() {
		if !taken(addr) {
			return netip.PrefixFrom(addr, addr.BitLen()), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose address: every address of %v is taken: %w", prefix, mesh.ErrExhausted)
}

// lastOf returns the last address of an IPv4 network.
func lastOf(prefix netip.Prefix) netip.Addr {
	raw := prefix.Masked().Addr().As4()
	hosts := uint32(1)<<(32-prefix.Bits()) - 1 // the shift gives 0 for a /0, and 0 - 1 is every bit
	binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(raw[:])|hosts)
	return netip.AddrFrom4(raw)
}
