// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"fmt"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// Adopt makes this gateway the one through which the mesh reaches a member, in
// place of the one that took it before. Nothing else about the member changes,
// and nothing is written where it is so already. The returned snapshot has it.
// The error wraps mesh.ErrRemoved for a node that is no member, and
// mesh.ErrPrecondition for one that nobody adopts: a gateway.
func (m *Members) Adopt(ctx context.Context, id mesh.NodeID) (*mesh.Snapshot, error) {
	moved := false
	s, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		n := tx.Snapshot().Node(id)
		switch {
		case n == nil:
			return fmt.Errorf("%w: no node %q in the mesh: it was removed, or never joined", mesh.ErrRemoved, id)
		case id == m.self, n.FollowsNone():
			return fmt.Errorf("%w: %q is a gateway, which follows none", mesh.ErrPrecondition, id)
		}
		tx.ClearSilent(id)
		_, here := tx.Edge(m.self, id)
		moved = !here
		m.leaveOthers(tx, n)
		if here {
			return nil
		}
		return tx.PutEdge(mesh.Edge{Source: m.self, Target: id, Weight: edgeWeight})
	})
	if err != nil {
		return nil, fmt.Errorf("adopt node %q: %w", id, err)
	}
	if moved {
		m.log.Info("node adopted", "peer", string(id))
	}
	return s, nil
}

// leaveOthers removes the edges that joins at other gateways made for n. A node
// that was linked to two of them would be reached through either, also through
// the one that is gone. Edges that somebody asked for have attributes, or
// another weight, and stay.
func (m *Members) leaveOthers(tx *registry.Tx, n *mesh.Node) {
	s := tx.Snapshot()
	for e := range s.Edges.Of(n.ID) {
		other := e.Source
		if other == n.ID {
			other = e.Target
		}
		o := s.Node(other)
		if other != m.self && o.FollowsNone() && e.Weight == edgeWeight && len(e.Attributes) == 0 {
			tx.DeleteEdge(e.Source, e.Target)
		}
	}
}
