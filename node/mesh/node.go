// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Addrs returns the node's own mesh addresses, IPv4 first; none for a node
// that has not joined.
func (n *Node) Addrs() []netip.Addr {
	var addrs []netip.Addr
	for _, p := range n.Prefixes() {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// Prefixes returns what WireGuard routes to the node for the node itself: its
// IPv4 /32 and its IPv6 /112, without those it does not have.
func (n *Node) Prefixes() []netip.Prefix {
	var prefixes []netip.Prefix
	for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
		if p.IsValid() {
			prefixes = append(prefixes, p)
		}
	}
	return prefixes
}

// HasFeature reports whether the node offers f.
func (n *Node) HasFeature(f v1.Feature) bool {
	for _, have := range n.Features {
		if have.Kind == f {
			return true
		}
	}
	return false
}

// FeaturePort returns the port of feature f, and false when the node does not
// offer f or offers it on no port.
func (n *Node) FeaturePort(f v1.Feature) (uint16, bool) {
	for _, have := range n.Features {
		if have.Kind == f && have.Port != 0 {
			return have.Port, true
		}
	}
	return 0, false
}

// RunsMeshgate reports whether the node speaks the Node API. A stock WireGuard
// peer does not: it has a key, and nothing else.
func (n *Node) RunsMeshgate() bool { return n.HasFeature(v1.Feature_NODES) }

// Three ideas are behind "a gateway": it serves the state (HoldsState), it has a
// place among the replicas of the log, or is about to (KeepsLog), and it is in the
// group of gateways that the ACLs of the mesh itself name (registry.IsGateway). A
// gateway that joins has them one after the other, and one of a mesh without a
// cluster keeps no log that others reach. What a node says of itself takes a role.

// HoldsState reports whether the node takes members and has the whole state of
// the mesh, so that it forwards for others. A nil node does not.
func (n *Node) HoldsState() bool { return n != nil && n.HasFeature(v1.Feature_MEMBERSHIP) }

// KeepsLog reports whether the node takes part in the log of several gateways, or
// is about to. A nil node does not.
func (n *Node) KeepsLog() bool { return n != nil && n.HasFeature(v1.Feature_STORAGE_PROVIDER) }

// FollowsNone reports whether the node holds the state or keeps the log, as one
// does that is about to hold it: no gateway adopts it, or takes it for gone.
func (n *Node) FollowsNone() bool { return n.HoldsState() || n.KeepsLog() }

// Negotiates reports whether the node relays negotiations for clients, as each
// does that holds the state, and a v1 node that does not may. A nil node does
// not.
func (n *Node) Negotiates() bool {
	return n.HoldsState() || n != nil && n.HasFeature(v1.Feature_ICE_NEGOTIATION)
}

// Forwards reports whether the node carries packets between other nodes. It reads
// them, and could send some of its own in their name, so that nobody gets there by
// what it says of itself without a role. A nil node does not.
func (n *Node) Forwards() bool { return n.Negotiates() }

// Protocol returns how the nodes of the edge reach each other, by the edge's
// attributes: ICE before libp2p before plain WireGuard.
func (e Edge) Protocol() v1.ConnectProtocol {
	if len(e.Attributes) == 0 {
		return v1.ConnectProtocol_CONNECT_NATIVE // as of implicit edges, which are many
	}
	has := func(a v1.EdgeAttribute) bool { return e.Attributes[a.String()] == "true" }
	switch {
	case has(v1.EdgeAttribute_EDGE_ATTRIBUTE_ICE):
		return v1.ConnectProtocol_CONNECT_ICE
	case has(v1.EdgeAttribute_EDGE_ATTRIBUTE_LIBP2P):
		return v1.ConnectProtocol_CONNECT_LIBP2P
	default:
		return v1.ConnectProtocol_CONNECT_NATIVE
	}
}
