// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"iter"
	"slices"
)

// Edges that follow from the nodes are not stored: a mesh of n public nodes
// would have n*(n-1)/2 of them. docs/adr/0010 tells how they were chosen.
const (
	// ringReach is how many public nodes on either side a public node is linked
	// to, of all nodes in an order that is as good as random, and once more of
	// those in its zone. In a mesh with up to 2*ringReach+1 public nodes each is
	// linked to every other.
	ringReach = 64
	// maxGateways bounds how many gateways every public node is linked to.
	maxGateways = 64
	// maxGraph is with how many public nodes AllEdges has their implicit edges.
	maxGraph = 512

	// zoneWeight and publicWeight are the weights that v1 nodes give the edges
	// within a zone and between public nodes.
	zoneWeight   = 1
	publicWeight = 99
)

// linksItself reports whether n gets edges to nodes like it without asking for
// them: others can dial it, and it follows the mesh by itself. A stock
// WireGuard peer would never learn of them.
func (n *Node) linksItself() bool {
	return n.PrimaryEndpoint != "" && !n.PublicKey.IsZero() && n.RunsMeshgate()
}

// EdgesOf yields the edges of a node: those that are stored, and of a public
// node those that follow from its being public: to the gateways, to neighbours
// within its zone (weight 1) and to neighbours anywhere (weight 99). A stored
// edge stands for an implicit one between the same nodes.
func (s *Snapshot) EdgesOf(id NodeID) iter.Seq[Edge] {
	return func(yield func(Edge) bool) {
		for e := range s.Edges.Of(id) {
			if !yield(e) {
				return
			}
		}
		for e := range s.implicitOf(id) {
			if !yield(e) {
				return
			}
		}
	}
}

// AllEdges returns the edges of all nodes, sorted by source, then target. Of a
// mesh with more than some hundreds of public nodes it returns the stored ones
// only: nobody looks at a hundred thousand lines.
func (s *Snapshot) AllEdges() []Edge {
	all := make([]Edge, 0, s.Edges.Len())
	for e := range s.Edges.All() {
		all = append(all, e)
	}
	public := s.Nodes.get().public
	if public.len() > maxGraph {
		return all
	}
	for from := range public.all() {
		for e := range s.implicitOf(from.node.ID) {
			if e.Source == from.node.ID {
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, func(a, b Edge) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Target, b.Target))
	})
	return all
}

// implicitOf yields the edges of a node that are not stored.
func (s *Snapshot) implicitOf(id NodeID) iter.Seq[Edge] {
	return func(yield func(Edge) bool) {
		index := s.Nodes.get()
		self, ok := index.byID.get(atID(id))
		if !ok || !self.node.linksItself() {
			return
		}
		stored := make(map[NodeID]bool)
		for e := range s.Edges.Of(id) {
			stored[e.Source], stored[e.Target] = true, true
		}
		seen := make(map[*entry]bool, 4*ringReach)
		link := func(to *entry, weight int32) bool {
			if to == self || seen[to] || stored[to.node.ID] {
				return true
			}
			seen[to] = true
			return yield(Edge{Source: min(id, to.node.ID), Target: max(id, to.node.ID), Weight: weight})
		}
		if zone := self.node.Zone; zone != "" {
			for to := range index.inZone(zone).around(self) {
				if !link(to, zoneWeight) {
					return
				}
			}
		}
		for to := range index.gatewaysOf(self) {
			if !link(to, publicWeight) {
				return
			}
		}
		for to := range index.ofAll().around(self) {
			if !link(to, publicWeight) {
				return
			}
		}
	}
}

// EdgeBetween returns the edge between two nodes of s that EdgesOf yields for
// either.
func (s *Snapshot) EdgeBetween(a, b *Node) (Edge, bool) {
	if e, stored := s.Edges.Get(a.ID, b.ID); stored || a.ID == b.ID {
		return e, stored
	}
	if !a.linksItself() || !b.linksItself() {
		return Edge{}, false
	}
	index, x, y := s.Nodes.get(), placed(a), placed(b)
	e := Edge{Source: min(a.ID, b.ID), Target: max(a.ID, b.ID), Weight: publicWeight}
	if zone := a.Zone; zone != "" && zone == b.Zone && index.inZone(zone).near(x, y) {
		e.Weight = zoneWeight
		return e, true
	}
	return e, index.ofAll().near(x, y) || index.linksAll(x) || index.linksAll(y)
}

// linksAll reports whether e is one of the gateways that every public node is
// linked to.
func (x *nodeIndex) linksAll(e *entry) bool {
	return e.node.HoldsState() && x.gateways.rank(atPlace(e.place, e.node.ID)) < maxGateways
}

// ifLinked returns n if it has implicit edges, else nil.
func (n *Node) ifLinked() *Node {
	if n == nil || !n.linksItself() {
		return nil
	}
	return n
}

// gatewaysOf yields the gateways that a public node is linked to: for a gateway
// among them, every public node.
func (x *nodeIndex) gatewaysOf(self *entry) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		n := 0
		for g := range x.gateways.all() {
			if n++; n > maxGateways {
				return
			}
			if g != self {
				if !yield(g) {
					return
				}
				continue
			}
			for e := range x.public.all() {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// Gateways yields the nodes that take members, in an order that is the same for
// all who ask. Whether what they say of themselves counts is for roles to tell.
func (s Nodes) Gateways() iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for e := range s.get().gateways.all() {
			if !yield(e.node) {
				return
			}
		}
	}
}

// PublicInZone yields public nodes of a zone that follow the mesh by themselves,
// each once, from the place on that belongs to id, so that many nodes which take
// a few each spread over all of them.
func (s Nodes) PublicInZone(zone string, id NodeID) iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		if zone == "" {
			return
		}
		place := placeOf(id)
		r := s.get().inZone(zone)
		for e := range r.list.from(atZone(zone, place, id)) {
			if !r.has(e) {
				break
			}
			if !yield(e.node) {
				return
			}
		}
		for e := range r.list.from(r.from) {
			if !r.has(e) || atZone(zone, place, id)(e) >= 0 || !yield(e.node) {
				return
			}
		}
	}
}

// ring is some of the public nodes, in the order of the hashes of their ids,
// the last one before the first. The neighbours of a node on it are as good as
// drawn by lot, are the same seen from either end, and change for few nodes
// when one comes or goes.
type ring struct {
	list sorted[*entry]
	// from compares to the first place of the ring, at to that of an entry, and
	// behind is negative for all of the ring.
	from, behind func(*entry) int
	at           func(*entry) func(*entry) int
	// has reports whether an entry of the list is on the ring.
	has func(*entry) bool
}

// ofAll is the ring of all public nodes.
func (x *nodeIndex) ofAll() ring {
	return ring{
		list:   x.public,
		from:   func(*entry) int { return 0 },
		behind: func(*entry) int { return -1 },
		at:     func(e *entry) func(*entry) int { return atPlace(e.place, e.node.ID) },
		has:    func(*entry) bool { return true },
	}
}

// inZone is the ring of the public nodes of a zone.
func (x *nodeIndex) inZone(zone string) ring {
	return ring{
		list:   x.zoned,
		from:   func(e *entry) int { return cmp.Compare(e.node.Zone, zone) },
		behind: func(e *entry) int { return cmp.Or(cmp.Compare(e.node.Zone, zone), -1) },
		at:     func(e *entry) func(*entry) int { return atZone(zone, e.place, e.node.ID) },
		has:    func(e *entry) bool { return e.node.Zone == zone },
	}
}

// around yields the nodes up to ringReach places before and behind self. Where
// the ring is short, a node may come twice.
func (r ring) around(self *entry) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, way := range [][2]iter.Seq[*entry]{
			{r.list.from(r.at(self)), r.list.from(r.from)},
			{r.list.before(r.at(self)), r.list.before(r.behind)},
		} {
			if !r.walk(self, way, yield) {
				return
			}
		}
	}
}

// walk yields ringReach nodes one way from self: up to the end of the list,
// then from its other end up to self. It returns false when yield did.
func (r ring) walk(self *entry, way [2]iter.Seq[*entry], yield func(*entry) bool) bool {
	n := 0
	for again, part := range way {
		for e := range part {
			if !r.has(e) || (e == self && again == 1) {
				break
			}
			if e == self {
				continue
			}
			if !yield(e) {
				return false
			}
			if n++; n == ringReach {
				return true
			}
		}
	}
	return true
}

// near reports whether two nodes of the ring are within ringReach of each other.
func (r ring) near(a, b *entry) bool {
	apart := r.list.rank(r.at(a)) - r.list.rank(r.at(b))
	apart = max(apart, -apart)
	return apart <= ringReach || r.size()-apart <= ringReach
}

// size is the number of nodes on the ring.
func (r ring) size() int {
	// All behind the last one of the ring is negative for neither.
	return r.list.rank(func(e *entry) int {
		if r.behind(e) < 0 {
			return -1
		}
		return 1
	}) - r.list.rank(r.from)
}
