// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// graph holds the nodes that can be peers and the edges between them.
type graph map[mesh.NodeID]*vertex

// vertex is a node with its edges.
type vertex struct {
	node  *mesh.Node
	links []link
	// path leads here from where the search began, once it is known.
	path  path
	known bool
}

// link is one end of an edge.
type link struct {
	to   *vertex
	edge mesh.Edge
}

// newGraph builds the graph of s, for one search. Nodes without a key and edges to them are
// left out.
func newGraph(s *mesh.Snapshot) graph {
	g := make(graph, s.Nodes.Len())
	for id, n := range s.Nodes.All() {
		if !n.PublicKey.IsZero() {
			g[id] = &vertex{node: n}
		}
	}
	for _, e := range s.AllEdges() {
		source, target := g[e.Source], g[e.Target]
		if source == nil || target == nil || source == target {
			continue
		}
		source.links = append(source.links, link{to: target, edge: e})
		target.links = append(target.links, link{to: source, edge: e})
	}
	return g
}

// path is a way from one node to another.
type path struct {
	// first is the edge with which the path begins, seen from its start.
	first  link
	hops   int
	weight int64
	// tie is the sum of the edges' hashes.
	tie uint64
}

// compare orders paths: the shortest first.
func (p path) compare(q path) int {
	return cmp.Or(cmp.Compare(p.hops, q.hops), cmp.Compare(p.weight, q.weight), cmp.Compare(p.tie, q.tie))
}

// along returns the path that goes on over l.
func (p path) along(l link) path {
	next := path{
		first:  p.first,
		hops:   p.hops + 1,
		weight: p.weight + int64(l.edge.Weight),
		tie:    p.tie + tieOf(l.edge),
	}
	if p.hops == 0 {
		next.first = l
	}
	return next
}

// reach finds the shortest path from self to every node that it can have and
// returns those nodes, nearest first. A path goes along edges whose ends are
// linked, to nodes that are linked to self, and through nodes that run Meshgate.
//
// It works hop by hop: all nodes at one distance are known before any further
// one is looked at, so that each settles on the best path of the fewest hops.
func (g graph) reach(self mesh.NodeID, linked func(a, b *mesh.Node) bool) []*vertex {
	start := g[self]
	start.known = true
	var reached []*vertex
	for layer := []*vertex{start}; len(layer) > 0; {
		var next []*vertex
		for _, from := range layer {
			if from != start && !from.node.RunsMeshgate() {
				continue
			}
			for _, l := range from.links {
				to, found := l.to, from.path.along(l)
				if to.known && found.compare(to.path) >= 0 {
					continue
				}
				if !linked(from.node, to.node) || (from != start && !linked(start.node, to.node)) {
					continue
				}
				if !to.known {
					next = append(next, to)
				}
				to.path, to.known = found, true
			}
		}
		reached = append(reached, next...)
		layer = next
	}
	slices.SortFunc(reached, func(a, b *vertex) int {
		return cmp.Or(a.path.compare(b.path), cmp.Compare(a.node.ID, b.node.ID))
	})
	return reached
}

// tieOf hashes an edge to 48 bits, so that sums over paths do not overflow.
// They break ties between paths of equal weight: the same way on every node, in
// both directions, and for every part of a path as for the whole.
func tieOf(e mesh.Edge) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(e.Source))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(e.Target))
	// FNV alone maps similar names to hashes whose sums collide. The finalizer
	// of MurmurHash3 lets every input bit change every output bit.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x >> 16
}
