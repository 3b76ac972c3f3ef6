// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"maps"
	"net/netip"
	"slices"
)

// maxRecent is how many prefixes a set may hold beside those that it shares
// with the set before. Copying them is what a small change costs.
const maxRecent = 256

// prefixSet finds the longest prefix that holds an address. It is immutable;
// nil is the empty set.
type prefixSet struct {
	members map[netip.Prefix]struct{}
	// recent are prefixes that are in the set (true) or not (false), whatever
	// members says.
	recent map[netip.Prefix]bool
	// bits4 and bits6 are the prefix lengths in use, longest first. A mesh
	// has a handful of them, so one map look-up per length beats a trie.
	bits4, bits6 []int
}

// newPrefixSet builds a set of masked prefixes.
func newPrefixSet(prefixes []netip.Prefix) *prefixSet {
	s := &prefixSet{members: make(map[netip.Prefix]struct{}, len(prefixes))}
	for _, p := range prefixes {
		s.members[p] = struct{}{}
		s.noteLength(p)
	}
	return s
}

// with returns the set with some masked prefixes more, and some less.
func (s *prefixSet) with(added, removed []netip.Prefix) *prefixSet {
	if len(added) == 0 && len(removed) == 0 && s != nil {
		return s
	}
	if s == nil {
		s = new(prefixSet)
	}
	if len(s.recent)+len(added)+len(removed) > maxRecent {
		return newPrefixSet(s.list(added, removed))
	}
	next := &prefixSet{
		members: s.members, recent: make(map[netip.Prefix]bool, len(s.recent)+len(added)+len(removed)),
		bits4: slices.Clone(s.bits4), bits6: slices.Clone(s.bits6),
	}
	maps.Copy(next.recent, s.recent)
	for _, p := range removed {
		next.recent[p] = false
	}
	for _, p := range added {
		next.recent[p] = true
		next.noteLength(p)
	}
	return next
}

// list returns all prefixes of the set with some more and some less.
func (s *prefixSet) list(added, removed []netip.Prefix) []netip.Prefix {
	all := make(map[netip.Prefix]struct{}, len(s.members)+len(added))
	maps.Copy(all, s.members)
	for p, in := range s.recent {
		if in {
			all[p] = struct{}{}
		} else {
			delete(all, p)
		}
	}
	for _, p := range removed {
		delete(all, p)
	}
	for _, p := range added {
		all[p] = struct{}{}
	}
	return slices.Collect(maps.Keys(all))
}

// noteLength adds the length of a prefix to those in use.
func (s *prefixSet) noteLength(p netip.Prefix) {
	bits := &s.bits6
	if p.Addr().Is4() {
		bits = &s.bits4
	}
	i, found := slices.BinarySearchFunc(*bits, p.Bits(), func(a, b int) int { return b - a })
	if !found {
		*bits = slices.Insert(*bits, i, p.Bits())
	}
}

// has reports whether p is in the set.
func (s *prefixSet) has(p netip.Prefix) bool {
	if len(s.recent) > 0 {
		if in, known := s.recent[p]; known {
			return in
		}
	}
	_, in := s.members[p]
	return in
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
		if s.has(p) {
			return bits, true
		}
	}
	return 0, false
}
