// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
)

// NodeKeys authenticates members by their keys, with tokens that they make
// themselves (mesh.SignCredential): so gets a node to a gateway that it has no
// token of, when the one that it followed is gone. It is asked before Tokens,
// which refuse what they do not know.
type NodeKeys struct {
	state api.State
	// unknown bounds, by network, and unknowns, of all, how often the mesh is
	// asked for members that this gateway does not know.
	unknown  *buckets
	unknowns *rate.Limiter
}

// Of keys that are no member's, per second and at once. A node that has joined
// elsewhere a moment ago needs one.
const (
	unknownRate, unknownBurst   = 1, 10  // of one network
	unknownsRate, unknownsBurst = 20, 50 // of all
)

var _ Authenticator = (*NodeKeys)(nil)

// NewNodeKeys makes an Authenticator for the members in state.
func NewNodeKeys(state api.State) *NodeKeys {
	return &NodeKeys{
		state: state, unknown: newBuckets(unknownRate, unknownBurst), unknowns: rate.NewLimiter(unknownsRate, unknownsBurst),
	}
}

// Authenticate implements Authenticator. That somebody is no member is said on
// a state that has all joins, and only to who knows the mesh: mesh.ErrRemoved. It
// is the same whether another node has the id or none has: who has neither the
// key nor a right to see the mesh does not learn which ids there are.
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
	if !holds(s, credential) {
		// It may have joined at another gateway a moment ago, or changed its key.
		if !k.unknown.take(network(c.From)) || !k.unknowns.Allow() {
			return Identity{}, fmt.Errorf("%w: too many nodes that this gateway does not know; try again in a few seconds", mesh.ErrExhausted)
		}
		if s, err = k.state.Sync(ctx); err != nil {
			return Identity{}, err
		}
		if !holds(s, credential) {
			return Identity{}, fmt.Errorf("%w: no node %q with this key in the mesh: it was removed, or never joined", mesh.ErrRemoved, credential.Node)
		}
	}
	return Identity{ID: string(credential.Node), Keyed: true, Stands: func() bool { return holds(k.state.Snapshot(), credential) }}, nil
}

// holds reports whether the node of a credential has its key in s.
func holds(s *mesh.Snapshot, c mesh.KeyCredential) bool {
	n := s.Node(c.Node)
	return n != nil && n.PublicKey == c.Key
}

// Generation implements Authenticator: a change of the state is noticed anyway.
func (k *NodeKeys) Generation() uint64 { return 0 }
