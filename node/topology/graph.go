// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// vertex is a node that can be a peer. All but links is set when it is made.
type vertex struct {
	node  *mesh.Node
	class class
	// index is the vertex's place in the notes of a search.
	index int
	// links are the edges to nodes that can be peers; see Planner.links.
	links  []link
	linked bool // links are known
}

// link is one end of an edge.
type link struct {
	to   *vertex
	edge mesh.Edge
	tie  uint64 // tieOf(edge)
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
		tie:    p.tie + l.tie,
	}
	if p.hops == 0 {
		next.first = l
	}
	return next
}

// reached is a node to which a search has found a path.
type reached struct {
	*vertex
	path path
}

// search is one search for paths.
type search struct {
	planner *Planner
	// notes are by index of vertex.
	notes []note
}

type note struct {
	path  path
	known bool
}

func (s *search) at(v *vertex) *note {
	for len(s.notes) <= v.index {
		s.notes = append(s.notes, note{})
	}
	return &s.notes[v.index]
}

// reach finds the shortest path from start to every node that it can have and
// returns those nodes. A path goes along edges whose ends are linked, to nodes
// that may be had, and through nodes that run Meshgate.
//
// It works hop by hop: all nodes at one distance are known before any further
// one is looked at, so that each settles on the best path of the fewest hops.
func (p *Planner) reach(start *vertex, mayHave func(*vertex) bool) []reached {
	s := &search{planner: p}
	s.at(start).known = true
	var all []*vertex
	for layer := []*vertex{start}; len(layer) > 0; {
		var next []*vertex
		for _, from := range layer {
			if from != start && !from.node.RunsMeshgate() {
				continue
			}
			next = s.step(from, mayHave, next)
		}
		all = append(all, next...)
		layer = next
	}
	found := make([]reached, len(all))
	for i, v := range all {
		found[i] = reached{v, s.at(v).path}
	}
	return found
}

// step follows the edges of from and adds to next whom they lead to first.
func (s *search) step(from *vertex, mayHave func(*vertex) bool, next []*vertex) []*vertex {
	base := s.at(from).path
	for _, l := range s.planner.links(from) {
		to := s.at(l.to)
		if to.known && (to.path.hops <= base.hops || base.along(l).compare(to.path) >= 0) {
			continue
		}
		if !s.planner.connects(from, l.to) || !mayHave(l.to) {
			continue
		}
		if !to.known {
			next = append(next, l.to)
		}
		to.path, to.known = base.along(l), true
	}
	return next
}

// nearestFirst sorts nodes by their paths.
func nearestFirst(list []reached) {
	slices.SortFunc(list, func(a, b reached) int {
		return cmp.Or(a.path.compare(b.path), cmp.Compare(a.node.ID, b.node.ID))
	})
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
