// SPDX-License-Identifier: Apache-2.0

package api

import (
	"maps"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

const (
	// returnTime is how long a node whose stream has broken counts as up: it follows
	// this gateway again, or another one, within.
	returnTime = 10 * time.Second
	// spareAttendees is how many nodes that are no members any more are remembered
	// at least before they are looked for.
	spareAttendees = 64
)

// attendance is which nodes follow this gateway, and until when others did. A stream
// that stands is a sure sign of life: both ends probe it, and one that is dead ends
// within a minute. The zero value is ready; it is safe for concurrent use.
type attendance struct {
	mu    sync.Mutex // guards the field below
	nodes map[mesh.NodeID]attendee
}

type attendee struct {
	streams int
	// ended is when the last stream did, or when the node said that it stops.
	ended   time.Time
	stopped bool
}

// enter counts a stream of a member of s until leave is called.
func (a *attendance) enter(s *mesh.Snapshot, id mesh.NodeID) (leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pruneLocked(s)
	if a.nodes == nil {
		a.nodes = make(map[mesh.NodeID]attendee)
	}
	n := a.nodes[id]
	n.streams, n.stopped = n.streams+1, false
	a.nodes[id] = n
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		n := a.nodes[id]
		n.streams--
		if !n.stopped {
			n.ended = time.Now()
		}
		a.nodes[id] = n
	})
}

// stop notes that a member of s has said that it ends.
func (a *attendance) stop(s *mesh.Snapshot, id mesh.NodeID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pruneLocked(s)
	if a.nodes == nil {
		a.nodes = make(map[mesh.NodeID]attendee)
	}
	n := a.nodes[id]
	n.stopped, n.ended = true, time.Now()
	a.nodes[id] = n
}

// pruneLocked forgets who is no member any more, now and then.
func (a *attendance) pruneLocked(s *mesh.Snapshot) {
	if len(a.nodes) <= 2*s.Nodes.Len()+spareAttendees {
		return
	}
	maps.DeleteFunc(a.nodes, func(id mesh.NodeID, n attendee) bool { return n.streams == 0 && s.Node(id) == nil })
}

// heard are the nodes that this gateway has heard since it started, in no order:
// those that follow it, and its WireGuard peers. Gateways are left out, which the
// cluster hears.
func (a *attendance) heard(s *mesh.Snapshot, self mesh.NodeID, stats mesh.InterfaceStats, now time.Time) []*meshgatev1.NodePresence {
	a.mu.Lock()
	nodes := maps.Clone(a.nodes)
	a.mu.Unlock()
	shaken := make(map[mesh.NodeID]time.Time, len(stats.Peers))
	for _, p := range stats.Peers {
		if n, ok := s.NodeByKey(p.PublicKey); ok && !p.LastHandshake.IsZero() {
			shaken[n.ID] = p.LastHandshake
		}
	}
	list := make([]*meshgatev1.NodePresence, 0, len(shaken))
	add := func(id mesh.NodeID, at attendee) {
		if n := s.Node(id); n == nil || id == self || n.FollowsNone() {
			return
		}
		list = append(list, at.presence(id, shaken[id], now))
	}
	for id, n := range nodes {
		add(id, n)
	}
	for id := range shaken {
		if _, ok := nodes[id]; !ok {
			add(id, attendee{})
		}
	}
	return list
}

// presence is what is known of a node by its streams and by when it last shook
// hands; zero is never.
func (n attendee) presence(id mesh.NodeID, shaken, now time.Time) *meshgatev1.NodePresence {
	m := &meshgatev1.NodePresence{NodeId: string(id), State: meshgatev1.PresenceState_PRESENCE_STATE_UP}
	last := n.ended
	switch back := shaken.After(n.ended); {
	case n.streams > 0 && !n.stopped:
		return m
	case back:
		last = shaken
		if now.Sub(shaken) >= handshakeAge {
			m.State = meshgatev1.PresenceState_PRESENCE_STATE_DOWN
		}
	case n.stopped:
		m.State, m.Stopped = meshgatev1.PresenceState_PRESENCE_STATE_DOWN, true
	case now.Sub(n.ended) >= returnTime:
		m.State = meshgatev1.PresenceState_PRESENCE_STATE_DOWN
	}
	m.LastHeard = timestamppb.New(last.Round(time.Second))
	return m
}
