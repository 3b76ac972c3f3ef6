// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"

	"github.com/meshgate/meshgate/node/mesh"
)

// Planner plans for the nodes of one snapshot. Planners that are made from one
// another share what they have worked out, for whichever of their snapshots a
// plan is asked; going from one to the next costs what differs between the two.
// A Planner is safe for concurrent use.
type Planner struct {
	snapshot *mesh.Snapshot
	work     *work
}

// New returns a planner for s. It shares the work of one for another snapshot of
// the mesh, or begins anew when that is nil.
func New(s *mesh.Snapshot, before *Planner) *Planner {
	if before == nil {
		return &Planner{snapshot: s, work: new(work)}
	}
	return &Planner{snapshot: s, work: before.work}
}

// Snapshot is the snapshot that is planned for.
func (p *Planner) Snapshot() *mesh.Snapshot { return p.snapshot }

// KeepUp moves what planners share to the snapshot, unless that stands at a later
// one: the plan that is asked for next has less to catch up with.
func (p *Planner) KeepUp() { p.work.keepUp(p.snapshot) }

// Plan plans for node self; see For. Nobody changes what is in a plan: it may
// be in the next one too.
func (p *Planner) Plan(self mesh.NodeID) (mesh.Plan, error) {
	node, ok := p.snapshot.Nodes.Get(self)
	if !ok {
		return mesh.Plan{}, fmt.Errorf("plan for node %q: %w", self, mesh.ErrNotFound)
	}
	if node.PublicKey.IsZero() {
		return mesh.Plan{Self: node, Routes: routesOf(p.snapshot, node, nil)}, nil
	}
	if plan, ok := p.work.plan(p.snapshot, self); ok {
		return plan, nil
	}
	plan, _ := new(work).plan(p.snapshot, self)
	return plan, nil
}
