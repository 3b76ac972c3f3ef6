// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"iter"
)

// Relinked yields pairs of nodes, among them every pair of which the implicit
// edge is in one of s and old only, or differs; none twice, and the lower id
// first. EdgeBetween tells what became of it. It costs what differs when one
// snapshot was made from the other in a few changes: a node that came or left is
// told with those around it, and so are those that its coming pushed out of each
// other's reach, or its going let in again.
func (s *Snapshot) Relinked(old *Snapshot) iter.Seq2[NodeID, NodeID] {
	r := relinking{is: s.Nodes.get(), was: old.Nodes.get(), pairs: make(map[[2]NodeID]bool)}
	var all shifts
	zones := make(map[string]*shifts)
	zoned := func(n *Node) *shifts {
		if n == nil || n.Zone == "" {
			return new(shifts)
		}
		if zones[n.Zone] == nil {
			zones[n.Zone] = new(shifts)
		}
		return zones[n.Zone]
	}
	for before, after := range s.Nodes.Changes(old.Nodes) {
		a, b := before.ifLinked(), after.ifLinked()
		all.add(a, b)
		if a == nil || b == nil || a.Zone != b.Zone {
			zoned(a).add(a, nil)
			zoned(b).add(nil, b)
		}
		if a.HoldsState() != b.HoldsState() {
			r.gateway(a, b)
		}
	}
	r.shifted(&all, (*nodeIndex).ofAll)
	for zone, moved := range zones {
		r.shifted(moved, func(x *nodeIndex) ring { return x.inZone(zone) })
	}
	return func(yield func(a, b NodeID) bool) {
		for pair := range r.pairs {
			if !yield(pair[0], pair[1]) {
				return
			}
		}
	}
}

// shifts are the nodes that came to a ring and left it.
type shifts struct{ came, left []*Node }

// add notes a node as it was and is on the ring; nil where it is not there.
func (m *shifts) add(before, after *Node) {
	switch {
	case before == nil && after != nil:
		m.came = append(m.came, after)
	case before != nil && after == nil:
		m.left = append(m.left, before)
	}
}

// relinking is what Relinked has found.
type relinking struct {
	is, was *nodeIndex
	pairs   map[[2]NodeID]bool
}

func (r *relinking) add(a, b NodeID) {
	if a != b {
		r.pairs[[2]NodeID{min(a, b), max(a, b)}] = true
	}
}

// gateway adds the pairs of a node that became a gateway, or is none any more.
// When there are more gateways than public nodes are linked to, another one has
// or had its place.
func (r *relinking) gateway(before, after *Node) {
	for _, x := range []*nodeIndex{r.was, r.is} {
		n := 0
		for g := range x.gateways.all() {
			if n++; n > maxGateways+1 {
				break
			}
			same := before != nil && g.node.ID == before.ID || after != nil && g.node.ID == after.ID
			if !same && x.gateways.len() <= maxGateways {
				continue
			}
			for e := range r.is.public.all() {
				r.add(g.node.ID, e.node.ID)
			}
		}
	}
}

// shifted adds the pairs of a ring on which nodes came and left. Two others have
// become neighbours where one in between left, and are none any more where one
// came in between.
func (r *relinking) shifted(m *shifts, on func(*nodeIndex) ring) {
	most := len(m.came) + len(m.left)
	if most == 0 {
		return
	}
	was, is := on(r.was), on(r.is)
	for _, n := range m.came {
		r.around(n.ID, r.is, is)
	}
	for _, n := range m.left {
		r.around(n.ID, r.was, was)
	}
	switch {
	case most > 1:
		r.slid(was, is)
	case len(m.came) > 0:
		r.across(was, m.came[0].ID)
	default:
		r.across(is, m.left[0].ID)
	}
}

// around adds the pairs of a node on a ring of x with its neighbours there, and
// with the gateways.
func (r *relinking) around(id NodeID, x *nodeIndex, on ring) {
	self, ok := x.byID.get(atID(id))
	if !ok {
		return
	}
	for e := range on.around(self) {
		r.add(id, e.node.ID)
	}
	for e := range x.gatewaysOf(self) {
		r.add(id, e.node.ID)
	}
}

// across adds the pairs that the only node which came or left separates, as the
// ring without it has them: they stand on either side of its place, ringReach
// steps from each other.
func (r *relinking) across(on ring, id NodeID) {
	behind, before := on.sides(&entry{node: &Node{ID: id}, place: placeOf(id)})
	for i, a := range before { // i+1 steps before the place
		if j := ringReach - i - 1; j < len(behind) {
			r.add(a.node.ID, behind[j].node.ID)
		}
	}
}

// slid adds the pairs of which the distance changed when several nodes came and
// left. Of those that were and are on the ring, a node had so many behind it
// within reach as did not leave, and has so many as did not come: the difference
// are those whom it gained or lost.
func (r *relinking) slid(was, is ring) {
	stay, came, left := align(was, is)
	due := 0 // for how many more the next gap is within reach
	// The second time around; the first one finds what lies behind the last.
	for i := 2*len(stay) - 1; i >= 0; i-- {
		at := i % len(stay)
		if came[at]+left[at] > 0 {
			due = ringReach
		}
		if due--; due < 0 || i >= len(stay) {
			continue
		}
		had, has := left.within(at, ringReach), came.within(at, ringReach)
		for n := min(had, has) + 1; n <= min(max(had, has), len(stay)-1); n++ {
			r.add(stay[at], stay[(at+n)%len(stay)])
		}
	}
}

// gaps counts, for each node that stays on a ring, those right behind it that do
// not.
type gaps []int

// within returns how many of those who stay are up to reach steps behind the i-th,
// with the others in between.
func (g gaps) within(i, reach int) (n int) {
	for n < len(g) {
		if reach -= g[(i+n)%len(g)] + 1; reach < 0 {
			return n
		}
		n++
	}
	return n
}

// align returns the nodes that are on both rings, and where between them others
// are that came or left.
func align(was, is ring) (stay []NodeID, came, left gaps) {
	order := func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.node.ID, b.node.ID))
	}
	var before [2]int // that came and left before the first who stays
	count := func(list gaps, first *int) {
		if len(list) == 0 {
			*first++
			return
		}
		list[len(list)-1]++
	}
	old, next := was.entries(), is.entries()
	for len(old) > 0 || len(next) > 0 {
		switch {
		case len(next) == 0 || len(old) > 0 && order(old[0], next[0]) < 0:
			count(left, &before[1])
			old = old[1:]
		case len(old) == 0 || order(old[0], next[0]) > 0:
			count(came, &before[0])
			next = next[1:]
		default:
			stay, came, left = append(stay, next[0].node.ID), append(came, 0), append(left, 0)
			old, next = old[1:], next[1:]
		}
	}
	if len(stay) > 0 { // the ring is closed
		came[len(came)-1] += before[0]
		left[len(left)-1] += before[1]
	}
	return stay, came, left
}

// entries returns all of the ring in order.
func (r ring) entries() []*entry {
	var list []*entry
	for e := range r.list.from(r.from) {
		if !r.has(e) {
			break
		}
		list = append(list, e)
	}
	return list
}

// sides returns the nodes up to ringReach places behind and before a place that
// nobody holds, the nearest first.
func (r ring) sides(place *entry) (behind, before []*entry) {
	collect := func(part ...iter.Seq[*entry]) []*entry {
		list := make([]*entry, 0, ringReach)
		r.walk(place, [2]iter.Seq[*entry](part), func(e *entry) bool {
			list = append(list, e)
			return true
		})
		return list
	}
	behind = collect(r.list.from(r.at(place)), r.list.from(r.from))
	before = collect(r.list.before(r.at(place)), r.list.before(r.behind))
	return behind, before
}
