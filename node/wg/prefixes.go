// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"maps"
	"net/netip"
	"slices"
)

// shelves is into how many maps a set is cut: a change copies one of them, and the
// list of them. Some kilobytes each with ten thousand prefixes.
const shelves = 1 << shelfBits

const shelfBits = 7

// route is a prefix and the peer that is behind it.
type route struct {
	prefix netip.Prefix
	to     *contact
}

// prefixSet finds the longest prefix that holds an address, and the peer behind
// it. It is immutable and shares what has not changed with the set that it was made
// from; nil is the empty set.
type prefixSet struct {
	members [shelves]map[netip.Prefix]*contact
	// used4 and used6 are the prefix lengths in use, longest first. A mesh
	// has a handful of them, so one map look-up per length beats a trie.
	used4, used6 []length
}

// length is how many prefixes of a set have so many bits.
type length struct{ bits, count int }

// newPrefixSet builds a set of masked prefixes.
func newPrefixSet(routes []route) *prefixSet {
	return new(prefixSet).with(routes, nil)
}

// with returns the set with some masked prefixes more, and some less.
func (s *prefixSet) with(added []route, removed []netip.Prefix) *prefixSet {
	if len(added) == 0 && len(removed) == 0 && s != nil {
		return s
	}
	next := new(prefixSet)
	if s != nil {
		*next = *s
		next.used4, next.used6 = slices.Clone(s.used4), slices.Clone(s.used6)
	}
	var copied [shelves]bool
	of := func(p netip.Prefix) map[netip.Prefix]*contact {
		i := shelf(p)
		if !copied[i] {
			copied[i] = true
			if next.members[i] = maps.Clone(next.members[i]); next.members[i] == nil {
				next.members[i] = make(map[netip.Prefix]*contact)
			}
		}
		return next.members[i]
	}
	for _, p := range removed {
		if next.to(p) != nil {
			delete(of(p), p)
			next.count(p, -1)
		}
	}
	for _, r := range added {
		if next.to(r.prefix) == nil {
			next.count(r.prefix, 1)
		}
		of(r.prefix)[r.prefix] = r.to
	}
	return next
}

// count counts n more prefixes of the length of p.
func (s *prefixSet) count(p netip.Prefix, n int) {
	used := &s.used6
	if p.Addr().Is4() {
		used = &s.used4
	}
	i, found := slices.BinarySearchFunc(*used, p.Bits(), func(a length, b int) int { return b - a.bits })
	if !found {
		*used = slices.Insert(*used, i, length{bits: p.Bits()})
	}
	if (*used)[i].count += n; (*used)[i].count == 0 {
		*used = slices.Delete(*used, i, i+1)
	}
}

// shelf is in which map of a set p is.
func shelf(p netip.Prefix) uint64 { return spread(p.Addr()) >> (64 - shelfBits) }

// to returns the peer behind p itself, or nil.
func (s *prefixSet) to(p netip.Prefix) *contact { return s.members[shelf(p)][p] }

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
	used := s.used6
	if a.Is4() {
		used = s.used4
	}
	for _, l := range used {
		p, err := a.Prefix(l.bits)
		if err != nil {
			return 0, nil
		}
		if to := s.to(p); to != nil {
			return l.bits, to
		}
	}
	return 0, nil
}
