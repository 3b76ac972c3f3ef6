// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// Owners tell which nodes an address belongs to. It is immutable.
type Owners struct {
	mesh   []netip.Prefix
	nodes  prefixTable
	routes prefixTable
}

// IndexOwners indexes the nodes and routes of s.
func IndexOwners(s *mesh.Snapshot) *Owners {
	o := &Owners{mesh: s.Networks()}
	for id, n := range s.Nodes.All() {
		for _, p := range n.Prefixes() {
			o.nodes.add(p.Masked(), string(id))
		}
	}
	groups := indexGroups(s.Groups)
	for _, r := range s.Routes {
		ids := forwarders(s, groups, r)
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

// Of returns the nodes that hold addr or offer the most specific route to it.
// An address of the mesh itself is never reached by a route.
func (o *Owners) Of(addr netip.Addr) []string {
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
