// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// fewStale is of how many peers one may be stale for these to be replaced one by
// one. With more, all are made anew.
const fewStale = 8

// makePlan makes the plan of a view's root. What did not change is the memory
// of the plan before.
func (p *pass) makePlan(rerouted bool) {
	self := p.root.node
	if p.all || len(p.stale) > len(p.lists)/fewStale {
		p.plan.Peers = p.allPeers()
	} else {
		p.plan.Peers = p.patchedPeers()
	}
	if rerouted || p.all {
		p.plan.Routes = routesOf(p.graph.at, self, p.view.routed)
	}
	p.plan.Self = self
}

// allPeers returns the neighbours that something lies behind.
func (p *pass) allPeers() mesh.Peers {
	peers := make([]mesh.Peer, 0, len(p.lists))
	for behind := range p.lists {
		peers = append(peers, p.peer(behind))
	}
	return mesh.PeersOf(peers...)
}

// patchedPeers returns the peers with those that are stale made anew.
func (p *pass) patchedPeers() mesh.Peers {
	peers := p.plan.Peers
	for id := range p.stale {
		if v := p.graph.vertices.get(id); v != nil && len(p.lists[v]) > 0 {
			peers = peers.With(p.peer(v))
		} else {
			peers = peers.Without(id)
		}
	}
	return peers
}

func (p *pass) peer(v *vertex) mesh.Peer {
	l, _ := p.root.linkTo(v)
	return mesh.Peer{
		Node: v.node, AllowedIPs: p.lists[v], Endpoint: v.endpointFor(p.root.node), Protocol: l.protocol(),
	}
}

// leafPlan makes the plan of a node whose only neighbour is the root of a lone
// view.
func (w *view) leafPlan(s *mesh.Snapshot, self *vertex) mesh.Plan {
	own := self.node.Prefixes()
	routed := without(w.routed, own)
	plan := mesh.Plan{Self: self.node, Routes: routesOf(s, self.node, routed)}
	allowed := without(w.lists[w.root], own)
	if w.summary {
		allowed = merge(allowed, s.Networks())
	}
	if allowed = merge(allowed, routed); len(allowed) > 0 {
		l, _ := self.linkTo(w.root)
		plan.Peers = mesh.PeersOf(mesh.Peer{
			Node: w.root.node, AllowedIPs: allowed, Endpoint: w.root.endpointFor(self.node), Protocol: l.protocol(),
		})
	}
	return plan
}

// without returns a sorted list without what lies in own.
func without(list, own []netip.Prefix) []netip.Prefix {
	for _, o := range own {
		// A wider network that holds o stands before it.
		from, _ := slices.BinarySearchFunc(list, o.Masked(), netip.Prefix.Compare)
		to := from
		for to < len(list) && o.Contains(list[to].Addr()) {
			to++
		}
		if from < to {
			list = slices.Concat(list[:from], list[to:])
		}
	}
	return list
}

// merge returns the union of two sorted lists; it may be the memory of one.
func merge(a, b []netip.Prefix) []netip.Prefix {
	if len(b) == 0 {
		return a
	}
	both := slices.Concat(a, b)
	slices.SortFunc(both, netip.Prefix.Compare)
	return slices.Compact(both)
}

// routesOf returns the mesh's networks and others, of the families in which
// self has an address.
func routesOf(s *mesh.Snapshot, self *mesh.Node, others []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(merge(s.Networks(), others), func(network netip.Prefix) bool {
		return !hostOf(self, network.Addr().Is4()).IsValid()
	})
}
