// SPDX-License-Identifier: Apache-2.0

// Package topology plans the data plane of a node: which WireGuard peers it
// has, what lies behind each, and what it routes into the mesh. A plan is a
// pure function of a mesh.Snapshot; DESIGN.md tells why it is made as it is.
package topology

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

// For plans for node self. Its peers are its neighbours by edge; each node
// further away lies behind the one neighbour that its shortest path begins
// with: fewest hops, then least weight, then a hash of the edges that every
// node computes alike. The network ACLs decide what of it self may have at all:
// nothing else is in AllowedIPs. Nodes without a public key are left out, and
// only nodes that run Meshgate forward to others, since no other applies ACLs
// to what it forwards.
//
// The error wraps mesh.ErrNotFound when s does not hold self. The plan shares
// its nodes with s.
func For(s *mesh.Snapshot, self mesh.NodeID) (mesh.Plan, error) { return New(s, nil).Plan(self) }

// planning is the making of one plan.
type planning struct {
	*Planner
	self *mesh.Node
	// reached are the other nodes that self may have, nearest first.
	reached []reached

	// taken are the prefixes that belong to a node.
	taken map[netip.Prefix]bool
	// allowed collects the AllowedIPs of each neighbour.
	allowed map[*vertex][]netip.Prefix
	// routed are the networks behind peers that are not the mesh's own.
	routed []netip.Prefix
}

// claimNodes puts the own addresses of every reachable node behind its path,
// nearest first. An address that two nodes hold goes to the nearer one.
func (p *planning) claimNodes() {
	p.taken = make(map[netip.Prefix]bool, 2*len(p.reached))
	p.allowed = make(map[*vertex][]netip.Prefix)
	for _, own := range p.self.Prefixes() {
		p.taken[own.Masked()] = true
	}
	for _, to := range p.reached {
		for _, own := range to.node.Prefixes() {
			p.claim(to, own)
		}
	}
}

// claimRoutes puts the networks that nodes forward to behind their paths. A
// network that several offer goes to the nearest; one that self offers stays.
func (p *planning) claimRoutes() {
	offers := p.offers()
	for _, to := range p.reached {
		for _, network := range offers[to.node.ID] {
			if !slices.Contains(offers[p.self.ID], network) {
				p.routed = append(p.routed, p.claim(to, network)...)
			}
		}
	}
}

// claim puts the parts of network that self may reach behind the path to the
// node that holds it, except those that were taken before, and returns them.
func (p *planning) claim(to reached, network netip.Prefix) []netip.Prefix {
	from := endpointAt(p.self, hostOf(p.self, network.Addr().Is4()))
	granted := p.network.Granted(from, endpointAt(to.node, network))
	parts := slices.DeleteFunc(granted, func(part netip.Prefix) bool { return p.taken[part] })
	for _, part := range parts {
		p.taken[part] = true
	}
	neighbour := to.path.first.to
	p.allowed[neighbour] = append(p.allowed[neighbour], parts...)
	return parts
}

// peers returns the neighbours that something lies behind.
func (p *planning) peers() []mesh.Peer {
	var peers []mesh.Peer
	for _, to := range p.reached {
		allowed := p.allowed[to.vertex]
		if len(allowed) == 0 {
			continue
		}
		slices.SortFunc(allowed, netip.Prefix.Compare)
		peers = append(peers, mesh.Peer{
			Node:       to.node,
			AllowedIPs: allowed,
			Endpoint:   endpoint(p.self, to.node),
			Protocol:   to.path.first.edge.Protocol(),
		})
	}
	slices.SortFunc(peers, func(a, b mesh.Peer) int { return cmp.Compare(a.Node.ID, b.Node.ID) })
	return peers
}

// routes returns the mesh's networks and the networks behind peers, of the
// families in which self has an address.
func (p *planning) routes() []netip.Prefix {
	routes := slices.DeleteFunc(append(p.snapshot.Networks(), p.routed...), func(network netip.Prefix) bool {
		return !hostOf(p.self, network.Addr().Is4()).IsValid()
	})
	slices.SortFunc(routes, netip.Prefix.Compare)
	return routes
}

// hostOf returns the node's own address of a family; zero if it has none.
func hostOf(n *mesh.Node, v4 bool) netip.Prefix {
	own := n.IPv6
	if v4 {
		own = n.IPv4
	}
	return netip.PrefixFrom(own.Addr(), own.Addr().BitLen())
}

// endpointAt returns n at one of its addresses.
func endpointAt(n *mesh.Node, network netip.Prefix) policy.Endpoint {
	return policy.Endpoint{Node: string(n.ID), Network: network}
}
