// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// graph is the nodes and edges of a snapshot as planning looks at them. It is
// moved from one snapshot to another at the cost of what differs.
type graph struct {
	at    *mesh.Snapshot
	rules *rules
	// vertices are the nodes with a key.
	vertices seats
	// present counts the vertices of each class; kinds grows whenever a class
	// comes or goes.
	present map[class]int
	kinds   int
	offering
}

// vertex is a node that can be a peer.
type vertex struct {
	id    mesh.NodeID
	seat  seat
	node  *mesh.Node
	class class
	// forwards is true for a node that carries packets between others.
	forwards bool
	// fresh is true while the vertex's links are those that the move under way made.
	fresh bool
	// links are the edges to other vertices, in the order of link.compare.
	links []link
	// facts are what plans of others say of node.
	facts facts
}

// gone reports whether the node is no vertex any more.
func (v *vertex) gone() bool { return v.seat == unseated }

// delta is what a move of a graph changed.
type delta struct {
	// reset are vertices that came, went, or are to be seen anew because they
	// are of another class or do not forward as before.
	reset []*vertex
	// touched are vertices with a new record that is no reason for a reset.
	touched []*vertex
	// pairs are vertices of which the edge between them changed.
	pairs [][2]*vertex
	// offers are vertices that forward to other networks than before.
	offers []*vertex
}

func (d *delta) size() int { return len(d.reset) + len(d.touched) + len(d.pairs) + len(d.offers) }

// newGraph makes the graph of s.
func newGraph(s *mesh.Snapshot, r *rules) *graph {
	g := &graph{
		at: s, rules: r, vertices: newSeats(s.Nodes.Len()),
		present: make(map[class]int), offering: offersOf(s),
	}
	for _, n := range s.Nodes.All() {
		if !n.PublicKey.IsZero() {
			g.add(n)
		}
	}
	for v := range g.vertices.all() {
		v.links = g.linksOf(v)
	}
	return g
}

// maxMoved is how many nodes may differ for a move. With more, a new graph costs
// less.
const maxMoved = 128

// near reports whether a move to s is worth it.
func (g *graph) near(s *mesh.Snapshot) bool {
	n := 0
	for range s.Nodes.Changes(g.at.Nodes) {
		if n++; n > maxMoved {
			return false
		}
	}
	return true
}

// fits reports whether the graph can be moved to s, and what was planned with it.
func (g *graph) fits(s *mesh.Snapshot) bool {
	return g.rules.fit(s) && g.at.IPv4 == s.IPv4 && g.at.IPv6 == s.IPv6
}

// move makes g the graph of s, which it fits.
func (g *graph) move(s *mesh.Snapshot) *delta {
	old, d := g.at, new(delta)
	g.at = s
	var added, moved []*vertex
	for before, after := range s.Nodes.Changes(old.Nodes) {
		if v := g.replace(before, after, d); v != nil {
			added = append(added, v)
		} else if before != nil && after != nil && !reachedAlike(before, after) {
			moved = append(moved, g.vertices.get(after.ID))
		}
	}
	for _, v := range added {
		g.link(v, d)
		v.fresh = true
	}
	for a, b := range s.Relinked(old) {
		g.setLink(g.vertices.get(a), g.vertices.get(b), d)
	}
	for before, after := range s.Edges.Changes(old.Edges) {
		e := cmp.Or(after, before)
		g.setLink(g.vertices.get(e.Source), g.vertices.get(e.Target), d)
	}
	for _, v := range moved { // nil when it has no key
		if v == nil {
			continue
		}
		for e := range s.Edges.Of(v.id) {
			g.setLink(g.vertices.get(e.Source), g.vertices.get(e.Target), d)
		}
	}
	if !mesh.SameList(old.Routes, s.Routes) || g.stirred(old, s) {
		g.setOffers(offersOf(s), d)
	}
	for _, v := range added {
		v.fresh = false
	}
	return d
}

// judge makes the rules of g those of its snapshot, which are others than before.
// What hangs together does not depend on them; it is by far the most work.
func (g *graph) judge() {
	g.rules = newRules(g.at)
	g.present = make(map[class]int)
	g.kinds++
	for v := range g.vertices.all() {
		v.class = g.rules.of(v.node)
		g.count(v.class, 1)
	}
	g.offering = offersOf(g.at)
}

// replace takes over what became of a node. It returns a vertex that is new,
// and has no links yet.
func (g *graph) replace(before, after *mesh.Node, d *delta) *vertex {
	v := g.vertices.get(cmp.Or(before, after).ID)
	usable := after != nil && !after.PublicKey.IsZero()
	switch {
	case v == nil && !usable:
		return nil
	case v == nil:
		v = g.add(after)
		d.reset = append(d.reset, v)
		return v
	case !usable:
		g.remove(v)
		d.reset = append(d.reset, v)
		return nil
	}
	v.node, v.facts = after, facts{}
	k, forwards := g.rules.of(after), after.Forwards()
	if k == v.class && forwards == v.forwards {
		d.touched = append(d.touched, v)
		return nil
	}
	g.count(v.class, -1)
	g.count(k, 1)
	v.class, v.forwards = k, forwards
	d.reset = append(d.reset, v)
	return nil
}

func (g *graph) add(n *mesh.Node) *vertex {
	v := &vertex{id: n.ID, node: n, class: g.rules.of(n), forwards: n.Forwards()}
	g.vertices.add(v)
	g.count(v.class, 1)
	return v
}

func (g *graph) remove(v *vertex) {
	for _, l := range v.links {
		g.vertices.at(l.to).drop(v)
	}
	v.links = nil
	g.vertices.remove(v)
	g.count(v.class, -1)
}

func (g *graph) count(k class, by int) {
	was := g.present[k]
	g.present[k] = was + by
	if was == 0 || was+by == 0 {
		g.kinds++
	}
	if was+by == 0 {
		delete(g.present, k)
	}
}

// linksOf returns the edges of v to other vertices, in order.
func (g *graph) linksOf(v *vertex) []link {
	var links []link
	for e := range g.at.EdgesOf(v.id) {
		other := e.Source
		if other == v.id {
			other = e.Target
		}
		if to := g.vertices.get(other); to != nil && to != v && leads(e, v.node, to.node) {
			links = append(links, linkBy(e, to))
		}
	}
	slices.SortFunc(links, link.compare)
	return slices.Clone(links) // what grew may be half empty
}

// link gives a new vertex its edges.
func (g *graph) link(v *vertex, d *delta) {
	v.links = g.linksOf(v)
	for _, l := range v.links {
		to := g.vertices.at(l.to)
		l.to = v.seat
		to.set(l)
		d.pairs = append(d.pairs, [2]*vertex{v, to})
	}
}

// setLink makes the edge between two vertices, which may be nil, what the
// snapshot has.
func (g *graph) setLink(a, b *vertex, d *delta) {
	if a == nil || b == nil || a.fresh || b.fresh {
		return
	}
	was, had := a.linkTo(b)
	e, has := g.edgeBetween(a, b)
	switch {
	case has:
		is := linkBy(e, b)
		if had && was == is {
			return
		}
		a.set(is)
		is.to = a.seat
		b.set(is)
	case had:
		a.drop(b)
		b.drop(a)
	default:
		return
	}
	d.pairs = append(d.pairs, [2]*vertex{a, b})
}
