// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"iter"
	"maps"
)

// Edges is an immutable set of edges, at most one between two nodes. Like
// Nodes, a set shares memory with the one that it was made from. Nobody changes
// the attributes of an edge that is in a set. The zero value is empty.
type Edges struct {
	// ends has each edge twice, once for each of its nodes.
	ends sorted[end]
}

// end is an edge as seen from one of its nodes.
type end struct {
	edge *Edge
	// target is true at the edge's target.
	target bool
}

func (e end) at() NodeID {
	if e.target {
		return e.edge.Target
	}
	return e.edge.Source
}

func (e end) to() NodeID {
	if e.target {
		return e.edge.Source
	}
	return e.edge.Target
}

// EdgesOf returns the set of list. Of several edges between two nodes it has
// the last.
func EdgesOf(list ...Edge) Edges {
	var s Edges
	for _, e := range list {
		s = s.With(e)
	}
	return s
}

// Len returns the number of edges.
func (s Edges) Len() int { return s.ends.len() / 2 }

// Get returns the edge between two nodes.
func (s Edges) Get(a, b NodeID) (Edge, bool) {
	e, ok := s.ends.get(atEnd(a, b))
	if !ok {
		return Edge{}, false
	}
	return *e.edge, true
}

// All yields the edges in the order of their sources, then their targets.
func (s Edges) All() iter.Seq[Edge] {
	return func(yield func(Edge) bool) {
		for e := range s.ends.all() {
			if !e.target && !yield(*e.edge) {
				return
			}
		}
	}
}

// Of yields the edges of a node, in the order of the nodes at their other ends.
func (s Edges) Of(id NodeID) iter.Seq[Edge] {
	return func(yield func(Edge) bool) {
		for e := range s.ends.from(atEnd(id, "")) {
			if e.at() != id || !yield(*e.edge) {
				return
			}
		}
	}
}

// With returns the set with e in it, in place of an edge between the same
// nodes. An edge from a node to itself is left out; one that is there as it is
// leaves the set as it is.
func (s Edges) With(e Edge) Edges {
	e.Source, e.Target = min(e.Source, e.Target), max(e.Source, e.Target)
	if e.Source == e.Target {
		return s
	}
	if old, ok := s.Get(e.Source, e.Target); ok && old.Weight == e.Weight && maps.Equal(old.Attributes, e.Attributes) {
		return s
	}
	s.ends = s.ends.with(end{edge: &e}, atEnd(e.Source, e.Target))
	s.ends = s.ends.with(end{edge: &e, target: true}, atEnd(e.Target, e.Source))
	return s
}

// Without returns the set without the edge between two nodes.
func (s Edges) Without(a, b NodeID) Edges {
	s.ends = s.ends.without(atEnd(a, b)).without(atEnd(b, a))
	return s
}

// Changes yields every edge that is in one set only or differs, as it was and
// as it is; nil where it is not there. It costs what differs when one set was
// made from the other in a few changes.
func (s Edges) Changes(old Edges) iter.Seq2[*Edge, *Edge] {
	order := func(a, b end) int { return cmp.Or(cmp.Compare(a.at(), b.at()), cmp.Compare(a.to(), b.to())) }
	return func(yield func(before, after *Edge) bool) {
		for a, b := range s.ends.changes(old.ends, order, func(a, b end) bool { return a == b }) {
			if !a.target && !b.target && !yield(a.edge, b.edge) {
				return
			}
		}
	}
}

func atEnd(at, to NodeID) func(end) int {
	return func(e end) int { return cmp.Or(cmp.Compare(e.at(), at), cmp.Compare(e.to(), to)) }
}
