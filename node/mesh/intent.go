// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// JoinRequest asks that a node become a member. It is an intent: member
// checks it and turns it into one atomic change of the registry.
type JoinRequest struct {
	// Node carries id, key, endpoints, zone, features, services and
	// multiaddrs. Its addresses and JoinedAt are ignored: the mesh chooses them.
	Node Node
	// AssignIPv4 asks for an IPv4 address beside the IPv6 one.
	AssignIPv4 bool
	// Routes are networks that the node offers to reach.
	Routes []netip.Prefix
	// DirectPeers are nodes to be joined by an edge, with the protocol for it.
	DirectPeers map[NodeID]v1.ConnectProtocol
	// MemberOf is the IPv6 network of the mesh that the node takes itself for a
	// member of; the zero prefix when it joins for the first time.
	MemberOf netip.Prefix
	// Proof shows that the node itself asks; nil when it does not.
	Proof *JoinProof
}

// UpdateRequest changes a member. Empty fields stay as they are.
type UpdateRequest struct {
	ID                 NodeID
	PublicKey          PublicKey
	PrimaryEndpoint    string
	WireGuardEndpoints []netip.AddrPort
	Zone               string
	Routes             []netip.Prefix
	Features           []Feature
	Services           []Service
	Multiaddrs         []string
}
