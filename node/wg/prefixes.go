// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"net/netip"
	"slices"
)

// prefixSet finds the longest prefix that holds an address. It is immutable;
// nil is the empty set.
type prefixSet struct {
	members map[netip.Prefix]struct{}
	// bits4 and bits6 are the prefix lengths in use, longest first. A mesh
	// has a handful of them, so one map look-up per length beats a trie.
	bits4, bits6 []int
}

// newPrefixSet builds a set of masked prefixes.
func newPrefixSet(prefixes []netip.Prefix) *prefixSet {
	s := &prefixSet{members: make(map[netip.Prefix]struct{}, len(prefixes))}
	for _, p := range prefixes {
		s.members[p] = struct{}{}
		bits := &s.bits6
		if p.Addr().Is4() {
			bits = &s.bits4
		}
		if !slices.Contains(*bits, p.Bits()) {
			*bits = append(*bits, p.Bits())
		}
	}
	longestFirst := func(a, b int) int { return b - a }
	slices.SortFunc(s.bits4, longestFirst)
	slices.SortFunc(s.bits6, longestFirst)
	return s
}

// match returns the length of the longest prefix that holds a, or false.
func (s *prefixSet) match(a netip.Addr) (int, bool) {
	if s == nil {
		return 0, false
	}
	lengths := s.bits6
	if a.Is4() {
		lengths = s.bits4
	}
	for _, bits := range lengths {
		p, err := a.Prefix(bits)
		if err != nil {
			return 0, false
		}
		if _, ok := s.members[p]; ok {
			return bits, true
		}
	}
	return 0, false
}
