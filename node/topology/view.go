// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// summarizeFrom is from how many nodes behind a gateway on a leaf gets the
// networks of the mesh instead of every address in them. Below, a join changes
// the plan of each of them, which a mesh that fills is to see a few times only.
const summarizeFrom = 32

// view is a tree with what lies behind each neighbour of its viewer.
//
// There are two kinds. In one the viewer is at the root. In the other, a lone
// one, it is anywhere behind the root and has no other neighbour: that is the
// same for all such leaves of a class, but for their own addresses.
type view struct {
	tree
	// as is the node in whose place grants are asked for: the viewer, or any
	// node of its class.
	as *mesh.Node
	// gen is the move of the graph that the view has followed up to, used the
	// one at which it was last asked for.
	gen, used int

	// taken are the prefixes that belong to a note.
	taken map[netip.Prefix]*note
	// lists are the AllowedIPs of each neighbour, sorted. A lone view has one
	// for its root, without what is in routed.
	lists map[*vertex][]netip.Prefix
	// routed are the networks behind neighbours that are not the mesh's own.
	routed []netip.Prefix
	// summary is true when the viewer gets the networks of the mesh, and lists
	// hold only what is not in them.
	summary bool
	// grantsAll is what was found out when the graph's kinds were these.
	grantsAll bool
	kinds     int
	// disputed is true when a note is contested.
	disputed bool
	// moved are the notes of a lone view that changed since the move movedFrom.
	moved     []movedNote
	movedFrom int

	plan mesh.Plan // of a view that is not lone
}

// claims are what a note puts behind a neighbour.
type claims struct {
	node   *mesh.Node // the record that they are of
	behind *vertex
	// own are parts of the node's own networks, nets of those it forwards to.
	own, nets []netip.Prefix
	// contested is true when another note claims one of them too. Then the
	// nearest has it, and what changes has to be decided among all.
	contested bool
}

// edits are what changes in one list.
type edits struct{ removed, added []netip.Prefix }

// pass is one bringing up to date of a view.
type pass struct {
	*view
	// edits are by neighbour.
	edits  map[*vertex]*edits
	routed edits
	// stale are the neighbours of which the plan's peer has changed.
	stale map[mesh.NodeID]bool
	// all is true when every peer may have changed.
	all bool
}

// newView makes a view from nothing.
func newView(g *graph, key viewKey, as *mesh.Node) *view {
	w := &view{
		tree: tree{graph: g, root: key.root, viewer: key.viewer, lone: key.lone}, as: as,
		lists: make(map[*vertex][]netip.Prefix), kinds: -1,
	}
	w.grow()
	p := &pass{view: w, all: true}
	p.summarize()
	p.claimAll()
	p.finish()
	return w
}

// follow brings the view up to date after moves of the graph of which none
// reset its root.
func (w *view) follow(deltas []*delta, now int) {
	p := &pass{view: w, edits: make(map[*vertex]*edits), stale: make(map[mesh.NodeID]bool)}
	w.update(deltas)
	redo := p.summarize()
	for _, d := range deltas {
		for _, v := range d.touched {
			p.stale[v.id] = true
			redo = p.touched(v) || redo
		}
		for _, v := range d.offers {
			if n := w.notes[v]; n != nil && n.known {
				w.touch(n)
			}
		}
		for _, v := range d.reset {
			p.stale[v.id] = true
		}
		for _, pair := range d.pairs {
			if pair[0] == w.root || pair[1] == w.root {
				p.stale[pair[0].id], p.stale[pair[1].id] = true, true
			}
		}
	}
	if redo || !p.claimDirty() {
		p.claimAll()
	}
	if w.lone {
		w.remember(now)
	}
	p.finish()
}

// remember notes for near views which notes the move to now has changed.
func (w *view) remember(now int) {
	if len(w.moved)+len(w.dirty) > maxMovedNotes {
		w.moved, w.movedFrom = nil, now
		return
	}
	for _, n := range w.dirty {
		w.moved = append(w.moved, movedNote{now, n.at})
	}
}

// touched takes over the new record of a vertex and reports whether all claims
// have to be made anew.
func (p *pass) touched(v *vertex) (redo bool) {
	n := p.notes[v]
	if n == nil || !n.known || n.node == nil {
		return false
	}
	same := n.node.IPv4 == v.node.IPv4 && n.node.IPv6 == v.node.IPv6
	if v == p.root && !p.lone {
		p.as = v.node
		p.all = true // endpoints depend on both ends
		n.node = v.node
		return !same
	}
	if !same {
		p.touch(n)
	}
	return false
}

// summarize decides whether the viewer gets networks instead of addresses and
// reports whether that is another decision than before.
func (p *pass) summarize() bool {
	if !p.lone {
		return false
	}
	if p.kinds != p.graph.kinds {
		// Addresses that nobody has are no secret then: when somebody gets one
		// there is a new snapshot, and a new plan.
		p.kinds, p.grantsAll = p.graph.kinds, p.graph.grantsAll(p.viewer)
	}
	was := p.summary
	p.summary = p.grantsAll && p.known >= summarizeFrom
	return p.summary != was
}

// claimDirty renews the claims of the notes that changed. It returns false when
// they are contested, and all have to be made anew.
func (p *pass) claimDirty() bool {
	for _, n := range p.dirty {
		if n.contested || n.at == p.root && !p.lone {
			return false
		}
		p.release(n)
	}
	for _, n := range p.dirty {
		if n.known && !(p.claimOwn(n) && p.claimNets(n)) {
			return false
		}
	}
	return true
}

// claimAll makes all claims anew: first every node's own addresses, then the
// networks that nodes forward to, nearest first.
func (p *pass) claimAll() {
	p.taken = make(map[netip.Prefix]*note, 2*p.known)
	p.disputed = false
	nearest := make([]*note, 0, p.known)
	for _, n := range p.notes {
		n.claims = claims{}
		if n.known {
			nearest = append(nearest, n)
		}
	}
	slices.SortFunc(nearest, func(a, b *note) int { return a.path.compare(b.path) })
	p.edits = make(map[*vertex]*edits)
	for _, n := range nearest {
		p.claimOwn(n)
	}
	for _, n := range nearest {
		p.claimNets(n)
	}
	p.replaceLists()
}

// claimOwn claims the own addresses of a node. It reports whether nobody
// contests them.
func (p *pass) claimOwn(n *note) bool {
	n.node, n.behind = n.at.node, n.path.first
	if p.lone {
		n.behind = p.root
	}
	free := true
	for _, own := range n.node.Prefixes() {
		switch {
		case n.behind == nil: // the viewer itself
			free = p.take(n, own.Masked()) && free
		case !p.summary || !p.graph.at.Contains(own.Addr()):
			for _, part := range p.graph.rules.grants(p.as, n.node, own) {
				if !p.take(n, part) {
					free = false
					continue
				}
				n.own = append(n.own, part)
				e := p.editsOf(n.behind)
				e.added = append(e.added, part)
			}
		}
	}
	return free
}

// claimNets claims the networks that a node forwards to. One that the viewer
// itself forwards to stays there.
func (p *pass) claimNets(n *note) bool {
	if n.behind == nil {
		return true
	}
	free := true
	for _, network := range p.graph.offers[n.at.id] {
		if !p.lone && slices.Contains(p.graph.offers[p.root.id], network) || p.graph.leaves(n.at.id, network) {
			continue
		}
		for _, part := range p.graph.rules.grants(p.as, n.node, network) {
			if !p.take(n, part) {
				free = false
				continue
			}
			n.nets = append(n.nets, part)
			p.routed.added = append(p.routed.added, part)
			if !p.lone {
				e := p.editsOf(n.behind)
				e.added = append(e.added, part)
			}
		}
	}
	return free
}

// take gives a prefix to a note, unless another one has it.
func (p *pass) take(n *note, part netip.Prefix) bool {
	if holder := p.taken[part]; holder != nil {
		n.contested, holder.contested, p.disputed = true, true, true
		return false
	}
	p.taken[part] = n
	return true
}

// release gives back what a note claimed.
func (p *pass) release(n *note) {
	if n.behind == nil {
		return // a new one
	}
	e := p.editsOf(n.behind)
	for _, part := range n.own {
		delete(p.taken, part)
		e.removed = append(e.removed, part)
	}
	for _, part := range n.nets {
		delete(p.taken, part)
		p.routed.removed = append(p.routed.removed, part)
		if !p.lone {
			e.removed = append(e.removed, part)
		}
	}
	n.claims = claims{}
}

func (p *pass) editsOf(behind *vertex) *edits {
	e := p.edits[behind]
	if e == nil {
		e = new(edits)
		p.edits[behind] = e
	}
	return e
}

// replaceLists makes the edits those that lead from the lists before to the
// ones that were claimed anew.
func (p *pass) replaceLists() {
	for behind, before := range p.lists {
		p.editsOf(behind).removed = before
	}
	p.routed = edits{removed: p.view.routed}
	for _, n := range p.notes {
		p.routed.added = append(p.routed.added, n.nets...)
	}
}

// finish puts the edits into the lists and makes the plan of them.
func (p *pass) finish() {
	for behind, e := range p.edits {
		list, changed := e.apply(p.lists[behind])
		if !changed {
			continue
		}
		if !p.lone && p.stale != nil {
			p.stale[behind.id] = true
		}
		if p.lists[behind] = list; len(list) == 0 {
			delete(p.lists, behind)
		}
	}
	routed, changed := p.routed.apply(p.view.routed)
	p.view.routed = routed
	if !p.lone {
		p.makePlan(changed)
	}
	p.settle()
}

// apply returns the list with the edits in it. It is the same memory as before
// when they change nothing.
func (e *edits) apply(list []netip.Prefix) (_ []netip.Prefix, changed bool) {
	slices.SortFunc(e.added, netip.Prefix.Compare)
	// What is removed may be a list that others hold.
	removed := slices.Clone(e.removed)
	slices.SortFunc(removed, netip.Prefix.Compare)
	if slices.Equal(e.added, removed) {
		return list, false
	}
	next := make([]netip.Prefix, 0, max(0, len(list)+len(e.added)-len(removed)))
	added := e.added
	for len(added) > 0 || len(removed) > 0 {
		at := 0
		if len(removed) == 0 || len(added) > 0 && added[0].Compare(removed[0]) <= 0 {
			at, _ = slices.BinarySearchFunc(list, added[0], netip.Prefix.Compare)
			if len(removed) > 0 && added[0] == removed[0] {
				added, removed = added[1:], removed[1:]
				continue // stays
			}
			next = append(append(next, list[:at]...), added[0])
			list, added = list[at:], added[1:]
			continue
		}
		at, _ = slices.BinarySearchFunc(list, removed[0], netip.Prefix.Compare)
		next = append(next, list[:at]...)
		list, removed = list[at+1:], removed[1:]
	}
	return append(next, list...), true
}
