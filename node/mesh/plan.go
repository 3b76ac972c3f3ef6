// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"time"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Plan is what one node's data plane should be: a topology.Planner makes it,
// wg and hostnet follow it. Nobody changes what its lists hold: plans share memory.
type Plan struct {
	// Self is the node that the plan is for.
	Self *Node
	// Peers are those of the node. No prefix is in two peers' AllowedIPs; where one
	// route lies within another, the longer prefix wins, as WireGuard has it.
	Peers Peers
	// Routes are the networks that this node sends into the mesh.
	Routes []netip.Prefix
}

// Peer is a WireGuard peer of the node that a Plan is for.
type Peer struct {
	Node       *Node
	AllowedIPs []netip.Prefix
	// Veiled and Veils are those of wg.Peer (Veil): networks behind the node that
	// are behind another peer as well, and whether packets go to this one. Plans
	// that nodes are told have none.
	Veiled []netip.Prefix
	Veils  bool
	// Endpoint is "ip:port" or "name:port"; empty when the peer must call first.
	Endpoint string
	Protocol v1.ConnectProtocol
}

// InterfaceStats is the state of a node's WireGuard interface.
type InterfaceStats struct {
	Name      string
	PublicKey WireGuardKey
	// Type is "tun" or "netstack".
	Type       string
	ListenPort uint16
	Addresses  []netip.Prefix
	Peers      []PeerStats
}

// PeerStats are the counters of one WireGuard peer, in bytes.
type PeerStats struct {
	PublicKey WireGuardKey
	// Endpoint is where packets go now, as WireGuard learned it; empty if unknown.
	Endpoint string
	// LastHandshake is zero when there was none.
	LastHandshake               time.Time
	Keepalive                   time.Duration
	AllowedIPs                  []netip.Prefix
	ReceiveBytes, TransmitBytes uint64
}
