// SPDX-License-Identifier: Apache-2.0

package topology

import "github.com/meshgate/meshgate/node/mesh"

// The bounds that tests go beyond.
const (
	SummarizeFrom = summarizeFrom
	MaxNotes      = maxNotes
)

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
	return p.work.near[p.work.graph.vertices[id]] != nil
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

// ByPaths plans from nothing, without what leaves share.
func ByPaths(s *mesh.Snapshot, self mesh.NodeID) mesh.Plan {
	g := newGraph(s, newRules(s))
	v := g.vertices[self]
	return newView(g, viewKey{root: v, viewer: v.class}, v.node).plan
}
