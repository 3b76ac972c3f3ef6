// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"iter"
	"maps"
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
			if !same && r.was.gateways.len() <= maxGateways && r.is.gateways.len() <= maxGateways {
				continue
			}
			for e := range r.is.public.all() {
				r.add(g.node.ID, e.node.ID)
			}
		}
	}
}

// shifted adds the pairs of a ring on which nodes came and left.
func (r *relinking) shifted(m *shifts, on func(*nodeIndex) ring) {
	was, is := on(r.was), on(r.is)
	for _, n := range m.came {
		r.around(n.ID, r.is, is)
	}
	for _, n := range m.left {
		r.around(n.ID, r.was, was)
	}
	for pair := range was.parted(m) {
		r.add(pair[0].node.ID, pair[1].node.ID)
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

// parted returns the pairs of nodes that stay on the ring of which the edge differs
// once others came and left. It lets them go and come one after the other: two have
// become neighbours where one in between left, and are none any more where one came
// in between; what happened to a pair twice did not happen.
func (r ring) parted(m *shifts) map[[2]*entry]bool {
	pairs := make(map[[2]*entry]bool)
	moved := make(map[*entry]bool, len(m.came)+len(m.left))
	flip := func(place *entry) {
		for a, b := range r.across(place) {
			pair := [2]*entry{a, b}
			if b.node.ID < a.node.ID {
				pair = [2]*entry{b, a}
			}
			if pairs[pair] {
				delete(pairs, pair)
			} else {
				pairs[pair] = true
			}
		}
	}
	for _, n := range m.left {
		e, ok := r.list.get(r.at(placed(n)))
		if !ok {
			continue
		}
		moved[e] = true
		r.list = r.list.without(r.at(e))
		flip(e)
	}
	for _, n := range m.came {
		e := placed(n)
		moved[e] = true
		flip(e)
		r.list = r.list.with(e, r.at(e))
	}
	maps.DeleteFunc(pairs, func(pair [2]*entry, _ bool) bool { return moved[pair[0]] || moved[pair[1]] })
	return pairs
}

// placed is an entry that stands where that of a node does.
func placed(n *Node) *entry { return &entry{node: n, place: placeOf(n.ID)} }

// across yields the pairs that are neighbours on the ring, and would not be if
// somebody stood at a place that nobody holds: they are on either side of it,
// ringReach steps from each other. On a short ring all are neighbours anyway.
func (r ring) across(place *entry) iter.Seq2[*entry, *entry] {
	return func(yield func(a, b *entry) bool) {
		if r.size() <= 2*ringReach {
			return
		}
		behind, before := r.sides(place)
		for i, a := range before { // i+1 steps before the place
			if j := ringReach - i - 1; j < len(behind) && !yield(a, behind[j]) {
				return
			}
		}
	}
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
