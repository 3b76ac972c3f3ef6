// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
)

// What one node may stand for. A default route would carry the traffic of all
// nodes to anywhere; so would its two halves, or its 256 parts.
const (
	// widestIPv4 and widestIPv6 are the prefix lengths of the widest networks.
	widestIPv4, widestIPv6 = 8, 16
	// mostWidest is how many of the widest a node may stand for altogether, in
	// each family, in parts of any size.
	mostWidest = 16
)

// TooWide reports whether p holds more addresses than one route may lead to.
func TooWide(p netip.Prefix) bool { return p.Bits() < widest(p) }

func widest(p netip.Prefix) int {
	if p.Addr().Is4() {
		return widestIPv4
	}
	return widestIPv6
}

// CheckWidth refuses a network that is TooWide. The error wraps ErrInvalid.
func CheckWidth(p netip.Prefix) error {
	if !TooWide(p) {
		return nil
	}
	return fmt.Errorf("%w: %v would carry all traffic of the mesh's nodes, or much of it: a route is a /%d or smaller, in IPv6 a /%d; name the networks behind the node instead",
		ErrInvalid, p, widestIPv4, widestIPv6)
}

// WithinSpan returns, of sorted networks, what one node may stand for: all of
// them, or, if CheckSpan refuses them, of the smallest as many as there is room
// for, in order. No network is more than one route may lead to.
func WithinSpan(sorted []netip.Prefix) []netip.Prefix {
	if !slices.ContainsFunc(sorted, TooWide) && CheckSpan(sorted) == nil {
		return sorted
	}
	list := slices.DeleteFunc(slices.Clone(sorted), TooWide)
	slices.SortStableFunc(list, func(a, b netip.Prefix) int { return b.Bits() - a.Bits() })
	var sum span // what overlaps counts twice, so that no state costs much
	list = slices.DeleteFunc(list, func(p netip.Prefix) bool {
		with := sum
		with.add(p)
		if with.tooMuch() {
			return true
		}
		sum = with
		return false
	})
	slices.SortFunc(list, netip.Prefix.Compare)
	return list
}

// CheckSpan refuses networks that together are more than one node may stand for.
// They may overlap. The error wraps ErrInvalid.
func CheckSpan(networks []netip.Prefix) error {
	list := slices.SortedFunc(slices.Values(networks), netip.Prefix.Compare)
	var last netip.Prefix
	var sum span
	for _, p := range list {
		if last.IsValid() && last.Contains(p.Addr()) {
			continue // the wider one comes first
		}
		last = p
		if sum.add(p); sum.tooMuch() {
			return fmt.Errorf("%w: too many addresses for one node: its routes may make up %d networks of /%d, in IPv6 of /%d; name smaller networks, or have other nodes offer some",
				ErrInvalid, mostWidest, widestIPv4, widestIPv6)
		}
	}
	return nil
}

// span adds up how much networks are, in addresses and in networks of 64 bits.
type span struct{ four, six uint64 }

func (s *span) add(p netip.Prefix) {
	if p.Addr().Is4() {
		s.four += 1 << (32 - p.Bits())
	} else {
		s.six += 1 << (64 - min(p.Bits(), 64))
	}
}

// tooMuch reports whether that is more than one node may stand for.
func (s *span) tooMuch() bool {
	return s.four > mostWidest<<(32-widestIPv4) || s.six > mostWidest<<(64-widestIPv6)
}
