// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// stopTimeout bounds the call by which a node says that it ends: a round trip or
// two, and no wait for a gateway that is gone as well.
const stopTimeout = time.Second

// RemotePresence asks gateway id which nodes are up; own: by what it has heard itself.
func (n *Node) RemotePresence(ctx context.Context, id mesh.NodeID, own bool) ([]*meshgatev1.NodePresence, error) {
	at, err := n.RPCAddress(id)
	if err != nil {
		return nil, err
	}
	list, err := n.peers.ListPresence(ctx, at, own)
	if err != nil {
		return nil, fmt.Errorf("ask gateway %q which nodes are up: %w", id, err)
	}
	return list, nil
}

// Followed is the gateway that this node follows. On a gateway the error wraps
// mesh.ErrUnsupported.
func (n *Node) Followed() (mesh.NodeID, error) {
	f, ok := n.source.(*follower)
	if !ok {
		return "", fmt.Errorf("%w: a gateway follows none", mesh.ErrUnsupported)
	}
	gate, _, err := f.gateway()
	if err != nil {
		return "", err
	}
	return gate.ID, nil
}

// stopper tells a gateway that this node ends. A Gateway that is one is told.
type stopper interface {
	// Stop says that the node which calls ends, and stays a member.
	Stop(ctx context.Context) error
}

// stop tells the gateway that the node ends and stays a member, so that the mesh
// need not find out. ctx has ended.
func (f *follower) stop(ctx context.Context) {
	if f.cfg.DataDir == "" {
		return // it has left
	}
	_, at, err := f.gateway()
	if err != nil {
		return
	}
	gate, ok := f.cfg.Mesh(at).(stopper)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := gate.Stop(ctx); err != nil {
		f.node.log.Debug("gateway not told that this node stops", "err", err)
	}
}
