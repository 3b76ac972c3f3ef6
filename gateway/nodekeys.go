// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"time"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
)

// NodeKeys authenticates members by their keys, with tokens that they make
// themselves (mesh.SignCredential): so gets a node to a gateway that it has no
// token of, when the one that it followed is gone. It is asked before Tokens,
// which refuse what they do not know.
type NodeKeys struct{ state api.State }

var _ Authenticator = (*NodeKeys)(nil)

// NewNodeKeys makes an Authenticator for the members in state.
func NewNodeKeys(state api.State) *NodeKeys { return &NodeKeys{state: state} }

// Authenticate implements Authenticator. That somebody is no member is said on
// a state that has all joins, and only to who knows the mesh: mesh.ErrRemoved.
func (k *NodeKeys) Authenticate(ctx context.Context, c Credentials) (Identity, error) {
	if !mesh.IsCredential(c.Token) {
		return Identity{}, ErrOtherKind
	}
	s := k.state.Snapshot()
	if s == nil {
		return Identity{}, fmt.Errorf("%w: this gateway has not entered the mesh yet; try again in a few seconds", mesh.ErrUnavailable)
	}
	credential, err := mesh.ParseCredential(c.Token)
	if err != nil {
		return Identity{}, malformed(err.Error())
	}
	if err := credential.Check(s.IPv6.String(), k.state.Self(), time.Now()); err != nil {
		return Identity{}, fmt.Errorf("%w: %w", mesh.ErrUnauthenticated, err)
	}
	if s.Node(credential.Node) == nil {
		// It may have joined at another gateway a moment ago.
		if s, err = k.state.Sync(ctx); err != nil {
			return Identity{}, err
		}
	}
	switch n := s.Node(credential.Node); {
	case n == nil:
		return Identity{}, fmt.Errorf("%w: no node %q in the mesh: it was removed, or never joined", mesh.ErrRemoved, credential.Node)
	case n.PublicKey != credential.Key:
		return Identity{}, fmt.Errorf("%w: node %q has another key", mesh.ErrUnauthenticated, credential.Node)
	}
	return Identity{ID: string(credential.Node), Keyed: true, Stands: func() bool {
		n := k.state.Snapshot().Node(credential.Node)
		return n != nil && n.PublicKey == credential.Key
	}}, nil
}

// Generation implements Authenticator: a change of the state is noticed anyway.
func (k *NodeKeys) Generation() uint64 { return 0 }
