// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Pair returns the peer that node b is for node a in a pair by s; see
// topology.Planner.Pair. Only a node that holds state can say.
func (n *Node) Pair(s *mesh.Snapshot, a, b mesh.NodeID) (mesh.Peer, error) {
	h, ok := n.source.(*holder)
	if !ok {
		return mesh.Peer{}, errNoState
	}
	return h.plannerOf(s).Pair(a, b)
}

// MaySignal is nil when node a may tell node b how to find a path to it by s.
// Only a node that holds state can say.
func (n *Node) MaySignal(s *mesh.Snapshot, a, b mesh.NodeID) error {
	h, ok := n.source.(*holder)
	if !ok {
		return errNoState
	}
	return h.plannerOf(s).MaySignal(a, b)
}

// Holder returns the node at which what node a sends to an address arrives, or
// leaves the mesh, by s. Only a node that holds state can say.
func (n *Node) Holder(s *mesh.Snapshot, a mesh.NodeID, addr netip.Addr) (mesh.NodeID, error) {
	h, ok := n.source.(*holder)
	if !ok {
		return "", errNoState
	}
	return h.plannerOf(s).Holder(a, addr)
}

// RelayServers are the STUN and TURN servers that the gateway named when it took
// this node, with credentials that may have ended since; nil before, and on a node
// that holds state.
func (n *Node) RelayServers() []*v1.ICEServer {
	f, ok := n.source.(*follower)
	if !ok {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.joined.GetRelayServers()
}
