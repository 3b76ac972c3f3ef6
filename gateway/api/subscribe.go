// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// gatherTime is the least time between two looks at the state for one
// subscriber. A change after a quiet time is sent at once; changes that follow
// it closely are sent together, this much later.
const gatherTime = 50 * time.Millisecond

// catchUpTimeout bounds the wait for the state that a subscriber has already.
const catchUpTimeout = 3 * time.Second

// SubscribePeers sends a node's configuration at once, and again whenever it
// differs from the last one sent. Each stream goes its own pace: while a client
// does not read, nothing is queued for it, and it gets the latest configuration
// when it reads again.
func (m *membershipService) SubscribePeers(ctx context.Context, req *connect.Request[v1.SubscribePeersRequest], stream *connect.ServerStream[v1.PeerConfigurations]) error {
	id, err := mesh.ParseNodeID(req.Msg.GetId())
	if err != nil {
		return err
	}
	s, err := m.caughtUp(ctx, id, req.Msg.GetAfter())
	if err != nil {
		return err
	}
	if m.attendance != nil && CallerFrom(ctx).IsNode(string(id)) {
		defer m.attendance.enter(s, id)()
	}
	sub := &subscriber{service: m, id: id, packed: packs(req.Header()), answer: answerFrom(ctx)}
	for {
		looked := time.Now()
		if err := sub.tell(ctx, s, stream.Send); err != nil {
			return err
		}
		if s, err = m.next(ctx, s.Version, looked); err != nil {
			return err
		}
	}
}

// caughtUp returns what this gateway knows, at once: a cluster without a leader
// goes on telling it. Only for a subscriber that has a later state from another
// gateway, or that joined there a moment ago, it catches up first.
func (m *membershipService) caughtUp(ctx context.Context, id mesh.NodeID, after uint64) (*mesh.Snapshot, error) {
	s, err := held(m.state)
	if err != nil || s.Revision >= after && s.Node(id) != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	latest, err := m.state.Sync(ctx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("catch up with change %d: %w", after, err)
	case latest.Revision < after:
		return nil, fmt.Errorf("%w: this mesh has not got change %d, which the node says it has: the state was restored; the node has to be adopted, or join", mesh.ErrUnavailable, after)
	}
	return latest, nil
}

// next returns the latest snapshot after a version, gatherTime after the last
// look or later.
func (m *membershipService) next(ctx context.Context, version uint64, looked time.Time) (*mesh.Snapshot, error) {
	s, err := m.news.wait(ctx, m.state, version)
	if err != nil {
		return nil, err
	}
	rest := gatherTime - time.Since(looked)
	if rest <= 0 {
		return s, nil
	}
	timer := time.NewTimer(rest)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
	}
	return m.state.Wait(ctx, s.Version-1)
}

// subscriber is one stream of configurations of a node. One goroutine uses it.
type subscriber struct {
	service *membershipService
	id      mesh.NodeID
	packed  bool // messages may hold encoded peers
	// sent is the last configuration that was sent; nil before the first.
	sent *configuration
	// answer is what messages are written to; nil when that is not known.
	answer *shiftWriter

	// acls are those that concern the node, of the lists told and groups.
	acls   []*v1.NetworkACL
	told   []mesh.ACL
	groups []mesh.Group
}

// tell sends the configuration of s unless it is as the last one. It takes shifts
// with other subscribers to make the message; one that does not take its message
// holds up nobody.
func (b *subscriber) tell(ctx context.Context, s *mesh.Snapshot, send func(*v1.PeerConfigurations) error) error {
	end, err := b.service.shifts.take(ctx)
	if err != nil {
		return err
	}
	defer end()
	c, err := b.configuration(s)
	if err != nil || c.same(b.sent) {
		return err
	}
	var buffer *[]byte
	if b.packed {
		buffer = b.service.peers.buffer()
		defer b.service.peers.spare.Put(buffer)
	}
	m, err := b.service.peers.message(s, c, buffer)
	if err != nil {
		return err
	}
	b.answer.endsShift(end)
	b.sent = c
	return send(m)
}

// configuration is what the node needs to follow s.
func (b *subscriber) configuration(s *mesh.Snapshot) (*configuration, error) {
	m := b.service
	if s.Node(b.id) == nil {
		return nil, fmt.Errorf("%w: node %q is not, or no longer, in this mesh; join first", mesh.ErrNotFound, b.id)
	}
	plan, err := m.state.Plan(s, b.id)
	if err != nil {
		return nil, fmt.Errorf("plan for node %q: %w", b.id, err)
	}
	c := &configuration{
		gateway:  m.state.Self(),
		revision: s.Revision,
		peers:    plan.Peers,
		acls:     b.concerning(s),
		dns:      m.directory.dnsServers(s, b.id),
		gateways: m.directory.gatewaysBut(s, b.id),
	}
	for p := range plan.Peers.All() {
		if p.Endpoint == "" || p.Protocol == v1.ConnectProtocol_CONNECT_ICE {
			c.ice = m.directory.iceServers(s)
			break
		}
	}
	return c, nil
}

// concerning returns the ACLs that concern the node. Lists of a snapshot that
// did not change are the same memory as before.
func (b *subscriber) concerning(s *mesh.Snapshot) []*v1.NetworkACL {
	if !mesh.SameList(b.told, s.ACLs) || !mesh.SameList(b.groups, s.Groups) {
		b.acls = b.service.directory.concerning(s, b.id)
		b.told, b.groups = s.ACLs, s.Groups
	}
	return b.acls
}
