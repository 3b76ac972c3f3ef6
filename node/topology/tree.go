// SPDX-License-Identifier: Apache-2.0

package topology

// tree is the shortest paths from a vertex to every other one that a viewer may
// have. A path goes along edges whose ends may exchange packets, to vertices
// that the viewer may have, and through vertices that forward.
//
// When the graph changes, only the paths that change with it are looked for:
// those that led over what is gone, and those to which something new is a
// shorter way.
type tree struct {
	graph *graph
	root  *vertex
	// viewer is the class of the one that looks.
	viewer class
	// lone is true when the viewer is not at the root but behind it, with no
	// other neighbour, so that the root has to forward too.
	lone  bool
	notes map[*vertex]*note
	// known is how many vertices have a path.
	known int
	// farthest is the longest path, by hops and then by weight, to notes that are
	// not dirty; there are atFarthest as long as that.
	farthest   path
	atFarthest int

	// layers are the notes that a search has yet to go on from, by hops.
	layers [][]*note
	// dirty are the notes that the search has changed.
	dirty []*note
}

// note is what a tree says of a vertex.
type note struct {
	at    *vertex
	known bool // there is a path
	dirty bool // the note is in tree.dirty
	path  path
	// parent is the last vertex before this one on the path; children have this
	// one for their parent and are linked through next and prev.
	parent, child, next, prev *note
	claims
}

// grow finds all paths of a new tree.
func (t *tree) grow() {
	t.notes = map[*vertex]*note{t.root: {at: t.root, known: true}}
	t.known, t.atFarthest = 1, 1
	t.push(t.notes[t.root])
	t.touch(t.notes[t.root])
	t.search()
}

// update finds the paths that the deltas changed, of which none reset the root.
func (t *tree) update(deltas []*delta) {
	for _, d := range deltas {
		for _, v := range d.reset {
			t.lose(t.notes[v])
		}
		for _, pair := range d.pairs {
			a, b := t.notes[pair[0]], t.notes[pair[1]]
			if a == nil || b == nil {
				continue
			}
			if a.parent == b {
				t.lose(a)
			}
			if b.parent == a {
				t.lose(b)
			}
		}
	}
	for _, n := range t.dirty { // all that was lost
		t.reach(n.at)
	}
	for _, d := range deltas {
		for _, v := range d.reset {
			t.reach(v)
		}
		for _, pair := range d.pairs {
			t.cross(pair[0], pair[1])
			t.cross(pair[1], pair[0])
		}
	}
	t.search()
}

// lose forgets the path to a vertex and all paths that lead on from there.
func (t *tree) lose(n *note) {
	if n == nil || !n.known {
		return
	}
	n.detach()
	for lost := []*note{n}; len(lost) > 0; {
		n, lost = lost[len(lost)-1], lost[:len(lost)-1]
		for c := n.child; c != nil; c = c.next {
			lost = append(lost, c)
		}
		t.touch(n)
		n.known, n.parent, n.child, n.next, n.prev = false, nil, nil, nil, nil
		t.known--
	}
}

// reach looks for a path to v from the vertices beside it.
func (t *tree) reach(v *vertex) {
	for _, l := range v.links { // none when it is gone
		if from := t.notes[t.graph.vertices.at(l.to)]; from != nil && from.known {
			t.relax(from, l, v)
		}
	}
}

// cross looks for a path to another vertex over the edge from v.
func (t *tree) cross(v, to *vertex) {
	if from := t.notes[v]; from != nil && from.known {
		if n := t.notes[to]; n != nil && n.known && n.path.hops <= from.path.hops {
			return // no way over v is as short
		}
		if l, ok := v.linkTo(to); ok {
			t.relax(from, l, to)
		}
	}
}

// search goes on from all notes that changed. It works hop by hop: nothing that
// is found later improves a path of fewer hops.
func (t *tree) search() {
	for hops := 0; hops < len(t.layers); hops++ {
		for _, n := range t.layers[hops] {
			if n.path.hops != hops || !n.known {
				continue // found anew over fewer hops
			}
			for _, l := range n.at.links {
				t.relax(n, l, t.graph.vertices.at(l.to))
			}
		}
	}
	clear(t.layers)
	t.layers = t.layers[:0]
}

// relax takes the way over l from a known vertex to another one if it is the best
// one yet.
func (t *tree) relax(from *note, l link, v *vertex) {
	if !from.at.forwards && (from.at != t.root || t.lone) {
		return
	}
	next := from.path.along(l, v)
	to := t.notes[v]
	if to != nil && to.known && next.compare(to.path) >= 0 {
		return
	}
	if rules := t.graph.rules; !rules.connects(from.at.class, v.class) || !rules.connects(t.viewer, v.class) {
		return
	}
	switch {
	case to == nil:
		to = &note{at: v}
		t.notes[v] = to
		t.known++
	case to.known:
		to.detach()
	default:
		t.known++
	}
	t.touch(to)
	to.known, to.path = true, next
	to.attach(from)
	t.push(to)
}

func (t *tree) push(n *note) {
	for len(t.layers) <= n.path.hops {
		t.layers = append(t.layers, nil)
	}
	t.layers[n.path.hops] = append(t.layers[n.path.hops], n)
}

// touch notes that n is about to change, or has to be looked at.
func (t *tree) touch(n *note) {
	if n.dirty {
		return
	}
	n.dirty = true
	t.dirty = append(t.dirty, n)
	if n.known && n.path.length(t.farthest) == 0 {
		t.atFarthest--
	}
}

// settle ends a change: no note is dirty any more, and those without a path are
// forgotten.
func (t *tree) settle() {
	for _, n := range t.dirty {
		if n.dirty = false; !n.known {
			delete(t.notes, n.at)
			continue
		}
		t.measure(n)
	}
	t.dirty = nil
	if t.atFarthest > 0 {
		return
	}
	t.farthest, t.atFarthest = path{}, 0
	for _, n := range t.notes {
		t.measure(n)
	}
}

// measure counts a note with a path.
func (t *tree) measure(n *note) {
	switch c := n.path.length(t.farthest); {
	case c > 0:
		t.farthest, t.atFarthest = n.path, 1
	case c == 0:
		t.atFarthest++
	}
}

func (n *note) attach(parent *note) {
	n.parent, n.next, n.prev = parent, parent.child, nil
	if n.next != nil {
		n.next.prev = n
	}
	parent.child = n
}

func (n *note) detach() {
	if n.parent == nil {
		return
	}
	if n.prev == nil {
		n.parent.child = n.next
	} else {
		n.prev.next = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	}
	n.parent, n.next, n.prev = nil, nil, nil
}
