// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// gate decides, before a message of a call is read, whether the caller may
// come in: who it is, whether it is one of those the procedure is for, and
// whether it has had its share. What roles it needs is decided by the
// interceptor, which sees the message; where they do not depend on it, by the
// gate, too.
func (g *Gateway) gate(ctx context.Context, spec connect.Spec, _ connect.Peer, h http.Header) (context.Context, error) {
	started := time.Now()
	q := requestFrom(ctx)
	caller, err := g.admit(ctx, q, spec, h)
	if err == nil {
		err = g.foresee(ctx, spec, caller, h)
	}
	if err != nil {
		g.metrics.started.WithLabelValues(spec.Procedure).Inc()
		return nil, g.ended(api.WithCaller(ctx, caller), spec, started, err)
	}
	return api.WithCaller(ctx, caller), nil
}

func (g *Gateway) admit(ctx context.Context, q *request, spec connect.Spec, h http.Header) (api.Caller, error) {
	caller := api.Caller{Addr: q.from}
	procedure := spec.Procedure
	rule := g.rules[procedure]
	if rule.access == anyone {
		return caller, nil
	}
	if g.waits != nil && (!rule.early || g.cfg.Node.Snapshot() == nil) {
		return caller, errEarly
	}
	var err error
	if caller, err = g.identify(ctx, q, h); err != nil {
		return caller, err
	}
	q.caller = caller.ID
	switch {
	case caller.Local && !rule.local:
		return caller, fmt.Errorf("%w: the socket of a node answers what the node itself knows; ask a gateway for this (--server or --context)", mesh.ErrDenied)
	case rule.access == identified:
	case rule.access == gateways && g.believes(caller.Node):
	case rule.access == gateways:
		return caller, fmt.Errorf("%w: only gateways may call this, on the mesh address of the node", mesh.ErrDenied)
	default:
		return caller, fmt.Errorf("%w: no rule lets anybody call %s", mesh.ErrDenied, procedure)
	}
	if spec.StreamType == connect.StreamTypeUnary {
		release, ok := g.unary.acquire(caller.ID)
		if !ok {
			return caller, fmt.Errorf("%w: %q makes %d calls at a time; wait for some to end", mesh.ErrExhausted, caller.ID, maxUnary)
		}
		q.ended = release
	}
	if q.socket != nil && !q.socket.hold(g.sockets, caller.ID) {
		return caller, fmt.Errorf("%w: %q holds %d WebSockets; close some", mesh.ErrExhausted, caller.ID, g.cfg.Limits.Sockets)
	}
	if rule.channel && g.channels != nil && !g.channels.take(caller.ID) {
		return caller, fmt.Errorf("%w: %q begins more than %g channels per second; wait a second", mesh.ErrExhausted, caller.ID, g.cfg.Limits.ChannelRate)
	}
	if rule.writes && !g.writes.take(caller.ID) {
		return caller, tooManyWrites(caller.ID)
	}
	return caller, nil
}

func tooManyWrites(caller string) error {
	return fmt.Errorf("%w: %q changes the mesh more than %d times per second; wait a second, or make many changes in one call of meshgate.v1.Objects",
		mesh.ErrExhausted, caller, writeRate)
}

// foresee refuses a caller whose roles cannot allow the call, whatever its
// message says. Who has them by what this gateway knows comes in at once: the
// interceptor asks again, by the state that counts for the call.
func (g *Gateway) foresee(ctx context.Context, spec connect.Spec, caller api.Caller, h http.Header) error {
	rule := g.rules[spec.Procedure]
	if !rule.blind {
		return nil
	}
	var s *mesh.Snapshot
	ctx, cancel := context.WithTimeout(ctx, unaryTimeout)
	defer cancel()
	if g.cfg.Node.Snapshot() != nil {
		var err error
		if s, err = g.latest(ctx); err != nil {
			return err
		}
	}
	if rule.authorize(s, caller, nil) == nil {
		return nil
	}
	s, err := g.state(ctx, spec, h)
	if err != nil {
		return err
	}
	return rule.authorize(s, caller, nil)
}

// maxUnary bounds the calls of one identity that are no streams, at a time, whose
// messages may be on their way.
const maxUnary = 1024

// writeRate and writeBurst bound the changes of one identity, each of which is
// synced to disk. An operator who enrols a rack of machines stays below.
const writeRate, writeBurst = 20, 200

// publishRate and publishBurst bound what one identity publishes at a gateway, in
// bytes per second and at once: every replica keeps it on disk, and the latest in
// memory. A small value counts as minPublished, so that there is room for some
// 16 000 of them per second.
const publishRate, publishBurst, minPublished = 4 << 20, 32 << 20, 256

// believes reports whether n is a gateway whose word on its clients counts.
// What a node says of itself was granted when it joined; where the roles are
// known they have to grant it still.
func (g *Gateway) believes(n *mesh.Node) bool {
	if !n.Negotiates() {
		return false
	}
	s := g.cfg.Node.Snapshot()
	return s != nil && (len(s.Roles) == 0 || policy.Allowed(s, string(n.ID), put(v1.RuleResource_RESOURCE_VOTES, "")))
}

// localOperator names the callers at the local listener. It is no name that a
// user or a node may have.
const localOperator = "local:operator"

// identify finds out who calls. On a mesh listener it is the node whose
// address the call comes from, because WireGuard drops packets from any other;
// elsewhere it is whoever the credentials belong to.
func (g *Gateway) identify(ctx context.Context, q *request, h http.Header) (api.Caller, error) {
	caller := api.Caller{Addr: q.from}
	if q.local {
		caller.ID, caller.Local = localOperator, true
		return caller, nil
	}
	if !q.mesh {
		id, err := g.authenticate(ctx, h, q.from.Addr())
		caller.ID, caller.Keyed, q.stands = id.ID, id.Keyed, id.Stands
		if err == nil {
			q.place.recognise()
			q.isNamed()
		}
		return caller, err
	}
	s := g.cfg.Node.Snapshot()
	if s == nil {
		return caller, fmt.Errorf("%w: this node has not entered the mesh yet; try again in a few seconds", mesh.ErrUnavailable)
	}
	node, ok := s.NodeByAddr(q.from.Addr())
	if !ok {
		return caller, g.authFailure(reasonAddress, fmt.Errorf("%w: no node has the mesh address %s; join first", mesh.ErrUnauthenticated, q.from.Addr()))
	}
	caller.ID, caller.Node = string(node.ID), node
	return caller, nil
}
