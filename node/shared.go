// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// unshared returns the plan with each network behind one peer, which is all that
// WireGuard knows. The plan of a gateway has what a pair may carry twice: behind
// the node at its other end, and behind who carries it until the pair stands.
func unshared(plan mesh.Plan, stands map[mesh.NodeID]bool) mesh.Plan {
	pairs := make(map[netip.Prefix]mesh.NodeID)
	for p := range plan.Peers.All() {
		if isPair(p) {
			for _, a := range p.AllowedIPs {
				pairs[a] = p.Node.ID
			}
		}
	}
	if len(pairs) == 0 {
		return plan
	}
	carried := make(map[netip.Prefix]bool)
	before := plan.Peers
	for p := range before.All() {
		if isPair(p) {
			continue
		}
		for _, a := range p.AllowedIPs {
			if id, ok := pairs[a]; ok && !stands[id] {
				carried[a] = true
			}
		}
		plan.Peers = less(plan.Peers, p, func(a netip.Prefix) bool {
			id, ok := pairs[a]
			return ok && stands[id]
		})
	}
	for p := range before.All() {
		if isPair(p) {
			// Of two pairs the last one has what both could.
			plan.Peers = less(plan.Peers, p, func(a netip.Prefix) bool { return carried[a] || pairs[a] != p.Node.ID })
		}
	}
	return plan
}

// isPair reports whether a peer of a plan is the other end of a pair: neither of
// the two can call the other.
func isPair(p mesh.Peer) bool { return p.Node.Paths && p.Endpoint == "" }

// less returns peers with one of them without some of its networks.
func less(peers mesh.Peers, p mesh.Peer, drop func(netip.Prefix) bool) mesh.Peers {
	if !slices.ContainsFunc(p.AllowedIPs, drop) {
		return peers
	}
	p.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), drop)
	return peers.With(p)
}
