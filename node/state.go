// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// syncTimeout bounds the wait for a leader before a read is refused. An
// election takes a second or two.
const syncTimeout = 5 * time.Second

// objects changes what people manage and reads what was acknowledged; only a
// node that holds state has them.
type objects interface {
	Change(ctx context.Context, c mesh.Change, permit mesh.Permit) (*mesh.Snapshot, error)
	ChangeAll(ctx context.Context, b mesh.Batch) (mesh.Outcome, error)
	Sync(ctx context.Context) (*mesh.Snapshot, error)
}

// Sync returns a state that has every change that was acknowledged to anyone
// before the call. A node that follows a gateway has only what the gateway told
// it last, and returns that. Without a leader for syncTimeout the error wraps
// mesh.ErrUnavailable.
func (n *Node) Sync(ctx context.Context) (*mesh.Snapshot, error) {
	if n.objects == nil {
		return n.source.wait(ctx, 0)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, syncTimeout, errNoLeader)
	defer cancel()
	s, err := n.objects.Sync(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errNoLeader) {
		return nil, errNoLeader
	}
	return s, err
}

// errNoLeader is the answer while the state cannot be read for sure.
var errNoLeader = fmt.Errorf("%w: no leader of the state answered within %s: a majority of the gateways that vote has to be up; "+
	"meshgate cluster status says which are not", mesh.ErrUnavailable, syncTimeout)

// Change puts or deletes an object that people manage; see admin.Objects. When
// it returns nil, Sync and Wait have the change. Only a node that holds state can.
func (n *Node) Change(ctx context.Context, c mesh.Change, permit mesh.Permit) error {
	if n.objects == nil {
		return errNoState
	}
	_, err := n.objects.Change(ctx, c, permit)
	return err
}

// ChangeAll makes several changes together or none; see admin.Objects. Only a node
// that holds state can.
func (n *Node) ChangeAll(ctx context.Context, b mesh.Batch) (mesh.Outcome, error) {
	if n.objects == nil {
		return mesh.Outcome{}, errNoState
	}
	return n.objects.ChangeAll(ctx, b)
}
