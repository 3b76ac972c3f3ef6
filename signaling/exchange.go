// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// gatherGrace is how long a call that the client has half-closed goes on to
// send our candidates: a client that put all of its own into its description
// may half-close at once, and can do nothing without ours.
const gatherGrace = 5 * time.Second

// sender is the sending half of a call.
type sender struct {
	description, candidate func(string) error
}

// exchange is the part of a negotiation that all calls share: the description
// of the other side is due, and candidates go both ways.
type exchange struct {
	session *session
	in      *inbox
	out     sender
	due     string             // what the other side owes, for errors
	take    func(string) error // its description
	early   bool               // candidates may come before the description
}

// exchange runs e until the client half-closes the call. The session starts
// when the description was taken, and from then on it lives whatever happens
// to the call.
func (s *Service) exchange(ctx context.Context, e exchange) error {
	x := e.session
	ours, theirs := x.peer.Candidates(), e.in.c
	connected := x.peer.Connected()
	timer := time.NewTimer(s.cfg.Timeouts.Message) // for the description, then for the grace
	defer timer.Stop()
	for {
		if theirs == nil && (ours == nil || connected == nil) {
			return nil
		}
		select {
		case m, ok := <-theirs:
			switch {
			case ok:
				if err := e.receive(m); err != nil {
					return named(err)
				}
				if x.begun() {
					timer.Stop()
				}
			case !x.begun():
				return e.in.over(e.due)
			case !errors.Is(e.in.err, io.EOF):
				return e.in.err
			default:
				theirs = nil
				timer.Reset(gatherGrace)
			}
		case c, ok := <-ours:
			if !ok {
				ours = nil
			} else if err := e.out.candidate(c); err != nil {
				return err
			}
		case <-connected:
			connected = nil
		case <-x.peer.Closing():
			if connected == nil {
				return nil
			}
			return named(x.peer.Err())
		case <-timer.C:
			if !x.begun() {
				return late(e.due)
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// receive takes one message of the other side.
func (e *exchange) receive(m signal) error {
	if err := m.notPath(); err != nil {
		return err
	}
	if !e.session.begun() {
		if m.description == "" && e.early {
			return e.session.peer.AddCandidate(m.candidate)
		}
		if m.description == "" {
			return fmt.Errorf("the %s is due and must not be empty: %w", e.due, mesh.ErrInvalid)
		}
		if err := e.take(m.description); err != nil {
			return err
		}
		e.session.begin()
	} else if m.description != "" {
		return fmt.Errorf("a second %s: %w", e.due, mesh.ErrInvalid)
	}
	return e.session.peer.AddCandidate(m.candidate)
}

// authorize asks the Authorizer, in bounded time.
func (s *Service) authorize(ctx context.Context, caller string, node mesh.NodeID, d Destination) (netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Authorize)
	defer cancel()
	return s.cfg.Authorizer.Authorize(ctx, caller, node, d)
}
