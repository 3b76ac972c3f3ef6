// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

// summarizeFrom is from how many nodes behind a gateway on a leaf gets the
// networks of the mesh instead of every address in them.
const summarizeFrom = 256

// leaf is what lies behind a node, as a neighbour of a class sees it that has
// no other neighbour. Most nodes of a large mesh are leaves at a gateway, and
// have the same plan but for their own addresses.
type leaf struct {
	// nodes and routes are sorted; nobody changes them.
	nodes, routes []netip.Prefix
}

type leafKey struct {
	gate  *vertex
	class class
}

// leafOf returns what lies behind the only neighbour of start, if it has one
// only and forwards to no network itself.
func (p *Planner) leafOf(start *vertex) (*leaf, link, bool) {
	var gate link
	for _, l := range p.links(start) {
		if !p.connects(start, l.to) {
			continue
		}
		if gate.to != nil {
			return nil, link{}, false
		}
		gate = l
	}
	if gate.to == nil || len(p.offers()[start.node.ID]) > 0 {
		return nil, link{}, false
	}
	return p.sharedLeaf(start, gate.to)(), gate, true
}

// sharedLeaf returns what makes the leaf once for all who ask for it at a time.
func (p *Planner) sharedLeaf(start, gate *vertex) func() *leaf {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := leafKey{gate, start.class}
	if p.leaves[key] == nil {
		p.leaves[key] = sync.OnceValue(func() *leaf { return p.makeLeaf(start, gate) })
	}
	return p.leaves[key]
}

// makeLeaf works out what lies behind gate for start, and so for all leaves of
// its class. start itself is among it.
func (p *Planner) makeLeaf(start, gate *vertex) *leaf {
	behind := []reached{{vertex: gate}}
	if gate.node.RunsMeshgate() {
		behind = append(behind, p.reach(gate, func(to *vertex) bool { return p.connects(start, to) })...)
	}
	l := &leaf{}
	inNetworks := func(netip.Prefix) bool { return false }
	if len(behind) >= summarizeFrom && p.grantsAll(start) {
		l.nodes = append(l.nodes, p.snapshot.Networks()...)
		inNetworks = func(own netip.Prefix) bool { return p.snapshot.Contains(own.Addr()) }
	}
	for _, r := range behind {
		for _, own := range r.node.Prefixes() {
			if !inNetworks(own) {
				l.nodes = append(l.nodes, p.granted(start, r.vertex, own)...)
			}
		}
	}
	l.nodes = sortedSet(l.nodes)
	for _, r := range behind {
		for _, network := range p.offers()[r.node.ID] {
			l.routes = append(l.routes, p.granted(start, r.vertex, network)...)
		}
	}
	l.routes = slices.DeleteFunc(sortedSet(l.routes), func(part netip.Prefix) bool {
		_, taken := slices.BinarySearchFunc(l.nodes, part, netip.Prefix.Compare)
		return taken
	})
	return l
}

// grantsAll reports whether the ACLs grant start every address of every node
// that is there. Then the addresses that nobody has are no secret: when
// somebody gets one, there is a new snapshot, and a new plan.
func (p *Planner) grantsAll(start *vertex) bool {
	for _, other := range p.present() {
		for _, own := range other.node.Prefixes() {
			if parts := p.granted(start, other, own); len(parts) != 1 || parts[0] != own.Masked() {
				return false
			}
		}
	}
	return true
}

// granted returns the parts of a network of a node that another one may have.
func (p *Planner) granted(self, of *vertex, network netip.Prefix) []netip.Prefix {
	from := endpointAt(self.node, hostOf(self.node, network.Addr().Is4()))
	return p.network.Granted(from, endpointAt(of.node, network))
}

// ofLeaf makes the plan of a leaf.
func (p *planning) ofLeaf(l *leaf, gate link) mesh.Plan {
	own := p.self.Prefixes()
	without := func(list []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(list), func(part netip.Prefix) bool {
			return slices.ContainsFunc(own, func(o netip.Prefix) bool { return o.Bits() <= part.Bits() && o.Contains(part.Addr()) })
		})
	}
	p.routed = without(l.routes)
	plan := mesh.Plan{Self: p.self, Routes: p.routes()}
	allowed := append(without(l.nodes), p.routed...)
	if len(allowed) > 0 {
		slices.SortFunc(allowed, netip.Prefix.Compare)
		plan.Peers = []mesh.Peer{{
			Node: gate.to.node, AllowedIPs: allowed, Endpoint: endpoint(p.self, gate.to.node), Protocol: gate.edge.Protocol(),
		}}
	}
	return plan
}

// sortedSet sorts list and leaves each network in it once.
func sortedSet(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}
