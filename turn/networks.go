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

// neverOpen are networks that are nobody's to open, alone or within a wider one.
// What listens at loopback, link-local and multicast addresses trusts whoever can
// reach it. IPv6 addresses in which IPv4 ones hide are there, too: the policy knows
// those by the latter.
func neverOpen() []netip.Prefix {
	return prefixes(
		"0.0.0.0/8", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "224.0.0.0/3",
		"::/64", "64:ff9b::/32", "2001::/32", "2002::/16", "fe80::/10", "ff00::/8",
	)
}

// metadata are addresses at which clouds serve secrets to their machines, in
// networks that there are other reasons to open. Only who names such an address
// alone opens it.
func metadata() []netip.Prefix {
	return prefixes(
		"100.100.100.200/32", // Alibaba
		"192.0.0.192/32",     // Oracle
		"fd00:ec2::254/128",  // Amazon
		"fd20:ce::254/128",   // Google
	)
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// openNetworks checks what an operator wants to open. What is refused here is of no
// use; isOpen looks at each address.
func openNetworks(list []netip.Prefix, special *blocks) ([]openNetwork, error) {
	never := neverOpen()
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
	for _, n := range *p.open.Load() {
		if n.Contains(addr) && (n.special && (n.IsSingleIP() || !p.shut.holds(addr)) || p.special.public(addr)) {
			return true
		}
	}
	return false
}
