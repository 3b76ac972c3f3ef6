// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// reviewInterval is how often the gateway looks whether credentials or state
// have changed. What is no longer allowed ends within that time, and a second
// time where a file has to settle first.
const reviewInterval = 2 * time.Second

// grant is a caller's right to a streaming call, and to what outlives the call:
// the credentials or the membership by which it came in, and the actions that
// its roles had to allow. It is safe for concurrent use.
type grant struct {
	state  api.State
	plans  api.PairPlans
	rule   rule
	caller api.Caller
	stands func() bool // of the credentials; nil: for ever
	relays bool        // it is the right to TURN credentials, for which rule is not asked

	mu      sync.Mutex // guards the fields below
	actions []mesh.Action
	pair    mesh.NodeID // whom the caller has to be allowed to signal paths to; empty: nobody
	version uint64      // of the state that allowed actions, or the pair
	refused error       // final: who comes back into favour calls again
}

// admit notes that s has allowed what the call's first message needs.
func (r *grant) admit(s *mesh.Snapshot, msg any) error {
	pair, ok, err := r.rule.pairWith(msg)
	var actions []mesh.Action
	if err == nil && !ok {
		actions, err = r.rule.actions(r.caller, msg)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.actions, r.pair = actions, pair; s != nil {
		r.version = s.Version
	}
	return r.checkLocked()
}

// check is nil while the right exists; its error is for the caller to read.
func (r *grant) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checkLocked()
}

func (r *grant) checkLocked() error {
	if r.refused != nil {
		return r.refused
	}
	s := r.state.Snapshot()
	if r.stands != nil && !r.stands() {
		r.refused = fmt.Errorf("%w: the credentials of this call are no longer valid; sign in again", mesh.ErrUnauthenticated)
	} else if r.refused = stillMember(s, r.caller); r.refused == nil && s != nil && s.Version > r.version {
		// An older state than the one that allowed the call says nothing.
		r.refused = r.grantedLocked(s)
	}
	return r.refused
}

// grantedLocked is nil when s allows what the call needs.
func (r *grant) grantedLocked(s *mesh.Snapshot) error {
	if r.relays {
		return mayRelay(s, r.caller)
	}
	if r.pair != "" {
		return maySignal(r.plans, s, r.caller, r.pair)
	}
	return r.rule.granted(s, r.caller, r.actions)
}

// refusal is why the right ended; nil while nobody has found that it did.
func (r *grant) refusal() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused
}

// stillMember is nil unless c came over the mesh and its node has left since,
// or holds another address.
func stillMember(s *mesh.Snapshot, c api.Caller) error {
	if c.Node == nil || s == nil {
		return nil
	}
	addr := c.Addr.Addr().Unmap()
	if n := s.Node(c.Node.ID); n == nil || !n.IPv4.Contains(addr) && !n.IPv6.Contains(addr) {
		return fmt.Errorf("%w: node %q is no longer in the mesh; join first", mesh.ErrUnauthenticated, c.Node.ID)
	}
	return nil
}

// maySignal is nil when c, a node that has shown its key, may signal paths to
// another one.
func maySignal(plans api.PairPlans, s *mesh.Snapshot, c api.Caller, to mesh.NodeID) error {
	switch {
	case !c.IsNode(c.ID):
		return fmt.Errorf("%w: only nodes, by their keys, signal paths; %q has shown none", mesh.ErrDenied, c.ID)
	case s == nil:
		return unavailable("this node has not entered the mesh yet; try again in a few seconds")
	}
	return plans.MaySignal(s, mesh.NodeID(c.ID), to)
}

// withRelayRight makes the right to TURN credentials that of the caller of ctx, by s,
// which may be nil. A node that has shown its key has them for being one.
func (g *Gateway) withRelayRight(ctx context.Context, s *mesh.Snapshot) context.Context {
	caller := api.CallerFrom(ctx)
	if caller.Local || caller.IsNode(caller.ID) {
		return ctx
	}
	right := &grant{state: g.cfg.Node, plans: g.cfg.Node, caller: caller, stands: requestFrom(ctx).stands, relays: true}
	if right.refused = mayRelay(s, caller); right.refused == nil {
		right.version = s.Version
	}
	caller.Allowed = right.check
	return api.WithCaller(ctx, caller)
}

// mayRelay is nil when c may open a DataChannel to some node: that is what TURN is
// for to who is none.
func mayRelay(s *mesh.Snapshot, c api.Caller) error {
	if s == nil || !policy.AllowedSome(s, c.ID, v1.RuleResource_RESOURCE_DATA_CHANNELS, v1.RuleVerb_VERB_PUT) {
		return fmt.Errorf("%w: TURN is for nodes and for those who may open DataChannels; %q has no role that grants PUT on DATA_CHANNELS by the name of a node", mesh.ErrDenied, c.ID)
	}
	return nil
}

// granted is nil when the roles of c allow all of actions.
func granted(s *mesh.Snapshot, c api.Caller, actions []mesh.Action) error {
	allowed := func(a mesh.Action) bool { return s != nil && policy.Allowed(s, c.ID, a) }
	if s != nil && len(actions) > 2 { // more than an edge has: they are asked together
		allowed = policy.RightsOf(s, c.ID).Allow
	}
	for _, a := range actions {
		if !allowed(a) {
			return fmt.Errorf("%w: %q has no role that grants %s", mesh.ErrDenied, c.ID, describe(a))
		}
	}
	return nil
}

// grants are the rights of the streaming calls under way.
type grants struct {
	mu   sync.Mutex // guards ends
	ends map[*grant]context.CancelCauseFunc
}

func newGrants() *grants { return &grants{ends: make(map[*grant]context.CancelCauseFunc)} }

// hold notes r until release is called; end ends its call.
func (gs *grants) hold(r *grant, end context.CancelCauseFunc) (release func()) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.ends[r] = end
	return func() {
		gs.mu.Lock()
		defer gs.mu.Unlock()
		delete(gs.ends, r)
	}
}

// review ends the calls whose right is gone.
func (gs *grants) review() (ended int) {
	gs.mu.Lock()
	ends := maps.Clone(gs.ends)
	gs.mu.Unlock()
	for r, end := range ends {
		if err := r.check(); err != nil {
			ended++
			end(err)
		}
	}
	return ended
}

// watchRights ends what is no longer allowed, until ctx ends. A right has three
// sources: credential files, which only a look can tell to have changed, the
// membership and the roles, which are in the snapshot.
func (g *Gateway) watchRights(ctx context.Context) {
	ticker := time.NewTicker(reviewInterval)
	defer ticker.Stop()
	seen := g.rightsVersion()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		// Read before the review: what changes during it shows the next time.
		now := g.rightsVersion()
		if slices.Equal(now, seen) {
			continue
		}
		seen = now
		if n := g.grants.review(); n > 0 {
			g.metrics.revoked.Add(float64(n))
			g.log.Info("calls ended that are no longer allowed", "n", n)
		}
		if g.cfg.Access.Changed != nil {
			g.cfg.Access.Changed()
		}
	}
}

// rightsVersion differs whenever a right may have ended.
func (g *Gateway) rightsVersion() []uint64 {
	var version []uint64
	if s := g.cfg.Node.Snapshot(); s != nil {
		version = append(version, s.Version)
	}
	for _, a := range g.cfg.Access.Authenticators {
		version = append(version, a.Generation())
	}
	return version
}
