// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// lookEach is how often a gateway looks which of its members are silent.
	lookEach = time.Minute
	// silentAfter is the age of a handshake from which a member is silent. One
	// that follows a gateway shakes hands every two minutes.
	silentAfter = 10 * time.Minute
	// maxPurge bounds the nodes that are purged at one look. Should a fault make
	// many seem gone, there is time to see it in the log.
	maxPurge = 20
)

// Purge says which members are removed because they were gone for too long.
type Purge struct {
	// After is for how long; 0 removes nobody.
	After time.Duration
	// Leads reports whether this gateway leads: it removes for all. Nil: it is
	// alone.
	Leads func() bool
	// Alive reports whether a gateway is in reach of this one. Nil: none is.
	Alive func(ctx context.Context) map[mesh.NodeID]bool
}

// ear knows when peers were heard. A wg.Device is one.
type ear interface {
	// Stats returns the state of the interface and its peers.
	Stats() (mesh.InterfaceStats, error)
}

// verdict is what a look at the members says.
type verdict struct {
	silent map[mesh.NodeID]time.Time
	heard  []mesh.NodeID
	purge  []mesh.NodeID
}

// judge looks at the members that run Meshgate: a stock WireGuard peer that says
// nothing may have nothing to say. Each is judged by the gateway that it is
// linked to, the first in order that is alive; those without one by the leader.
func (p *Purge) judge(s *mesh.Snapshot, self mesh.NodeID, handshakes map[mesh.WireGuardKey]time.Time, alive map[mesh.NodeID]bool, leads bool, now time.Time) verdict {
	v := verdict{silent: map[mesh.NodeID]time.Time{}}
	for id, n := range s.Nodes.All() {
		if id == self || n.PublicKey.IsZero() || !n.RunsMeshgate() || n.FollowsNone() {
			continue
		}
		since, noted := s.Silent[id]
		shaken, ours := handshakes[n.PublicKey.WireGuard()]
		switch judge := judgeOf(s, id, self, alive); {
		case ours && now.Sub(shaken) < silentAfter:
			if noted {
				v.heard = append(v.heard, id)
			}
			continue
		case !noted && (judge == self || judge == "" && leads):
			// Another gateway may have heard it later than this one did.
			v.silent[id] = now.Add(-silentAfter)
		}
		if noted && leads && now.Sub(since) >= p.After && len(v.purge) < maxPurge {
			v.purge = append(v.purge, id)
		}
	}
	return v
}

// judgeOf is the gateway that judges a node; empty when none is alive.
func judgeOf(s *mesh.Snapshot, id, self mesh.NodeID, alive map[mesh.NodeID]bool) mesh.NodeID {
	for e := range s.Edges.Of(id) { // in the order of the nodes at the other end
		other := e.Source
		if other == id {
			other = e.Target
		}
		if o := s.Node(other); other == self || o.FollowsNone() && alive[other] {
			return other
		}
	}
	return ""
}

// purge looks at the members again and again until ctx ends.
func (h *holder) purge(ctx context.Context) error {
	if h.cfg.Purge.After <= 0 {
		return nil
	}
	tick := time.NewTicker(lookEach)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			// Right after a start nobody has shaken hands yet.
			if now.Sub(h.node.opened) < silentAfter {
				continue
			}
			if err := h.look(ctx, now); err != nil && ctx.Err() == nil {
				h.node.log.Warn("silent members not noted, or not removed; looking again in a minute", "err", err)
			}
		}
	}
}

// look notes who is silent and purges who has been for too long.
func (h *holder) look(ctx context.Context, now time.Time) error {
	stats, err := h.ear.Stats()
	if err != nil {
		return fmt.Errorf("ask WireGuard who was heard: %w", err)
	}
	handshakes := make(map[mesh.WireGuardKey]time.Time, len(stats.Peers))
	for _, p := range stats.Peers {
		handshakes[p.PublicKey] = p.LastHandshake
	}
	p := &h.cfg.Purge
	leads, alive := true, map[mesh.NodeID]bool{}
	if p.Leads != nil {
		leads = p.Leads()
	}
	if p.Alive != nil {
		maps.Copy(alive, p.Alive(ctx))
	}
	v := p.judge(h.registry.Snapshot(), h.node.cfg.ID, handshakes, alive, leads, now)
	var errs []error
	if len(v.silent)+len(v.heard) > 0 {
		errs = append(errs, h.Members.Note(ctx, v.silent, v.heard))
	}
	for _, id := range v.purge {
		errs = append(errs, h.Members.Purge(ctx, id, now.Add(-p.After)))
	}
	return errors.Join(errs...)
}
