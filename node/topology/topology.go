// SPDX-License-Identifier: Apache-2.0

// Package topology plans the data plane of a node: which WireGuard peers it
// has, what lies behind each, and what it routes into the mesh. A plan is a
// pure function of a mesh.Snapshot; DESIGN.md tells why it is made as it is.
package topology

import "github.com/meshgate/meshgate/node/mesh"

// For plans for node self. Its peers are its neighbours by edge; each node
// further away lies behind the one neighbour that its shortest path begins
// with: fewest hops, then least weight, then a hash of the edges that every
// node computes alike. The network ACLs decide what of it self may have at all:
// nothing else is in AllowedIPs. Nodes without a public key are left out, and
// only nodes that run Meshgate forward to others, since no other applies ACLs
// to what it forwards.
//
// The error wraps mesh.ErrNotFound when s does not hold self. The plan shares
// its nodes with s.
func For(s *mesh.Snapshot, self mesh.NodeID) (mesh.Plan, error) { return New(s, nil).Plan(self) }
