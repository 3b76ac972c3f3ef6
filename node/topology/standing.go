// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// standing reports whether an edge between two nodes is a pair that stands
// without being asked for: both take part in pairs, and neither knows where to
// send packets for the other. No packet travels along such an edge before the
// two have found a path, which takes signals by way of a gateway. So it is no
// link of the graph, not of these two and not of anybody who would go through
// one of them.
func standing(a, b *mesh.Node) bool {
	return a.Paths && b.Paths && !callable(a, b) && !callable(b, a)
}

// deaf reports whether an edge asks for a path that has to be found, and one of
// the two nodes finds none: a stock WireGuard peer, which knows no ICE. Where neither
// can be called either, no packet ever travels along it, and what a gateway
// carries between the two must not be led there. Such an edge is no link. With a gateway
// it is one, as the only edge that a node may have.
func deaf(e mesh.Edge, a, b *mesh.Node) bool {
	return (stock(a) || stock(b)) && !a.Forwards() && !b.Forwards() &&
		e.Protocol() != v1.ConnectProtocol_CONNECT_NATIVE && !callable(a, b) && !callable(b, a)
}

// stock reports whether a node speaks WireGuard and nothing else.
func stock(n *mesh.Node) bool { return !n.Paths && !n.RunsMeshgate() }

// leads reports whether an edge between two nodes is a link of the graph.
func leads(e mesh.Edge, a, b *mesh.Node) bool { return !standing(a, b) && !deaf(e, a, b) }

// callable reports whether endpoint(self, peer) is one.
func callable(self, peer *mesh.Node) bool {
	if peer.PrimaryEndpoint != "" {
		return true // without a look at the rest, as for most of a large mesh
	}
	return endpoint(self, peer) != ""
}

// reachedAlike reports whether the same edges of a node lead by two records of it.
func reachedAlike(before, after *mesh.Node) bool {
	if !before.Paths && !after.Paths && before.Forwards() && after.Forwards() {
		return true // a gateway, which has many edges
	}
	return before.Paths == after.Paths && stock(before) == stock(after) && before.Forwards() == after.Forwards() &&
		before.PrimaryEndpoint == after.PrimaryEndpoint && before.Zone == after.Zone &&
		slices.Equal(before.WireGuardEndpoints, after.WireGuardEndpoints)
}

// edgeBetween is the edge of the graph between two vertices.
func (g *graph) edgeBetween(a, b *vertex) (mesh.Edge, bool) {
	e, ok := g.at.EdgeBetween(a.node, b.node)
	return e, ok && leads(e, a.node, b.node)
}

// withStanding adds the pairs of a vertex that stand without being asked for to
// its plan. What they allow may be behind another peer of the plan, too, which
// carries the packets until the pair has a path.
func (w *work) withStanding(plan mesh.Plan, v *vertex) mesh.Plan {
	if !v.node.Paths {
		return plan // a gateway, which has as many edges as there are nodes
	}
	for e := range w.graph.at.Edges.Of(v.id) {
		other := e.Source
		if other == v.id {
			other = e.Target
		}
		to := w.graph.vertices.get(other)
		if to == nil || to == v || !standing(v.node, to.node) {
			continue
		}
		peer := w.pair(v, to)
		if len(peer.AllowedIPs) > 0 && len(w.pair(to, v).AllowedIPs) > 0 {
			plan.Peers = plan.Peers.With(peer)
		}
	}
	return plan
}
