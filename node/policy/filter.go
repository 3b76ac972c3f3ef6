// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/meshgate/meshgate/node/mesh"
)

// filterSlots bounds the decisions that a filter remembers: enough for the
// flows that a relay carries at a time, and 64 KiB of memory while empty.
const filterSlots = 8192

// Filter compiles the ACLs of s to a packet filter: it reports whether a packet
// from src to dst may be forwarded. Both must be addresses of nodes or lie in
// networks that nodes offer routes to. Replies are not told apart: see
// Network.Connects for what decides on a pair of addresses.
//
// The function is safe for concurrent use. It remembers a bounded number of
// decisions without locks; a flood of addresses costs the remembered ones and
// nothing else.
func Filter(s *mesh.Snapshot) func(src, dst netip.Addr) bool {
	f := &filter{
		network: Compile(s),
		owners:  indexOwners(s),
		seed:    maphash.MakeSeed(),
		slots:   make([]atomic.Pointer[verdict], filterSlots),
	}
	return f.allow
}

// filter is the state of a packet filter.
type filter struct {
	network *Network
	owners  *owners
	seed    maphash.Seed
	slots   []atomic.Pointer[verdict]
}

// verdict is a remembered decision.
type verdict struct {
	low, high netip.Addr
	accepted  bool
}

// allow decides on a packet. Decisions hold for both directions, so that the
// addresses are put in order first.
func (f *filter) allow(src, dst netip.Addr) bool {
	low, high := src.Unmap(), dst.Unmap()
	if high.Less(low) {
		low, high = high, low
	}
	slot := &f.slots[f.hash(low, high)%filterSlots]
	if v := slot.Load(); v != nil && v.low == low && v.high == high {
		return v.accepted
	}
	accepted := f.decide(low, high)
	slot.Store(&verdict{low: low, high: high, accepted: accepted})
	return accepted
}

// hash returns a hash of a pair of addresses that outsiders cannot predict.
func (f *filter) hash(low, high netip.Addr) uint64 {
	var pair [32]byte
	l, h := low.As16(), high.As16()
	copy(pair[:16], l[:])
	copy(pair[16:], h[:])
	return maphash.Bytes(f.seed, pair[:])
}

// decide asks the ACLs. A network that several nodes offer is reachable when
// one of them may be reached for it.
func (f *filter) decide(a, b netip.Addr) bool {
	for _, from := range f.owners.of(a) {
		for _, to := range f.owners.of(b) {
			if f.network.Connects(Endpoint{from, host(a)}, Endpoint{to, host(b)}) {
				return true
			}
		}
	}
	return false
}

// owners tell which nodes an address belongs to.
type owners struct {
	mesh   []netip.Prefix
	nodes  prefixTable
	routes prefixTable
}

// indexOwners indexes the nodes and routes of s.
func indexOwners(s *mesh.Snapshot) *owners {
	o := &owners{mesh: s.Networks()}
	for id, n := range s.Nodes {
		for _, p := range n.Prefixes() {
			o.nodes.add(p.Masked(), string(id))
		}
	}
	for _, r := range s.Routes {
		ids := Forwarders(s, r)
		for _, p := range r.Destinations {
			if !s.Routable(p) {
				continue
			}
			for _, id := range ids {
				o.routes.add(p.Masked(), string(id))
			}
		}
	}
	return o
}

// of returns the nodes that hold addr or offer the most specific route to it.
// An address of the mesh itself is never reached by a route.
func (o *owners) of(addr netip.Addr) []string {
	if ids := o.nodes.lookup(addr); ids != nil {
		return ids
	}
	if slices.ContainsFunc(o.mesh, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return nil
	}
	return o.routes.lookup(addr)
}

// prefixTable finds the longest prefix that holds an address. The zero value is
// empty.
type prefixTable struct {
	ids map[netip.Prefix][]string
	// bits are the prefix lengths in use, longest first.
	bits []int
}

// add gives the masked prefix p to id.
func (t *prefixTable) add(p netip.Prefix, id string) {
	if t.ids == nil {
		t.ids = make(map[netip.Prefix][]string)
	}
	t.ids[p] = append(t.ids[p], id)
	if i, found := slices.BinarySearchFunc(t.bits, p.Bits(), func(a, b int) int { return b - a }); !found {
		t.bits = slices.Insert(t.bits, i, p.Bits())
	}
}

// lookup returns the ids of the longest prefix that holds addr, or nil.
func (t *prefixTable) lookup(addr netip.Addr) []string {
	for _, bits := range t.bits {
		p, err := addr.Prefix(bits)
		if err != nil {
			continue // longer than an address of this family
		}
		if ids, ok := t.ids[p]; ok {
			return ids
		}
	}
	return nil
}
