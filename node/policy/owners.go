// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// Owners tell which nodes an address belongs to. It is immutable.
type Owners struct {
	mesh []netip.Prefix
	// nodes hold addresses of their own. A snapshot finds them itself.
	nodes mesh.Nodes
	// more are networks that belong to nodes beside.
	more   prefixTable
	routes prefixTable
}

// IndexOwners indexes the nodes and routes of s. It costs what the routes are,
// however many nodes there are.
func IndexOwners(s *mesh.Snapshot) *Owners {
	o := &Owners{mesh: s.Networks(), nodes: s.Nodes}
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
	ids, bits := o.holders(addr)
	if more, longer := o.more.lookup(addr); longer > bits {
		ids, bits = more, longer
	}
	if bits >= 0 {
		return ids
	}
	if slices.ContainsFunc(o.mesh, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return nil
	}
	ids, _ = o.routes.lookup(addr)
	return ids
}

// holders returns the nodes whose own network holds addr, of several networks
// the longest; bits is -1 if there is none.
func (o *Owners) holders(addr netip.Addr) (ids []string, bits int) {
	bits = -1
	for n, network := range o.nodes.Holders(addr) {
		if network.Bits() > bits {
			ids, bits = nil, network.Bits()
		}
		if network.Bits() == bits {
			ids = append(ids, string(n.ID))
		}
	}
	return ids, bits
}

// own reports whether a masked network is exactly that of a node.
func (o *Owners) own(network netip.Prefix) bool {
	for _, of := range o.nodes.Holders(network.Addr()) {
		if of.Masked() == network {
			return true
		}
	}
	return false
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

// lookup returns the ids of the longest prefix that holds addr, and its length;
// -1 when there is none.
func (t *prefixTable) lookup(addr netip.Addr) (ids []string, bits int) {
	for _, bits := range t.bits {
		p, err := addr.Prefix(bits)
		if err != nil {
			continue // longer than an address of this family
		}
		if ids, ok := t.ids[p]; ok {
			return ids, bits
		}
	}
	return nil, -1
}
