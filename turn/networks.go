// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"fmt"
	"net/netip"
)

// openNetwork is a network whose addresses every user may reach.
type openNetwork struct {
	netip.Prefix
	// special is true when the network lies in special-purpose address space.
	// Only then does it open such addresses: whoever opens 0.0.0.0/0 means the
	// Internet, and not 10.0.0.0/8 with it.
	special bool
}

// openNetworks checks what an operator wants to open. Loopback, link-local and
// multicast addresses and metadata services of clouds are nobody's to open by
// network: what listens there trusts whoever can reach it. Nor are IPv6
// addresses in which IPv4 ones hide: the policy knows those by the latter.
func openNetworks(list []netip.Prefix, special *blocks) ([]openNetwork, error) {
	var never []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "224.0.0.0/3",
		"::/64", "64:ff9b::/32", "2001::/32", "2002::/16", "fe80::/10", "ff00::/8",
	} {
		never = append(never, netip.MustParsePrefix(s))
	}
	out := make([]openNetwork, 0, len(list))
	for _, p := range list {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("turn peer network %s is not in the form of 192.0.2.0/24 or 2001:db8::/32", p)
		}
		for _, n := range never {
			if within(p, n) {
				return nil, fmt.Errorf("turn peer network %s lies in %s, to which nothing is relayed", p, n)
			}
		}
		out = append(out, openNetwork{Prefix: p, special: special.cover(p)})
	}
	return out, nil
}

// within says whether all of p lies in outer.
func within(p, outer netip.Prefix) bool {
	return p.Bits() >= outer.Bits() && outer.Contains(p.Addr())
}

// cover says whether no address of p is public.
func (b *blocks) cover(p netip.Prefix) bool {
	if p.Addr().Is6() && !p.Overlaps(netip.MustParsePrefix("2000::/3")) {
		return true
	}
	for _, block := range b[p.Addr().AsSlice()[0]] {
		if within(p, block) {
			return true
		}
	}
	return false
}

// isOpen says whether the canonical address addr is in an open network.
func (p *policy) isOpen(addr netip.Addr) bool {
	for _, n := range p.open {
		if n.Contains(addr) && (n.special || p.special.public(addr)) {
			return true
		}
	}
	return false
}
