// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// Declare makes the record of a member and the routes that it offers exactly
// what the node says of itself; Update leaves alone what is empty. Addresses,
// key and JoinedAt of n are ignored: they stay as they are.
func (m *Members) Declare(ctx context.Context, n mesh.Node, routes []netip.Prefix) error {
	if err := checkNode(&n, routes); err != nil {
		return fmt.Errorf("declare node %q: %w", n.ID, err)
	}
	_, err := m.registry.Update(ctx, func(tx *registry.Tx) error {
		s := tx.Snapshot()
		old, ok := s.Nodes.Get(n.ID)
		if !ok {
			return fmt.Errorf("%w: no node %q in the mesh; it has to join first", mesh.ErrNotFound, n.ID)
		}
		if !n.PublicKey.IsZero() && n.PublicKey != old.PublicKey {
			return fmt.Errorf("%w: public_key: the id is bound to another key", mesh.ErrExists)
		}
		if err := checkEndpoints(s, &n, m.self); err != nil {
			return err
		}
		if err := checkRoutes(s, n.ID, routes); err != nil {
			return err
		}
		if err := m.checkOutside(s, &n, routes, true); err != nil {
			return err
		}
		now := n
		now.PublicKey, now.IPv4, now.IPv6, now.JoinedAt = old.PublicKey, old.IPv4, old.IPv6, old.JoinedAt
		if err := tx.PutNode(&now); err != nil {
			return err
		}
		if len(routes) == 0 {
			deleteRoutes(tx, n.ID)
		}
		return m.putRoutes(tx, n.ID, routes)
	})
	if err != nil {
		return fmt.Errorf("declare node %q: %w", n.ID, err)
	}
	return nil
}
