// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// nearFrom is from how many nodes on a mesh has near views.
	nearFrom = 256
	// maxBeside is with how many neighbours a node gets a near view. One with
	// more is better off with a tree of its own that follows changes.
	maxBeside = 1024
	// maxNearNotes bounds the notes of all near views that are kept: some 50 MB.
	maxNearNotes = 1 << 18
	// maxMovedNotes is of how many notes a lone view remembers that they changed.
	maxMovedNotes = 1024
)

// near is the plan of a node with more than one neighbour, one of them a
// gateway, in a large mesh where it may have every address. The paths that begin
// at the gateway are those of the lone view from there, and all that lies behind
// them is summarized. What is looked for is only what has a better path through
// another neighbour: a few nodes around, however many there are.
type near struct {
	root, home *vertex
	toHome     link
	// base is the lone view from home, lists and routed what it had.
	base         *view
	list, routed []netip.Prefix
	// paths are those that do not begin at home, with the root's own.
	paths map[*vertex]path
	// gen and used are as those of a view.
	gen, used int
	plan      mesh.Plan
}

// movedNote is a vertex of which the note of a view changed in a move.
type movedNote struct {
	gen int
	at  *vertex
}

// homeOf returns the gateway behind which a node looks for what is not near it:
// of several that which is reached by the best edge. It is nil for a node that
// needs a tree of its own.
func (w *work) homeOf(v *vertex) *vertex {
	g := w.graph
	if g.vertices.len() < nearFrom || len(v.links) > maxBeside || len(g.offers[v.id]) > 0 || v.node.HoldsState() {
		return nil
	}
	var home *vertex
	var best path
	for _, l := range v.links {
		to := g.vertices.at(l.to)
		if !to.node.HoldsState() || !to.forwards || !g.rules.connects(v.class, to.class) {
			continue
		}
		if p := (path{}).along(l, to); home == nil || p.compare(best) < 0 {
			home, best = to, p
		}
	}
	if home == nil || !g.grantsAll(v.class) {
		return nil
	}
	return home
}

// grantsAll reports whether nodes of a class may have every address of every
// node.
func (g *graph) grantsAll(viewer class) bool {
	for k := range g.present {
		if !g.rules.grantsWhole(viewer, k) {
			return false
		}
	}
	return true
}

// nearPlan plans for a node by a near view. It returns false for one that needs
// a tree of its own.
func (w *work) nearPlan(v *vertex) (mesh.Plan, bool) {
	home := w.homeOf(v)
	if home == nil {
		return mesh.Plan{}, false
	}
	base := w.view(viewKey{root: home, viewer: v.class, lone: true}, v.node)
	if !base.summary || base.disputed {
		return mesh.Plan{}, false // the nearest of all has what two claim
	}
	n := w.near[v]
	if n == nil || n.gen < w.base || n.home != home || !n.holds(base, w.log[n.gen-w.base:]) {
		w.forget(v)
		n = &near{root: v, home: home, base: base, list: base.lists[home], routed: base.routed}
		n.search(w.graph)
		n.plan = n.makePlan(w.graph)
		w.near[v] = n
		w.nearNotes += len(n.paths)
	}
	n.gen = w.base + len(w.log)
	n.used = n.gen
	plan := n.plan
	w.makeNearRoom(v)
	return plan, true
}

func (w *work) forget(v *vertex) {
	if n := w.near[v]; n != nil {
		w.nearNotes -= len(n.paths)
		delete(w.near, v)
	}
}

// makeNearRoom is makeRoom for near views.
func (w *work) makeNearRoom(last *vertex) {
	if w.nearNotes <= maxNearNotes {
		return
	}
	for v, n := range w.near {
		if n.used+maxIdle < w.base+len(w.log) {
			w.forget(v)
		}
	}
	if w.nearNotes > maxNearNotes {
		w.forget(last)
	}
}

// search finds the paths that are better than those through home. Of the edges
// that lead on from a neighbour, which are as many as neighbours squared, almost
// none makes one: what is longer than the farthest way through home is not looked
// at, where there is such a way to everywhere.
func (n *near) search(g *graph) {
	n.paths = map[*vertex]path{n.root: {}}
	n.toHome, _ = n.root.linkTo(n.home)
	all, farthest := n.base.known == g.vertices.len(), n.throughHome(n.base.farthest)
	layer := []*vertex{n.root}
	for hops := 0; len(layer) > 0 && !(all && hops >= farthest.hops); hops++ {
		var next []*vertex
		for _, from := range layer {
			if !from.forwards && from != n.root {
				continue
			}
			p := n.paths[from]
			for _, l := range from.links {
				if all && hops+1 == farthest.hops && p.weight+int64(l.weight) > farthest.weight {
					continue
				}
				if to := g.vertices.at(l.to); n.relax(g, from, p.along(l, to), to) {
					next = append(next, to)
				}
			}
		}
		layer = next
	}
}

// throughHome is the way from the root through home that goes on as p.
func (n *near) throughHome(p path) path {
	return path{first: n.home, hops: p.hops + 1, weight: p.weight + int64(n.toHome.weight), tie: p.tie + n.toHome.tie()}
}

// relax takes a path to a vertex if it is the best one yet, and reports whether
// the vertex had none of as few hops.
func (n *near) relax(g *graph, from *vertex, p path, to *vertex) (first bool) {
	if !n.better(p, to) || !g.rules.connects(from.class, to.class) || !g.rules.connects(n.root.class, to.class) {
		return false
	}
	first = !n.has(to)
	n.paths[to] = p
	return first
}

// makePlan puts what the paths lead to behind the neighbours that they begin
// with, nearest first, and all else behind home.
func (n *near) makePlan(g *graph) mesh.Plan {
	self := n.root.node
	own := self.Prefixes()
	taken := make(map[netip.Prefix]bool, 2*len(n.paths))
	for _, o := range own {
		taken[o.Masked()] = true
	}
	lists := make(map[*vertex][]netip.Prefix, len(n.root.links))
	claim := func(p path, part netip.Prefix) bool {
		if taken[part] {
			return false
		}
		taken[part] = true
		lists[p.first] = append(lists[p.first], part)
		return true
	}
	nearest := n.nearest()
	for _, at := range nearest {
		n.claimOwn(at, lists, claim)
	}
	var routed []netip.Prefix // home has no path to all who offer them
	for _, at := range nearest {
		for _, network := range g.offers[at.vertex.id] {
			if g.leaves(at.vertex.id, network) {
				continue
			}
			for _, part := range g.rules.grants(self, at.node, network) {
				if claim(at.path, part) {
					routed = append(routed, part)
				}
			}
		}
	}
	rest := func(list []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(without(list, own)), func(part netip.Prefix) bool { return taken[part] })
	}
	lists[n.home] = merge(merge(rest(n.list), g.at.Networks()), rest(n.routed))
	peers := make([]mesh.Peer, 0, len(lists))
	for v, allowed := range lists {
		l, _ := n.root.linkTo(v)
		if !mesh.SameList(allowed, v.learned().own) {
			slices.SortFunc(allowed, netip.Prefix.Compare)
		}
		peers = append(peers, mesh.Peer{
			Node: v.node, AllowedIPs: allowed, Endpoint: v.endpointFor(self), Protocol: l.protocol(),
		})
	}
	return mesh.Plan{Self: self, Peers: mesh.PeersOf(peers...), Routes: routesOf(g.at, self, without(merge(n.routed, routed), own))}
}

// claimOwn claims the own addresses of a vertex. Those of a neighbour are its
// list, which all plans share, until it gets something else.
func (n *near) claimOwn(at reached, lists map[*vertex][]netip.Prefix, claim func(path, netip.Prefix) bool) {
	all := at.path.first == at.vertex && len(lists[at.vertex]) == 0
	own := at.learned().own
	for _, part := range own {
		all = claim(at.path, part) && all
	}
	if all && len(own) > 0 {
		lists[at.vertex] = slices.Clip(own)
	}
}

// reached is a vertex and the path to it.
type reached struct {
	*vertex
	path path
}

// nearest returns the vertices of the paths but the root, the nearest first.
func (n *near) nearest() []reached {
	list := make([]reached, 0, len(n.paths))
	for v, p := range n.paths {
		if v != n.root {
			list = append(list, reached{v, p})
		}
	}
	slices.SortFunc(list, func(a, b reached) int {
		return cmp.Or(a.path.compare(b.path), cmp.Compare(a.id, b.id))
	})
	return list
}

// holds reports whether the plan is still right after moves of the graph: that
// they concern neither a node that it looks at nor an edge from one of them.
func (n *near) holds(base *view, deltas []*delta) bool {
	if n.base != base || !mesh.SameList(n.list, base.lists[n.home]) || !mesh.SameList(n.routed, base.routed) || n.gen < base.movedFrom {
		return false
	}
	for _, d := range deltas {
		if len(d.offers) > 0 || slices.ContainsFunc(d.touched, n.looksAt) || slices.ContainsFunc(d.reset, n.minds) {
			return false
		}
		for _, pair := range d.pairs {
			if n.mindsEdge(pair[0], pair[1]) || n.mindsEdge(pair[1], pair[0]) {
				return false
			}
		}
	}
	for i := len(base.moved) - 1; i >= 0 && base.moved[i].gen > n.gen; i-- {
		if n.minds(base.moved[i].at) {
			return false
		}
	}
	return true
}

// minds reports whether another path through home to a vertex, or another class
// of it, may make a difference: when there is a path without home or would be.
func (n *near) minds(v *vertex) bool {
	return n.looksAt(v) || slices.ContainsFunc(v.links, func(l link) bool {
		return n.mindsEdge(n.base.graph.vertices.at(l.to), v)
	})
}

// mindsEdge reports whether the edge from one vertex to another, which may be
// gone, makes a difference: when a path went along it, or would now.
func (n *near) mindsEdge(from, to *vertex) bool {
	known, ok := n.paths[from]
	if !ok {
		return false
	}
	if from == n.root || to == n.root || n.has(to) && n.paths[to].hops > known.hops {
		return true
	}
	l, exists := from.linkTo(to)
	return exists && (from.forwards || from == n.root) && n.better(known.along(l, to), to)
}

// better reports whether a path is better than the one known.
func (n *near) better(p path, to *vertex) bool {
	if b := n.base.notes[to]; b != nil && b.known {
		if p.compare(n.throughHome(b.path)) >= 0 {
			return false
		}
	}
	known, had := n.paths[to]
	return !had || p.compare(known) < 0
}

func (n *near) has(v *vertex) bool {
	_, ok := n.paths[v]
	return ok
}

// looksAt reports whether the record of a vertex is in the plan.
func (n *near) looksAt(v *vertex) bool { return v == n.home || n.has(v) }
