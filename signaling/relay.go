// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// relayDataChannel asks the node that the client named to negotiate, and
// carries its messages. The peer connection will run between client and node.
func (s *Service) relayDataChannel(ctx context.Context, caller Caller, req request, in *inbox, out sender) error {
	end, err := s.negotiation(caller.ID)
	if err != nil {
		s.metrics.refused.Inc()
		return err
	}
	defer end()
	servers := s.cfg.ICEServers(ctx, string(req.node))
	call, err := s.cfg.Peers.Negotiate(ctx, req.node)
	if err != nil {
		return unreachable(req.node, err)
	}
	first := &v1.DataChannelNegotiation{
		Proto: req.dest.Protocol, Src: caller.Addr.String(), Dst: req.dest.Host, Port: uint32(req.dest.Port),
		StunServers: serverURLs(servers), Caller: caller.ID, IceServers: servers, InBand: req.kind == kindInBand,
	}
	if err := call.Send(first); err != nil {
		return sendFailed(call.Receive, req.node, err)
	}
	s.metrics.relayed.Inc()
	return s.relay(ctx, relay{
		node: req.node, client: in, toClient: s.telling(caller.ID, string(req.node), out), offers: true, due: "answer from client",
		fromNode: s.newInbox(ctx, func() (signal, error) {
			m, err := call.Receive()
			return signal{description: m.GetOffer(), candidate: m.GetCandidate()}, err
		}),
		toNode: s.telling(string(req.node), caller.ID, sender{
			description: func(d string) error { return call.Send(&v1.DataChannelNegotiation{Answer: d}) },
			candidate:   func(c string) error { return call.Send(&v1.DataChannelNegotiation{Candidate: c}) },
		}),
		closeNode: call.CloseSend,
		connected: end,
	})
}

// relay carries a negotiation between a client and a node.
type relay struct {
	node             mesh.NodeID
	client, fromNode *inbox
	toClient, toNode sender
	closeNode        func() error
	// offers is true when the node offers and the client answers.
	offers bool
	due    string // what the client owes, for errors
	// connected ends the half-open state. A relay never learns of the
	// connection: it counts as made when both descriptions are through.
	connected func()
}

// relay runs r until the client half-closes the call or the node ends it. A
// node that goes on to send candidates after the client's half-close is heard
// for gatherGrace.
func (s *Service) relay(ctx context.Context, r relay) error {
	client, node := r.client.c, r.fromNode.c
	var described struct{ client, node bool }
	timer := time.NewTimer(s.cfg.Timeouts.Message) // for the first description, then the second, then the grace
	defer timer.Stop()
	for {
		select {
		case m, ok := <-client:
			if ok {
				if r.offers && !described.client && m.description == "" {
					return fmt.Errorf("the %s is due and must not be empty: %w", r.due, mesh.ErrInvalid)
				}
				if err := r.pass(m, &described.client, r.toNode); err != nil {
					return err
				}
				break
			}
			if !errors.Is(r.client.err, io.EOF) {
				return r.client.err
			}
			if !described.client {
				return r.client.over(r.due)
			}
			client = nil
			_ = r.closeNode() // what is wrong with the call shows when receiving
			timer.Reset(gatherGrace)
		case m, ok := <-node:
			if !ok {
				return r.nodeOver(described.client && described.node)
			}
			before := described.node
			if err := r.pass(m, &described.node, r.toClient); err != nil {
				return err
			}
			if r.offers && !before && described.node {
				timer.Reset(s.cfg.Timeouts.Message)
			}
		case <-timer.C:
			switch {
			case client == nil:
				return nil
			case r.offers && !described.node:
				return fmt.Errorf("node %q made no offer in time: %w", r.node, context.DeadlineExceeded)
			case !described.client:
				return late(r.due)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if described.client && described.node {
			r.connected()
			if client != nil {
				timer.Stop()
			}
		}
	}
}

// pass hands one message on: descriptions as they are, candidates as JSON,
// whichever way they came. The empty candidate that ends them is not passed
// on: to a v1 node it is an error.
func (r *relay) pass(m signal, described *bool, to sender) error {
	if err := m.notPath(); err != nil {
		return err
	}
	if m.description != "" {
		if len(m.description) > rtc.MaxDescriptionSize {
			return fmt.Errorf("session description is longer than %d bytes: %w", rtc.MaxDescriptionSize, mesh.ErrInvalid)
		}
		if *described {
			return fmt.Errorf("a second session description: %w", mesh.ErrInvalid)
		}
		*described = true
		if err := to.description(m.description); err != nil {
			return r.lost(err)
		}
	}
	if m.candidate == "" {
		return nil
	}
	c, err := rtc.NormalizeCandidate(m.candidate)
	if err != nil || c == "" {
		return named(err)
	}
	if err := to.candidate(c); err != nil {
		return r.lost(err)
	}
	return nil
}

// lost is the error of a send to one of the two sides. If the node has ended
// its call, its reason is the better one.
func (r *relay) lost(err error) error {
	select {
	case _, ok := <-r.fromNode.c:
		if !ok {
			return r.nodeOver(false)
		}
	default:
	}
	return fmt.Errorf("relay to node %q: %w: %w", r.node, mesh.ErrUnavailable, err)
}

// nodeOver is the result of a call that the node has ended.
func (r *relay) nodeOver(complete bool) error {
	err := r.fromNode.err
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("node %q: %w", r.node, err)
	}
	if complete {
		return nil
	}
	return fmt.Errorf("node %q ended the negotiation: %w", r.node, mesh.ErrUnavailable)
}

// unreachable is the error for a node that could not be called.
func unreachable(node mesh.NodeID, err error) error {
	for _, known := range []error{mesh.ErrNotFound, mesh.ErrDenied, mesh.ErrExhausted, mesh.ErrUnsupported, context.Canceled} {
		if errors.Is(err, known) {
			return fmt.Errorf("node %q: %w", node, err)
		}
	}
	return fmt.Errorf("node %q cannot be reached: %w: %w", node, mesh.ErrPrecondition, err)
}

// sendFailed prefers the node's reason, which the receiving side has.
func sendFailed[T any](receive func() (T, error), node mesh.NodeID, err error) error {
	if _, reason := receive(); reason != nil && !errors.Is(reason, io.EOF) {
		err = reason
	}
	return fmt.Errorf("node %q: %w", node, err)
}
