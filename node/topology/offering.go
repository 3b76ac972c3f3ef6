// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

// offering is who forwards to which networks.
type offering struct {
	// offers are the networks that nodes forward to, of all nodes that routes
	// name, there or not.
	offers map[mesh.NodeID][]netip.Prefix
	// aside are those of offers that a silent node leaves to another one which
	// offers the same, and is there. A viewer that offers a network itself keeps
	// it in any case.
	aside map[mesh.NodeID][]netip.Prefix
	// rivals are the nodes of which another one offers a network, too, sorted.
	rivals []mesh.NodeID
}

// offersOf returns the offering of a snapshot. Whether a node is there is not
// asked for offers: a plan looks at those that it reaches.
func offersOf(s *mesh.Snapshot) offering {
	o := offering{offers: make(map[mesh.NodeID][]netip.Prefix), aside: make(map[mesh.NodeID][]netip.Prefix)}
	for r, id := range policy.RouteForwarders(s) {
		for _, network := range r.Destinations {
			if network = network.Masked(); s.Routable(network) && !slices.Contains(o.offers[id], network) {
				o.offers[id] = append(o.offers[id], network)
			}
		}
	}
	by := make(map[netip.Prefix][]mesh.NodeID)
	for id, networks := range o.offers {
		slices.SortFunc(networks, netip.Prefix.Compare)
		// What is put is checked; a state of before, or of a v1 leader, was not.
		o.offers[id] = mesh.WithinSpan(networks)
		for _, network := range o.offers[id] {
			by[network] = append(by[network], id)
		}
	}
	rivals := make(map[mesh.NodeID]bool)
	for network, ids := range by {
		if len(ids) < 2 {
			continue
		}
		led := slices.ContainsFunc(ids, func(id mesh.NodeID) bool { return stanceOf(s, id) == fit })
		for _, id := range ids {
			if rivals[id] = true; led && stanceOf(s, id) == silent {
				o.aside[id] = append(o.aside[id], network)
			}
		}
	}
	for _, networks := range o.aside {
		slices.SortFunc(networks, netip.Prefix.Compare)
	}
	o.rivals = slices.Sorted(maps.Keys(rivals))
	return o
}

// stance says whether a node can forward.
type stance int

const (
	absent stance = iota
	// silent: its gateway has not heard it for a while.
	silent
	fit
)

func stanceOf(s *mesh.Snapshot, id mesh.NodeID) stance {
	n := s.Node(id)
	if n == nil || n.PublicKey.IsZero() {
		return absent
	}
	if _, missed := s.Silent[id]; missed {
		return silent
	}
	return fit
}

// stirred reports whether one of the rivals stands otherwise in s than in old.
func (o *offering) stirred(old, s *mesh.Snapshot) bool {
	return slices.ContainsFunc(o.rivals, func(id mesh.NodeID) bool { return stanceOf(old, id) != stanceOf(s, id) })
}

// leaves reports whether a node leaves a network that it offers to others.
func (o *offering) leaves(id mesh.NodeID, network netip.Prefix) bool {
	return len(o.aside) > 0 && slices.Contains(o.aside[id], network)
}

// setOffers takes over another offering.
func (g *graph) setOffers(next offering, d *delta) {
	for id, networks := range next.offers {
		same := slices.Equal(networks, g.offers[id]) && slices.Equal(next.aside[id], g.aside[id])
		if v := g.vertices.get(id); v != nil && !same {
			d.offers = append(d.offers, v)
		}
	}
	for id := range g.offers {
		if v := g.vertices.get(id); v != nil && len(next.offers[id]) == 0 {
			d.offers = append(d.offers, v)
		}
	}
	g.offering = next
}
