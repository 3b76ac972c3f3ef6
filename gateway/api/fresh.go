// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/meshgate/meshgate/node/mesh"
)

// HeaderStale, when it is true, lets a gateway answer a read from what it knows
// itself: at once and without a leader, but perhaps without the changes of the
// last moments. Without it, and with "x-webmesh-prefer-leader" of v1 clients, a
// read has every change that was acknowledged to anyone before the call.
const HeaderStale = "X-Meshgate-Stale"

// Stale reports whether the headers of a call ask for HeaderStale. A value that
// is no truth value asks for nothing.
func Stale(h http.Header) bool {
	stale, err := strconv.ParseBool(h.Get(HeaderStale))
	return err == nil && stale
}

type stateKey struct{}

// WithState returns a context for a call that was allowed by s and is to be
// answered from it, so that no change comes between the two.
func WithState(ctx context.Context, s *mesh.Snapshot) context.Context {
	return context.WithValue(ctx, stateKey{}, s)
}

type guardKey struct{}

// WithGuard is WithState for a state that need not be the newest: a change that
// the call makes is refused, with an error that wraps store.ErrConflict, unless
// it is the newest when the change is written.
func WithGuard(ctx context.Context, s *mesh.Snapshot) context.Context {
	return context.WithValue(WithState(ctx, s), guardKey{}, s)
}

// guard is the state of WithGuard; nil without one.
func guard(ctx context.Context) *mesh.Snapshot {
	s, _ := ctx.Value(guardKey{}).(*mesh.Snapshot)
	return s
}

// current returns the state that a read is answered from: that of WithState,
// else one that has all that was acknowledged before.
func current(ctx context.Context, state State) (*mesh.Snapshot, error) {
	if s, ok := ctx.Value(stateKey{}).(*mesh.Snapshot); ok && s != nil {
		return s, nil
	}
	if _, err := snapshot(state); err != nil {
		return nil, err
	}
	return state.Sync(ctx)
}

// whole returns current, on a node that keeps the state of the whole mesh. One
// that follows a gateway must not answer as if its part were all.
func whole(ctx context.Context, state State) (*mesh.Snapshot, error) {
	s, err := current(ctx, state)
	if err != nil {
		return nil, err
	}
	return s, keeps(s, state)
}

// held returns what this node knows itself, at once, if it keeps the state of
// the whole mesh.
func held(state State) (*mesh.Snapshot, error) {
	s, err := snapshot(state)
	if err != nil {
		return nil, err
	}
	return s, keeps(s, state)
}

func keeps(s *mesh.Snapshot, state State) error {
	if self := s.Node(state.Self()); !self.HoldsState() {
		return fmt.Errorf("%w: this node holds no state of the mesh; ask a gateway", mesh.ErrUnsupported)
	}
	return nil
}
