// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// secretPatience is how long a gateway waits for the secrets of the mesh before
// it serves without them.
const secretPatience = 10 * time.Second

// secretPause is the pause before it tries again to make the one that is not
// there.
const secretPause = 5 * time.Second

// learnSecrets returns once the secrets of the mesh are known; group follows
// that of TURN.
func (p *gatewayProcess) learnSecrets(ctx context.Context, group *errgroup.Group) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.shared.Ready():
	}
	if !p.sharesTURN() {
		return nil
	}
	known := make(chan struct{})
	group.Go(func() error { return p.shareTURN(ctx, sync.OnceFunc(func() { close(known) })) })
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-known:
		return nil
	}
}

// shareTURN makes the TURN secret of the mesh that of this gateway, and follows
// it until ctx ends. ready is called once it is so, or could not be for a while:
// meanwhile the gateway takes the credentials that it mints itself.
func (p *gatewayProcess) shareTURN(ctx context.Context, ready func()) error {
	patience := time.AfterFunc(secretPatience, func() {
		p.log.Warn("the TURN secret of the mesh is not known: for now, other gateways do not take the credentials of this one")
		p.secrets.Settle()
		ready()
	})
	defer patience.Stop()
	var have string
	for {
		secret, changed := p.shared.TURN()
		if len(secret) > 0 && string(secret) != have {
			if err := p.secrets.Rotate(secret); err != nil {
				p.log.Warn("TURN secret of the mesh not used", "err", err)
			}
			have = string(secret)
			if patience.Stop() {
				ready()
			}
		}
		var again <-chan time.Time
		if len(secret) == 0 {
			if err := p.shared.MakeTURN(ctx); err != nil && ctx.Err() == nil {
				p.log.Warn("TURN secret of the mesh not made, trying again", "err", err)
			}
			again = time.After(secretPause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}

// sharesTURN reports whether the gateway takes the TURN secret of the mesh: the
// operator has given none.
func (p *gatewayProcess) sharesTURN() bool { return p.turn != nil && p.cfg.turnSecretFile == "" }

// relayStranger says whether somebody may log in to TURN to whom this gateway
// gave no credentials since it started: another issuer of the operator's secret
// did, or a gateway, this one before it started anew or another. Gateways give
// them to nodes and to those who may open channels. A node that was removed and a
// user whose last token has ended lose them at every gateway.
func (p *gatewayProcess) relayStranger(user string) bool {
	ended := p.shared.Ended(user, relayLife)
	s := p.node.Snapshot()
	switch {
	case s != nil && s.Node(mesh.NodeID(user)) != nil:
		return true
	case s != nil && !ended && policy.AllowedSome(s, user, v1.RuleResource_RESOURCE_DATA_CHANNELS, v1.RuleVerb_VERB_PUT):
		return true
	}
	return p.cfg.turnSecretFile != "" && !ended && !p.departed.has(user)
}

// departed are the nodes that have left the mesh of late, for those who cannot
// tell them from users. The zero value is ready; it is safe for concurrent use.
type departed struct {
	mu    sync.Mutex // guards the fields below
	last  mesh.Nodes
	since map[mesh.NodeID]time.Time
}

// maxDeparted bounds them; beyond it those that left first are forgotten, in no
// order among those that left at once.
const maxDeparted = 16384

// follow takes s, which may be nil, for what the mesh is now.
func (d *departed) follow(s *mesh.Snapshot) {
	if s == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(d.since, func(_ mesh.NodeID, at time.Time) bool { return now.Sub(at) > relayLife })
	for before, after := range s.Nodes.Changes(d.last) {
		switch {
		case after != nil:
			delete(d.since, after.ID)
		case d.since == nil:
			d.since = map[mesh.NodeID]time.Time{before.ID: now}
		default:
			d.since[before.ID] = now
		}
	}
	d.last = s.Nodes
	if over := len(d.since) - maxDeparted; over > 0 {
		ids := slices.SortedFunc(maps.Keys(d.since), func(a, b mesh.NodeID) int { return d.since[a].Compare(d.since[b]) })
		for _, id := range ids[:over] {
			delete(d.since, id)
		}
	}
}

// has reports whether user is such a node.
func (d *departed) has(user string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.since[mesh.NodeID(user)]
	return ok && time.Since(at) <= relayLife
}
