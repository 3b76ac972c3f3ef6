// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"fmt"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// Note notes since when members have not been heard, and which were heard again.
// Those that are no members any more are left out.
func (m *Members) Note(ctx context.Context, silent map[mesh.NodeID]time.Time, heard []mesh.NodeID) error {
	_, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		for id, since := range silent {
			if _, noted := tx.Snapshot().Silent[id]; !noted && tx.Snapshot().Node(id) != nil {
				tx.SetSilent(id, since)
			}
		}
		for _, id := range heard {
			tx.ClearSilent(id)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note who is silent: %w", err)
	}
	return nil
}

// Watch adds to the time for which leaders have watched who is silent.
func (m *Members) Watch(ctx context.Context, d time.Duration) error {
	_, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		tx.Watch(d)
		return nil
	})
	if err != nil {
		return fmt.Errorf("note for how long was watched who is silent: %w", err)
	}
	return nil
}

// Purge removes a node that has been silent since a time or longer, and was not
// heard for as long as unheard while that was watched, as Leave does, but its id stays bound to its key: nobody else gets to be that node
// because it was away. One that was heard meanwhile, or moved to another gateway,
// stays. The node itself joins again as a new one, which is no gateway.
func (m *Members) Purge(ctx context.Context, id mesh.NodeID, since time.Time, unheard time.Duration) error {
	if id == m.self {
		return fmt.Errorf("purge of node %q: %w: it is the node that purges", id, mesh.ErrPrecondition)
	}
	was := false
	_, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		n := tx.Snapshot().Node(id)
		silent, noted := tx.Snapshot().Silent[id]
		if was = n != nil && noted && !silent.After(since) && tx.Snapshot().Unheard(id) >= unheard; !was {
			return nil
		}
		if !n.PublicKey.IsZero() {
			tx.BindKey(id, n.PublicKey)
		}
		remove(tx, id)
		return m.dismiss(tx, id)
	})
	if err != nil {
		return fmt.Errorf("purge of node %q: %w", id, err)
	}
	if was {
		m.log.Info("node purged, it was not heard for too long", "peer", string(id), "since", since)
	}
	return nil
}
