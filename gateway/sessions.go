// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/wg"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
)

// SessionNode is what data channel sessions need from the node; *node.Node is one.
type SessionNode interface {
	Self() mesh.NodeID
	// Snapshot is the latest state; nil before the node is in the mesh.
	Snapshot() *mesh.Snapshot
	// Destination decides where a connection of caller may go.
	Destination(caller string, target mesh.NodeID, network, host string, port uint16) (netip.AddrPort, error)
	// DialContext connects to an address that Destination returned.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// RPCAddress is where another node serves the RPCs of the mesh.
	RPCAddress(id mesh.NodeID) (netip.AddrPort, error)
	// Peers makes clients of other nodes.
	Peers() *peer.Peers
	// Attach gives WireGuard one more path for packets.
	Attach(c wg.PacketConn) (detach func(), err error)
}

// Sessions joins a node and the signaling service: it is the Authorizer,
// Dialer, Peers and WireGuard of signaling.Config.
type Sessions struct {
	SessionNode
}

var (
	_ signaling.Authorizer = Sessions{}
	_ signaling.Dialer     = Sessions{}
	_ signaling.Peers      = sessionPeers{}
	_ signaling.WireGuard  = sessionDevice{}
)

// Authorize implements signaling.Authorizer. WireGuard itself (udp, port 0) is
// always a legal destination: its packets prove who they are from.
func (s Sessions) Authorize(_ context.Context, caller string, node mesh.NodeID, d signaling.Destination) (netip.AddrPort, error) {
	if d.Protocol == "udp" && d.Port == 0 {
		return netip.AddrPort{}, nil
	}
	return s.Destination(caller, node, d.Protocol, d.Host, d.Port)
}

// Others is the signaling.Peers of the node.
func (s Sessions) Others() signaling.Peers { return sessionPeers{s.SessionNode} }

// Device is the signaling.WireGuard of the node.
func (s Sessions) Device() signaling.WireGuard { return sessionDevice{s.SessionNode} }

type sessionPeers struct{ node SessionNode }

// Local implements signaling.Peers: this node answers for itself and for stock
// WireGuard peers, which run nothing that could answer.
func (s sessionPeers) Local(id mesh.NodeID) (bool, error) {
	if id == s.node.Self() {
		return true, nil
	}
	snap := s.node.Snapshot()
	if snap == nil {
		return false, unavailable("this node has not entered the mesh yet")
	}
	other, ok := snap.Nodes.Get(id)
	if !ok {
		return false, notFound(id)
	}
	return !other.RunsMeshgate(), nil
}

// Negotiate implements signaling.Peers.
func (s sessionPeers) Negotiate(ctx context.Context, id mesh.NodeID) (signaling.Negotiation, error) {
	at, err := s.node.RPCAddress(id)
	if err != nil {
		return nil, err
	}
	call := s.node.Peers().Node(at).NegotiateDataChannel(ctx)
	return peer.NewStream[v1.DataChannelNegotiation, v1.DataChannelNegotiation](call), nil
}

// Signal implements signaling.Peers.
func (s sessionPeers) Signal(ctx context.Context, id mesh.NodeID) (signaling.Signals, error) {
	at, err := s.node.RPCAddress(id)
	if err != nil {
		return nil, err
	}
	call := s.node.Peers().Node(at).ReceiveSignalChannel(ctx)
	return peer.NewStream[v1.WebRTCSignal, v1.WebRTCSignal](call), nil
}

type sessionDevice struct{ node SessionNode }

// Attach implements signaling.WireGuard.
func (s sessionDevice) Attach(c signaling.PacketConn) (func(), error) { return s.node.Attach(c) }

func unavailable(why string) error { return fmt.Errorf("%w: %s", mesh.ErrUnavailable, why) }

func notFound(id mesh.NodeID) error {
	return fmt.Errorf("%w: no node %q in the mesh", mesh.ErrNotFound, id)
}
