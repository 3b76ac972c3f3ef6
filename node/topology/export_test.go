// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// The bounds that tests go beyond.
const (
	SummarizeFrom = summarizeFrom
	NearFrom      = nearFrom
	MaxNotes      = maxNotes
)

// LinkType is the type of links.
func LinkType() reflect.Type { return reflect.TypeFor[link]() }

// Kept returns how many notes and views are kept.
func (p *Planner) Kept() (notes, views int) {
	p.work.mu.Lock()
	defer p.work.mu.Unlock()
	for _, v := range p.work.views {
		notes += len(v.notes)
	}
	return notes, len(p.work.views)
}

// Near reports whether the plan that was made for a node is a near one.
func (p *Planner) Near(id mesh.NodeID) bool {
	p.work.mu.Lock()
	defer p.work.mu.Unlock()
	return p.work.near[p.work.graph.vertices.get(id)] != nil
}

// Measured reports whether each view knows its farthest paths.
func (p *Planner) Measured() bool {
	p.work.mu.Lock()
	defer p.work.mu.Unlock()
	for _, v := range p.work.views {
		var longest path
		at := 0
		for _, n := range v.notes {
			switch c := n.path.length(longest); {
			case c > 0:
				longest, at = n.path, 1
			case c == 0:
				at++
			}
		}
		if longest.length(v.farthest) != 0 || at != v.atFarthest {
			return false
		}
	}
	return true
}

// Seated is nil when each vertex has a seat of its own, all others are free, and
// the links are those that the snapshot has.
func (p *Planner) Seated() error {
	p.work.mu.Lock()
	defer p.work.mu.Unlock()
	g := p.work.graph
	if g == nil {
		return nil
	}
	seats := &g.vertices
	if taken := len(seats.bySeat) - len(seats.free); taken != seats.len() {
		return fmt.Errorf("%d vertices take %d seats", seats.len(), taken)
	}
	for _, free := range seats.free {
		if v := seats.at(free); v != nil {
			return fmt.Errorf("%s sits at %d, which is free", v.id, free)
		}
	}
	for id, v := range seats.byID {
		if v.id != id || seats.at(v.seat) != v {
			return fmt.Errorf("%s is not at its seat %d", id, v.seat)
		}
		if want := g.linksOf(v); !slices.Equal(v.links, want) {
			return fmt.Errorf("links of %s are %v, not %v", id, v.links, want)
		}
	}
	return nil
}

// ByPaths plans from nothing, without what leaves share.
func ByPaths(s *mesh.Snapshot, self mesh.NodeID) mesh.Plan {
	g := newGraph(s, newRules(s))
	v := g.vertices.get(self)
	return newView(g, viewKey{root: v, viewer: v.class}, v.node).plan
}

// At is the snapshot that what planners share stands at.
func (p *Planner) At() *mesh.Snapshot { return p.work.graph.at }
