// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"fmt"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// census counts negotiations and sessions against the limits. Its methods
// need the lock of the Service.
type census struct {
	limits   Limits
	half     map[string]int // half-open negotiations by caller
	halfAll  int
	sessions map[*session]struct{}
	held     map[string]int // sessions by caller
	paths    map[string]int // path channels, by both nodes
	pathsAll int
	paces    map[string]*pathPace // of those that said something of late, by both nodes
	sweepAt  int                  // how many paces there are when rested ones are forgotten
}

func newCensus(l Limits) census {
	return census{limits: l, half: map[string]int{}, held: map[string]int{}, paths: map[string]int{}, paces: map[string]*pathPace{}, sessions: map[*session]struct{}{}}
}

func (c *census) list() []*session {
	out := make([]*session, 0, len(c.sessions))
	for x := range c.sessions {
		out = append(out, x)
	}
	return out
}

// negotiation admits one more half-open negotiation. The returned function
// ends it; it may be called more than once.
func (s *Service) negotiation(caller string) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.census
	switch {
	case s.closed:
		return nil, ErrClosed
	case c.halfAll >= c.limits.HalfOpen:
		return nil, fmt.Errorf("too many negotiations at this node, try again later: %w", mesh.ErrExhausted)
	case c.half[caller] >= c.limits.HalfOpenPerCaller:
		return nil, fmt.Errorf("%d negotiations are under way for %q: %w", c.half[caller], caller, mesh.ErrExhausted)
	}
	c.half[caller]++
	c.halfAll++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.halfAll--
		drop(c.half, caller)
	}), nil
}

// admit notes a session.
func (s *Service) admit(x *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.census
	switch {
	case s.closed:
		return ErrClosed
	case len(c.sessions) >= c.limits.Sessions:
		return fmt.Errorf("too many peer connections at this node: %w", mesh.ErrExhausted)
	case c.held[x.caller] >= c.limits.SessionsPerCaller:
		return fmt.Errorf("%q has %d peer connections, close one: %w", x.caller, c.held[x.caller], mesh.ErrExhausted)
	}
	c.sessions[x] = struct{}{}
	c.held[x.caller]++
	s.running.Add(1)
	return nil
}

// receiveBuffer is what SCTP may hold for the next peer connection of caller.
// Nobody needs the speed of many at once, and what they are sent and do not read
// is all held.
func (s *Service) receiveBuffer(caller string) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.census.held[caller] < wideSessions {
		return 0
	}
	return narrowBuffer
}

const (
	// wideSessions are the peer connections of a caller that get SCTP's whole
	// receive buffer. Those beyond get narrowBuffer: one message of the largest
	// size, and some.
	wideSessions = 16
	narrowBuffer = rtc.MaxMessageSize + 64<<10
)

// dismiss forgets a session that has ended.
func (s *Service) dismiss(x *session) {
	if x.memory.close() {
		select {
		case s.freed <- struct{}{}:
		default:
		}
	}
	s.mu.Lock()
	delete(s.census.sessions, x)
	drop(s.census.held, x.caller)
	s.mu.Unlock()
	s.running.Done()
}

func drop(m map[string]int, key string) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}
