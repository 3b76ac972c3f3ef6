// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// TestJoin_KeyAndAddressOfAnother has nodes join with a key that another node has,
// and with one whose address another node has. Records that were written for a
// node may have an address that does not follow from its key, so that neither
// check does for the other.
func TestJoin_KeyAndAddressOfAnother(t *testing.T) {
	f := newFixture(t)
	taken, moved := request(t, "taken"), request(t, "moved")
	f.join(taken)
	f.join(moved)
	put := func(change func(n *mesh.Node)) {
		t.Helper()
		n := *f.registry.Snapshot().Node("moved")
		change(&n)
		if _, err := f.registry.Update(t.Context(), func(tx *registry.Tx) error { return tx.PutNode(&n) }); err != nil {
			t.Fatal(err)
		}
	}
	networks := f.registry.Snapshot().IPv6
	put(func(n *mesh.Node) { n.IPv6 = mesh.NodeIPv6(networks, newKey(t).WireGuard()) })
	version := f.version()
	for _, of := range []mesh.JoinRequest{taken, moved} {
		_, err := f.Join(t.Context(), mesh.JoinRequest{Node: mesh.Node{ID: "b", PublicKey: of.Node.PublicKey}})
		f.wantRefused(err, mesh.ErrExists, "public_key: another node has this key")
	}
	key := newKey(t)
	put(func(n *mesh.Node) { n.IPv6 = mesh.NodeIPv6(networks, key.WireGuard()) })
	_, err := f.Join(t.Context(), mesh.JoinRequest{Node: mesh.Node{ID: "b", PublicKey: key}})
	f.wantRefused(err, mesh.ErrExists, `public_key: its IPv6 address belongs to node "moved"`)
	if got := f.registry.Snapshot(); got.Node("b") != nil || got.Version != version+1 {
		t.Errorf("a refused join wrote something: version %d, want %d", got.Version, version+1)
	}
}
