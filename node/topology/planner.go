// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

// Planner plans for the nodes of one snapshot and shares between them what does
// not depend on the node: decisions of ACLs, edges, and what lies behind a
// gateway. Nothing is worked out before it is needed. It is safe for concurrent
// use.
type Planner struct {
	snapshot *mesh.Snapshot
	network  *policy.Network
	classes  *classes
	offers   func() map[mesh.NodeID][]netip.Prefix
	present  func() map[class]*vertex

	mu       sync.Mutex // guards the fields below and the links of vertices
	vertices map[mesh.NodeID]*vertex
	verdicts map[[2]class]bool
	leaves   map[leafKey]func() *leaf
}

// New returns a planner for s. One for a snapshot before s, or nil, gives it
// what still holds.
func New(s *mesh.Snapshot, before *Planner) *Planner {
	p := &Planner{
		snapshot: s,
		vertices: make(map[mesh.NodeID]*vertex),
		verdicts: make(map[[2]class]bool),
		leaves:   make(map[leafKey]func() *leaf),
	}
	if before != nil && before.classes.fits(s) {
		p.classes, p.network = before.classes, before.network
		before.mu.Lock()
		for pair, linked := range before.verdicts {
			p.verdicts[pair] = linked
		}
		before.mu.Unlock()
	} else {
		p.classes, p.network = newClasses(s), policy.Compile(s)
	}
	p.offers = sync.OnceValue(p.findOffers)
	p.present = sync.OnceValue(p.findPresent)
	return p
}

// Snapshot is the snapshot that is planned for.
func (p *Planner) Snapshot() *mesh.Snapshot { return p.snapshot }

// Plan plans for node self; see For.
func (p *Planner) Plan(self mesh.NodeID) (mesh.Plan, error) {
	node, ok := p.snapshot.Nodes.Get(self)
	if !ok {
		return mesh.Plan{}, fmt.Errorf("plan for node %q: %w", self, mesh.ErrNotFound)
	}
	plan := &planning{Planner: p, self: node}
	start := p.vertex(self)
	if start == nil { // without a key
		return mesh.Plan{Self: node, Routes: plan.routes()}, nil
	}
	if leaf, gate, ok := p.leafOf(start); ok {
		return plan.ofLeaf(leaf, gate), nil
	}
	return plan.byPaths(start), nil
}

// byPaths makes the plan of any node.
func (p *planning) byPaths(start *vertex) mesh.Plan {
	p.reached = p.reach(start, func(to *vertex) bool { return p.connects(start, to) })
	nearestFirst(p.reached)
	p.claimNodes()
	p.claimRoutes()
	return mesh.Plan{Self: p.self, Peers: p.peers(), Routes: p.routes()}
}

// vertex returns the vertex of a node; nil for one that is not there or has no
// key.
func (p *Planner) vertex(id mesh.NodeID) *vertex {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.vertexLocked(id)
}

func (p *Planner) vertexLocked(id mesh.NodeID) *vertex {
	if v, ok := p.vertices[id]; ok {
		return v
	}
	n, ok := p.snapshot.Nodes.Get(id)
	if !ok || n.PublicKey.IsZero() {
		return nil
	}
	v := &vertex{node: n, class: p.classes.of(n, p.snapshot.Nodes.Len()), index: len(p.vertices)}
	p.vertices[id] = v
	return v
}

// links returns the edges of v to nodes that can be peers.
func (p *Planner) links(v *vertex) []link {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v.linked {
		return v.links
	}
	for e := range p.snapshot.EdgesOf(v.node.ID) {
		other := e.Source
		if other == v.node.ID {
			other = e.Target
		}
		if to := p.vertexLocked(other); to != nil && to != v {
			v.links = append(v.links, link{to: to, edge: e, tie: tieOf(e)})
		}
	}
	v.linked = true
	return v.links
}

// connects reports whether a and b may have each other as peers: whether their
// own addresses may exchange packets in some family.
func (p *Planner) connects(a, b *vertex) bool {
	pair := [2]class{a.class, b.class}
	p.mu.Lock()
	defer p.mu.Unlock()
	linked, ok := p.verdicts[pair]
	if !ok {
		linked = p.decide(a.node, b.node)
		p.verdicts[pair] = linked
	}
	return linked
}

func (p *Planner) decide(a, b *mesh.Node) bool {
	for _, v4 := range []bool{true, false} {
		from, to := hostOf(a, v4), hostOf(b, v4)
		if !from.IsValid() && !to.IsValid() {
			continue
		}
		if p.network.Connects(endpointAt(a, from), endpointAt(b, to)) {
			return true
		}
	}
	return false
}

// findOffers returns the networks that nodes forward to.
func (p *Planner) findOffers() map[mesh.NodeID][]netip.Prefix {
	offers := make(map[mesh.NodeID][]netip.Prefix)
	for _, r := range p.snapshot.Routes {
		for _, id := range policy.Forwarders(p.snapshot, r) {
			for _, network := range r.Destinations {
				if p.snapshot.Routable(network) {
					offers[id] = append(offers[id], network.Masked())
				}
			}
		}
	}
	return offers
}

// findPresent returns a node of each class that is there.
func (p *Planner) findPresent() map[class]*vertex {
	present := make(map[class]*vertex)
	for id := range p.snapshot.Nodes.All() {
		if v := p.vertex(id); v != nil {
			present[v.class] = v
		}
	}
	return present
}
