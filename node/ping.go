// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// discard is the port at which nodes are asked that serve none of ours. Nothing
// listens there; that they say so is the answer.
const discard = 9

// Locate returns what the mesh knows of a node, which is named by its id, or by an
// address that it has in the mesh. One that holds no state asks its gateway of the
// ids that it does not know. Errors wrap mesh.ErrNotFound for a node
// that is not there, and mesh.ErrUnavailable when that cannot be told now.
func (n *Node) Locate(ctx context.Context, id mesh.NodeID) (*mesh.Node, error) {
	s := n.Snapshot()
	if s == nil {
		return nil, fmt.Errorf("%w: the node has not entered the mesh yet", mesh.ErrUnavailable)
	}
	if o, ok := s.Nodes.Get(id); ok {
		return o, nil
	}
	if addr, err := netip.ParseAddr(string(id)); err == nil {
		if o, ok := s.NodeByAddr(addr); ok {
			return o, nil
		}
		return nil, fmt.Errorf("%w: no node that %q knows has the address %s; name the node by its id", mesh.ErrNotFound, n.cfg.ID, addr)
	}
	f, ok := n.source.(*follower)
	if !ok {
		return nil, fmt.Errorf("%w: no node %q in this mesh", mesh.ErrNotFound, id)
	}
	gate, at, err := f.gateway()
	if err != nil {
		return nil, err
	}
	asked, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	record, err := n.peers.Record(asked, at, string(id))
	if err != nil {
		return nil, fmt.Errorf("ask gateway %q for node %q: %w", gate.ID, id, err)
	}
	return mesh.NodeFromProto(record)
}

// Ping asks a node for a sign of life: it opens a TCP connection to a port where
// a node serves the mesh, or to one where nothing listens, over the way that all
// packets take. One round trip of the network answers either, without a program
// that has to wake up. It ends with ctx, with an error that says so.
func (n *Node) Ping(ctx context.Context, o *mesh.Node) (mesh.Pong, error) {
	if o.ID == n.cfg.ID {
		return mesh.Pong{}, fmt.Errorf("%w: %q is the node itself that is to ask; name another one", mesh.ErrInvalid, o.ID)
	}
	addr, err := firstAddr(o)
	if err != nil {
		return mesh.Pong{}, err
	}
	port, ok := o.FeaturePort(v1.Feature_NODES)
	if !ok {
		port = discard
	}
	at := netip.AddrPortFrom(addr, port)
	began := time.Now()
	c, err := n.device.DialContext(ctx, "tcp", at.String())
	pong := mesh.Pong{Address: addr, RTT: time.Since(began)}
	switch {
	case err == nil:
		_ = c.Close() // that it was opened is all that was wanted
		return pong, nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return pong, nil
	case ctx.Err() != nil:
		return pong, fmt.Errorf("%w: no answer within %s: it is off, or its network ACLs or firewall do not let TCP port %d through",
			mesh.ErrUnavailable, time.Since(began).Round(10*time.Millisecond), port)
	}
	if s := n.Snapshot(); errors.Is(err, wg.ErrNoRoute) && s != nil {
		return pong, n.unrouted(s, o, err)
	}
	return pong, fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
}

// RemotePaths is Paths.ListPaths of another node; see RemoteStatus.
func (n *Node) RemotePaths(ctx context.Context, id mesh.NodeID) (*meshgatev1.ListPathsResponse, error) {
	at, err := n.RPCAddress(id)
	if err != nil {
		return nil, err
	}
	asked, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	list, err := n.peers.ListPaths(asked, at)
	if err != nil && asked.Err() != nil && ctx.Err() == nil {
		return nil, n.unanswered(id, at.Addr())
	}
	if err != nil {
		return nil, fmt.Errorf("ask node %q: %w", id, err)
	}
	return list, nil
}

// RemotePing is Paths.Ping of another node: each gets its answers, until it returns
// an error, which ends the call.
func (n *Node) RemotePing(ctx context.Context, from mesh.NodeID, r *meshgatev1.PingRequest, each func(*meshgatev1.PingResponse) error) error {
	at, err := n.RPCAddress(from)
	if err != nil {
		return err
	}
	if err := n.peers.Ping(ctx, at, r, each); err != nil {
		return fmt.Errorf("ask node %q: %w", from, err)
	}
	return nil
}

// FreshRelayServers are the STUN and TURN servers of the mesh with credentials for
// this node, from the gateway that it follows, or else those of RelayServers.
func (n *Node) FreshRelayServers(ctx context.Context) []*v1.ICEServer {
	f, ok := n.source.(*follower)
	if !ok {
		return nil
	}
	if _, at, err := f.gateway(); err == nil {
		asked, cancel := context.WithTimeout(ctx, statusPatience)
		defer cancel()
		if list, err := n.peers.ListServers(asked, at); err == nil {
			return list.GetIceServers()
		}
	}
	return n.RelayServers()
}

// askStatus has the gateway ask a node how it is.
func (f *follower) askStatus(ctx context.Context, id mesh.NodeID) (*v1.Status, error) {
	gate, at, err := f.gateway()
	if err != nil {
		return nil, err
	}
	// The gateway waits as long for the node.
	asked, cancel := context.WithTimeout(ctx, 2*statusPatience)
	defer cancel()
	s, err := f.node.peers.Status(asked, at, string(id))
	if err != nil {
		return nil, fmt.Errorf("ask gateway %q for node %q: %w", gate.ID, id, err)
	}
	return s, nil
}
