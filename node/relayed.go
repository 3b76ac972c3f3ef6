// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// RemoteAllocations asks gateway id what its own TURN server holds for user, or for
// all users if that is empty. each gets the parts of the list; its error ends the call
// and is returned.
func (n *Node) RemoteAllocations(ctx context.Context, id mesh.NodeID, user string, each func([]*meshgatev1.Allocation) error) error {
	at, err := n.RPCAddress(id)
	if err != nil {
		return err
	}
	return n.peers.ListAllocations(ctx, at, user, each)
}

// RemoteClose has gateway id end one allocation of its TURN server, or those of user,
// and returns how many there were.
func (n *Node) RemoteClose(ctx context.Context, id mesh.NodeID, allocation, user string) (int, error) {
	at, err := n.RPCAddress(id)
	if err != nil {
		return 0, err
	}
	return n.peers.CloseAllocations(ctx, at, allocation, user)
}
