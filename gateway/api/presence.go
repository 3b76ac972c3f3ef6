// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

const (
	// presenceAge is how old what was heard of the presence of nodes may be. All who
	// ask within share one answer.
	presenceAge = 2 * time.Second
	// presencePatience is how long other gateways may take to answer.
	presencePatience = time.Second
)

// RemotePresence asks other nodes over the mesh which nodes are up.
type RemotePresence interface {
	// RemotePresence is Presence.ListPresence of gateway id; own as there.
	RemotePresence(ctx context.Context, id mesh.NodeID, own bool) ([]*meshgatev1.NodePresence, error)
	// Followed is the gateway that this node follows. The error says why there is
	// none: it wraps mesh.ErrUnsupported on a gateway.
	Followed() (mesh.NodeID, error)
}

// presences knows which nodes are up. It is safe for concurrent use.
type presences struct {
	state State
	links *links
	// replicas is nil on a node that keeps no state, and remote where nobody can be
	// asked.
	replicas   Replicas
	remote     RemotePresence
	attendance attendance
	// turn holds a token of who asks the others.
	turn chan struct{}

	mu   sync.Mutex // guards the fields below
	at   time.Time
	list []*meshgatev1.NodePresence
}

func newPresences(cfg *Config, links *links) *presences {
	return &presences{state: cfg.State, links: links, replicas: cfg.Replicas, remote: cfg.Presence, turn: make(chan struct{}, 1)}
}

// all is which nodes are up, by their ids, at most presenceAge ago. It takes
// presencePatience at the longest. Nobody changes the list.
func (p *presences) all(ctx context.Context) ([]*meshgatev1.NodePresence, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if list, ok := p.recent(); ok {
		return list, nil
	}
	s, err := snapshot(p.state)
	if err != nil {
		return nil, err
	}
	asked, cancel := context.WithTimeout(ctx, presencePatience)
	defer cancel()
	list, err := p.look(asked, s)
	if err == nil {
		err = ctx.Err() // what others did not say is not for all
	}
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list, p.at = list, time.Now()
	return list, nil
}

// recent is the last answer, unless it is too old.
func (p *presences) recent() ([]*meshgatev1.NodePresence, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.list, !p.at.IsZero() && time.Since(p.at) < presenceAge
}

// look asks who knows: on a node its gateway, on a gateway all gateways.
func (p *presences) look(ctx context.Context, s *mesh.Snapshot) ([]*meshgatev1.NodePresence, error) {
	if s.Node(p.state.Self()).HoldsState() {
		r := roll{snapshot: s, now: time.Now()}
		var asking sync.WaitGroup
		asking.Go(func() { r.replicas = p.alive(ctx) })
		r.heard = p.ask(ctx, s)
		asking.Wait()
		// To ask gateways shakes hands with those to which nothing was sent of late.
		own, err := p.own(s)
		if err != nil {
			return nil, err
		}
		r.heard[p.state.Self()] = own
		return r.call(), nil
	}
	if p.remote == nil {
		return nil, fmt.Errorf("%w: this node follows no gateway", mesh.ErrUnsupported)
	}
	gate, err := p.remote.Followed()
	if err != nil {
		return nil, err
	}
	return p.remote.RemotePresence(ctx, gate, false)
}

// own is what this gateway has heard itself.
func (p *presences) own(s *mesh.Snapshot) ([]*meshgatev1.NodePresence, error) {
	stats, err := p.links.get()
	if err != nil {
		return nil, fmt.Errorf("read interface statistics: %w", err)
	}
	return p.attendance.heard(s, p.state.Self(), stats, time.Now()), nil
}

// alive is how the cluster hears its gateways; nil where there is none.
func (p *presences) alive(ctx context.Context) []Replica {
	if p.replicas == nil {
		return nil
	}
	return p.replicas.Replicas(ctx)
}

// ask asks the other gateways, all at once, for what they have heard. Those that do
// not answer are not in the result.
func (p *presences) ask(ctx context.Context, s *mesh.Snapshot) map[mesh.NodeID][]*meshgatev1.NodePresence {
	heard := map[mesh.NodeID][]*meshgatev1.NodePresence{}
	if p.remote == nil {
		return heard
	}
	var mu sync.Mutex // guards heard
	var asking sync.WaitGroup
	n := 0
	for _, g := range s.Nodes.All() { // also those without a public address
		if g.ID == p.state.Self() || !g.HoldsState() {
			continue
		}
		if n++; n > maxServers {
			break
		}
		asking.Go(func() {
			list, err := p.remote.RemotePresence(ctx, g.ID, true)
			if err != nil {
				return // that it does not answer is the answer
			}
			mu.Lock()
			defer mu.Unlock()
			heard[g.ID] = list
		})
	}
	asking.Wait()
	return heard
}

// roll is what a gateway has to tell which nodes are up.
type roll struct {
	snapshot *mesh.Snapshot
	now      time.Time
	// heard is what each gateway that answered has heard itself.
	heard    map[mesh.NodeID][]*meshgatev1.NodePresence
	replicas []Replica
}

// call is the presence of all nodes of the mesh, by their ids.
func (r *roll) call() []*meshgatev1.NodePresence {
	newest := make(map[string]*meshgatev1.NodePresence, r.snapshot.Nodes.Len())
	for gate, list := range r.heard {
		for _, m := range list {
			m := r.from(gate, m)
			if old := newest[m.GetNodeId()]; old == nil || later(m, old) {
				newest[m.GetNodeId()] = m
			}
		}
	}
	list := make([]*meshgatev1.NodePresence, 0, r.snapshot.Nodes.Len())
	for id, n := range r.snapshot.Nodes.All() {
		if n.FollowsNone() {
			list = append(list, r.gateway(id))
			continue
		}
		m := newest[string(id)]
		if m == nil {
			m = &meshgatev1.NodePresence{NodeId: string(id), State: meshgatev1.PresenceState_PRESENCE_STATE_NEVER}
		}
		if gate := r.unasked(id); gate != "" && m.GetState() != meshgatev1.PresenceState_PRESENCE_STATE_UP {
			m = &meshgatev1.NodePresence{NodeId: string(id), GatewayId: string(gate)}
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *meshgatev1.NodePresence) int { return strings.Compare(a.GetNodeId(), b.GetNodeId()) })
	return list
}

// from is what a gateway says of a node, with the name of the gateway. Its clock may
// be ahead.
func (r *roll) from(gate mesh.NodeID, m *meshgatev1.NodePresence) *meshgatev1.NodePresence {
	out := &meshgatev1.NodePresence{NodeId: m.GetNodeId(), State: m.GetState(), Stopped: m.GetStopped(), GatewayId: string(gate)}
	if at := m.GetLastHeard(); at.IsValid() {
		out.LastHeard = at
		if at.AsTime().After(r.now) {
			out.LastHeard = timestamppb.New(r.now)
		}
	}
	return out
}

// later reports whether a is of a later time than b. A node that follows a gateway
// is heard now.
func later(a, b *meshgatev1.NodePresence) bool {
	if a.GetLastHeard() == nil || b.GetLastHeard() == nil {
		return a.GetLastHeard() == nil && (b.GetLastHeard() != nil || a.GetGatewayId() < b.GetGatewayId())
	}
	return a.GetLastHeard().AsTime().After(b.GetLastHeard().AsTime())
}

// unasked is a gateway with an edge to a node that has not answered, where it may
// have heard the node later than all others; empty for none.
func (r *roll) unasked(id mesh.NodeID) (silent mesh.NodeID) {
	for e := range r.snapshot.Edges.Of(id) {
		other := e.Source
		if other == id {
			other = e.Target
		}
		if !r.snapshot.Node(other).HoldsState() {
			continue
		}
		if _, ok := r.heard[other]; !ok && silent == "" {
			silent = other
		}
	}
	return silent
}

// gateway is the presence of a gateway: the cluster hears it many times a second,
// and it may have answered just now.
func (r *roll) gateway(id mesh.NodeID) *meshgatev1.NodePresence {
	m := &meshgatev1.NodePresence{NodeId: string(id), State: meshgatev1.PresenceState_PRESENCE_STATE_DOWN}
	if _, answered := r.heard[id]; answered {
		m.State = meshgatev1.PresenceState_PRESENCE_STATE_UP
		return m
	}
	for i := range r.replicas {
		one := &r.replicas[i]
		switch {
		case one.ID != id:
		case one.alive():
			m.State = meshgatev1.PresenceState_PRESENCE_STATE_UP
		case one.Known:
			m.LastHeard = timestamppb.New(r.now.Add(-one.LastContact).Round(time.Second))
		}
	}
	return m
}

// explain says of a node that does not answer, with err, what is known of it. The
// error wraps mesh.ErrUnavailable.
func explain(id mesh.NodeID, list []*meshgatev1.NodePresence, err error) error {
	i := slices.IndexFunc(list, func(m *meshgatev1.NodePresence) bool { return m.GetNodeId() == string(id) })
	if i < 0 {
		return err
	}
	m := list[i]
	by := ""
	if m.GetGatewayId() != "" {
		by = " by " + m.GetGatewayId()
	}
	switch m.GetState() {
	case meshgatev1.PresenceState_PRESENCE_STATE_DOWN:
		if m.GetLastHeard() == nil {
			return fmt.Errorf("%w: %s is down; see that it is on and online", mesh.ErrUnavailable, id)
		}
		ago := time.Since(m.GetLastHeard().AsTime()).Round(time.Second)
		if m.GetStopped() {
			return fmt.Errorf("%w: %s stopped %s ago; start Meshgate on it", mesh.ErrUnavailable, id, ago)
		}
		return fmt.Errorf("%w: %s is down: it was last heard %s ago%s; see that it is on and online", mesh.ErrUnavailable, id, ago, by)
	case meshgatev1.PresenceState_PRESENCE_STATE_NEVER:
		return fmt.Errorf("%w: %s has not been heard by any gateway since they started; start Meshgate on it", mesh.ErrUnavailable, id)
	case meshgatev1.PresenceState_PRESENCE_STATE_UNSPECIFIED:
		return fmt.Errorf("%w; gateway %s, which would know more of it, does not answer either", err, m.GetGatewayId())
	default:
		return err
	}
}

// presenceService serves meshgate.v1.Presence.
type presenceService struct{ presences *presences }

var _ meshgatev1connect.PresenceHandler = (*presenceService)(nil)

// ListPresence tells which nodes are up.
func (p *presenceService) ListPresence(ctx context.Context, req *connect.Request[meshgatev1.ListPresenceRequest]) (*connect.Response[meshgatev1.ListPresenceResponse], error) {
	if !req.Msg.GetOwn() {
		list, err := p.presences.all(ctx)
		if err != nil {
			return nil, err
		}
		return connect.NewResponse(&meshgatev1.ListPresenceResponse{Nodes: list}), nil
	}
	s, err := held(p.presences.state)
	if err != nil {
		return nil, err
	}
	list, err := p.presences.own(s)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b *meshgatev1.NodePresence) int { return strings.Compare(a.GetNodeId(), b.GetNodeId()) })
	return connect.NewResponse(&meshgatev1.ListPresenceResponse{Nodes: list}), nil
}

// Stop notes that the caller ends.
func (p *presenceService) Stop(ctx context.Context, _ *connect.Request[meshgatev1.StopRequest]) (*connect.Response[meshgatev1.StopResponse], error) {
	s, err := held(p.presences.state)
	if err != nil {
		return nil, err
	}
	n := CallerFrom(ctx).Node
	if n == nil {
		return nil, fmt.Errorf("%w: only a node itself says that it stops, over the mesh", mesh.ErrDenied)
	}
	p.presences.attendance.stop(s, n.ID)
	return connect.NewResponse(&meshgatev1.StopResponse{}), nil
}
