// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

const (
	// lookEach is how often a gateway looks which of its members are silent, and
	// rivalsEach how often while one of them can stand in for another.
	lookEach   = time.Minute
	rivalsEach = 15 * time.Second
	// silentAfter is the age of a handshake from which a member is silent. One
	// that follows a gateway shakes hands every two minutes.
	silentAfter = 10 * time.Minute
	// A node for which another one can stand in is silent sooner. One that calls
	// its gateway keeps its way there open (keepalive), so that it is missed after
	// callerSilent; another one after the time for which WireGuard uses a session.
	callerSilent = 2*keepalive + 10*time.Second
	rivalSilent  = 3 * time.Minute
	// watchEach is how often it is stored for how long a leader has watched who is
	// silent: what it did not store when it ends, does not count.
	watchEach = 10 * time.Minute
	// maxDrift is how far a clock may go wrong from one look to the next: much more
	// than it does where it is kept right.
	maxDrift = 30 * time.Second
	// maxPurge bounds the nodes that are purged in each lookEach. Should a fault make
	// many seem gone, there is time to see it in the log.
	maxPurge = 20
)

// Purge says which members are removed because they were gone for too long.
type Purge struct {
	// After is for how long, both by the clocks of the gateways, which somebody may
	// set, and as leaders have watched it: while there is none, or one has just
	// begun, nothing counts. 0 removes nobody, and only of nodes for which another
	// one can stand in is it noted that they are silent.
	After time.Duration
	// Leads reports whether this gateway leads: it removes for all. Nil: it is
	// alone.
	Leads func() bool
	// Alive reports whether a gateway is in reach of this one. Nil: none is.
	Alive func(ctx context.Context) map[mesh.NodeID]bool
}

// leads reports whether this gateway removes for all.
func (p *Purge) leads() bool { return p.Leads == nil || p.Leads() }

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

// ears is when a gateway has heard its peers.
type ears struct {
	// handshakes are when the last one was.
	handshakes map[mesh.WireGuardKey]time.Time
	// heard are when something was, for the nodes in rivals.
	heard map[mesh.WireGuardKey]time.Time
	// rivals are the nodes for which another one can stand in.
	rivals map[mesh.NodeID]bool
	// due is true when the others are judged, too, and members are purged, unless the
	// clock was set since the look before.
	due, set bool
	// missed is since when nodes are silent for which that is not noted yet, such
	// as while there is no leader. It is kept from one look to the next.
	missed map[mesh.NodeID]time.Time
}

// first dates the silence of those in v by the look that found it first.
func (e *ears) first(v verdict) {
	maps.DeleteFunc(e.missed, func(id mesh.NodeID, _ time.Time) bool {
		_, still := v.silent[id]
		return !still && (e.due || e.rivals[id])
	})
	for id, since := range v.silent {
		if before, ok := e.missed[id]; ok && before.Before(since) {
			v.silent[id] = before
		}
		e.missed[id] = v.silent[id]
	}
}

// since returns from when on a node is silent that is not heard any more, and
// whether it still is. Known is false for one that is no peer. One that was heard
// when it was looked at the last time is silent since it was heard; of another one
// it is only known that it was not of late.
func (e *ears) since(n *mesh.Node, now time.Time) (silent time.Time, heard, known bool) {
	key := n.PublicKey.WireGuard()
	last, known := e.handshakes[key]
	after := silentAfter
	if e.rivals[n.ID] {
		if after = rivalSilent; n.PrimaryEndpoint == "" {
			after = callerSilent
		}
		if at := e.heard[key]; at.After(last) {
			last = at
		}
	}
	each := lookEach
	if e.rivals[n.ID] {
		each = rivalsEach
	}
	silent = now.Add(-after)
	if known && last.Before(silent) && silent.Sub(last) <= each {
		silent = last
	}
	return silent, now.Sub(last) < after, known
}

// judge looks at the members that run Meshgate: a stock WireGuard peer that says
// nothing may have nothing to say. Each is judged by the gateway that it is
// linked to, the first in order that is alive; those without one by the leader.
// Between looks that are due it judges rivals only, and purges nobody: maxPurge
// bounds the nodes per lookEach, however often rivals are looked at.
func (p *Purge) judge(s *mesh.Snapshot, self mesh.NodeID, e *ears, alive map[mesh.NodeID]bool, leads bool, now time.Time) verdict {
	v := verdict{silent: map[mesh.NodeID]time.Time{}}
	for id, n := range s.Nodes.All() {
		if id == self || n.PublicKey.IsZero() || !n.RunsMeshgate() || n.FollowsNone() {
			continue
		}
		since, noted := s.Silent[id]
		if !e.rivals[id] && (!e.due || p.After <= 0 && !noted) {
			continue // it makes no difference
		}
		silent, heard, ours := e.since(n, now)
		switch judge := judgeOf(s, id, self, alive); {
		case ours && heard:
			if noted {
				v.heard = append(v.heard, id)
			}
			continue
		case !noted && (judge == self || judge == "" && leads):
			// Another gateway may have heard it later than this one did.
			v.silent[id] = silent
		}
		if e.due && noted && leads && p.gone(s, id, now.Sub(since)) && !e.set && len(v.purge) < maxPurge {
			v.purge = append(v.purge, id)
		}
	}
	return v
}

// gone reports whether a node, which is silent for a time by the clocks of the
// gateways, is to be removed.
func (p *Purge) gone(s *mesh.Snapshot, id mesh.NodeID, silent time.Duration) bool {
	return p.After > 0 && silent >= p.After && s.Unheard(id) >= p.After+watchEach
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
	tick := time.NewTicker(rivalsEach)
	defer tick.Stop()
	w, missed, guard := watch{}, map[mesh.NodeID]time.Time{}, vigil{}
	for last := h.node.opened; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case at := <-tick.C: // by a clock that nobody sets
			now := at
			if h.clock != nil {
				now = h.clock()
			}
			s := h.registry.Snapshot()
			if s == nil {
				continue
			}
			// Right after a start nobody has shaken hands yet.
			young := at.Sub(h.node.opened) < silentAfter
			e := &ears{
				rivals: policy.Rivals(s), missed: missed,
				due: at.Sub(last) >= lookEach && !young && (h.cfg.Purge.After > 0 || len(s.Silent) > 0),
			}
			if len(e.rivals) == 0 && !e.due {
				clear(w)
				clear(missed)
				continue
			}
			if e.due {
				last = at
				e.set = h.keepVigil(&guard, at, now)
			}
			err := h.look(ctx, s, e, w, now)
			if e.due {
				err = errors.Join(err, h.storeVigil(ctx, &guard, s))
			}
			if err != nil && ctx.Err() == nil {
				h.node.log.Warn("silent members not noted, or not removed; looking again soon", "err", err)
			}
		}
	}
}

// watch is what was received from peers up to which time.
type watch map[mesh.WireGuardKey]received

type received struct {
	bytes uint64
	at    time.Time
}

// hear notes what was received from peers. Those that it did not know count as
// heard now, since what they sent before is unknown, unless they are noted as
// silent.
func (w watch) hear(s *mesh.Snapshot, rivals map[mesh.NodeID]bool, peers []mesh.PeerStats, now time.Time) map[mesh.WireGuardKey]time.Time {
	keys := make(map[mesh.WireGuardKey]mesh.NodeID, len(rivals))
	for id := range rivals {
		if n := s.Node(id); n != nil && !n.PublicKey.IsZero() {
			keys[n.PublicKey.WireGuard()] = id
		}
	}
	heard := make(map[mesh.WireGuardKey]time.Time, len(keys))
	for _, p := range peers {
		id, ok := keys[p.PublicKey]
		if !ok {
			continue
		}
		r, known := w[p.PublicKey]
		_, noted := s.Silent[id]
		switch {
		case !known && noted:
			r = received{bytes: p.ReceiveBytes}
		case !known || r.bytes != p.ReceiveBytes:
			r = received{p.ReceiveBytes, now}
		}
		w[p.PublicKey], heard[p.PublicKey] = r, r.at
	}
	maps.DeleteFunc(w, func(key mesh.WireGuardKey, _ received) bool { return keys[key] == "" })
	return heard
}

// tellRouters says in the log which routers are not heard any more, and which are
// again, once that is noted.
func (h *holder) tellRouters(s *mesh.Snapshot, e *ears, v verdict, now time.Time) {
	for id, since := range v.silent {
		if e.rivals[id] {
			h.node.log.Warn("a router is not heard; another one stands in for it where one offers the same networks", "peer", string(id), "since", since.UTC().Format(time.RFC3339))
		}
	}
	for _, id := range v.heard {
		if e.rivals[id] {
			h.node.log.Info("a router is heard again", "peer", string(id), "after", now.Sub(s.Silent[id]).Round(time.Second))
		}
	}
}

// look notes who is silent and purges who has been for too long.
func (h *holder) look(ctx context.Context, s *mesh.Snapshot, e *ears, w watch, now time.Time) error {
	stats, err := h.ear.Stats()
	if err != nil {
		return fmt.Errorf("ask WireGuard who was heard: %w", err)
	}
	e.handshakes = make(map[mesh.WireGuardKey]time.Time, len(stats.Peers))
	for _, p := range stats.Peers {
		e.handshakes[p.PublicKey] = p.LastHandshake
	}
	e.heard = w.hear(s, e.rivals, stats.Peers, now)
	p := &h.cfg.Purge
	leads, alive := p.leads(), map[mesh.NodeID]bool{}
	if p.Alive != nil {
		maps.Copy(alive, p.Alive(ctx))
	}
	v := p.judge(s, h.node.cfg.ID, e, alive, leads, now)
	e.first(v)
	var errs []error
	if len(v.silent)+len(v.heard) > 0 {
		if err := h.Members.Note(ctx, v.silent, v.heard); err != nil {
			errs = append(errs, err)
		} else {
			clear(e.missed)
			h.tellRouters(s, e, v, now)
		}
	}
	for _, id := range v.purge {
		errs = append(errs, h.Members.Purge(ctx, id, now.Add(-p.After), p.After+watchEach))
	}
	return errors.Join(errs...)
}
