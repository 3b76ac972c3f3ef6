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

// route is a prefix and the peer that is behind it.
type route struct {
	prefix netip.Prefix
	to     *contact
}

// prefixSet finds the longest prefix that holds an address, and the peer behind
// it. It is immutable; nil is the empty set.
type prefixSet struct {
	members map[netip.Prefix]*contact
	// recent are prefixes that are in the set, or not in it (nil), whatever
	// members says.
	recent map[netip.Prefix]*contact
	// bits4 and bits6 are the prefix lengths in use, longest first. A mesh
	// has a handful of them, so one map look-up per length beats a trie.
	bits4, bits6 []int
}

// newPrefixSet builds a set of masked prefixes.
func newPrefixSet(routes []route) *prefixSet {
	s := &prefixSet{members: make(map[netip.Prefix]*contact, len(routes))}
	for _, r := range routes {
		s.members[r.prefix] = r.to
		s.noteLength(r.prefix)
	}
	return s
}

// with returns the set with some masked prefixes more, and some less.
func (s *prefixSet) with(added []route, removed []netip.Prefix) *prefixSet {
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
		members: s.members, recent: make(map[netip.Prefix]*contact, len(s.recent)+len(added)+len(removed)),
		bits4: slices.Clone(s.bits4), bits6: slices.Clone(s.bits6),
	}
	maps.Copy(next.recent, s.recent)
	for _, p := range removed {
		next.recent[p] = nil
	}
	for _, r := range added {
		next.recent[r.prefix] = r.to
		next.noteLength(r.prefix)
	}
	return next
}

// list returns all prefixes of the set with some more and some less.
func (s *prefixSet) list(added []route, removed []netip.Prefix) []route {
	all := make(map[netip.Prefix]*contact, len(s.members)+len(added))
	maps.Copy(all, s.members)
	maps.Copy(all, s.recent)
	for _, p := range removed {
		all[p] = nil
	}
	for _, r := range added {
		all[r.prefix] = r.to
	}
	routes := make([]route, 0, len(all))
	for p, to := range all {
		if to != nil {
			routes = append(routes, route{p, to})
		}
	}
	return routes
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

// to returns the peer behind p itself, or nil.
func (s *prefixSet) to(p netip.Prefix) *contact {
	if len(s.recent) > 0 {
		if to, known := s.recent[p]; known {
			return to
		}
	}
	return s.members[p]
}

// match returns the length of the longest prefix that holds a, or false.
func (s *prefixSet) match(a netip.Addr) (int, bool) {
	bits, to := s.find(a)
	return bits, to != nil
}

// find returns the length of the longest prefix that holds a, and the peer
// behind it, or nil.
func (s *prefixSet) find(a netip.Addr) (int, *contact) {
	if s == nil {
		return 0, nil
	}
	lengths := s.bits6
	if a.Is4() {
		lengths = s.bits4
	}
	for _, bits := range lengths {
		p, err := a.Prefix(bits)
		if err != nil {
			return 0, nil
		}
		if to := s.to(p); to != nil {
			return bits, to
		}
	}
	return 0, nil
}
