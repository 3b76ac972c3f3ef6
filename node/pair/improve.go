// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

const (
	// improveFirst and improveMost bound the pause between two attempts over UDP while
	// a relay over TCP or TLS stands. A firewall that drops UDP does so for good, most
	// often, and one that did for a moment is noticed soon.
	improveFirst, improveMost = 15 * time.Second, 5 * time.Minute
	// overlap is how long a relay stays after a better one has taken its place: both
	// nodes have checked the way over that by then, and no packet is lost.
	overlap = 10 * time.Second
	// leaveSpread is how long a node may wait until it leaves a server that drains, which
	// tells all of its clients at once, and leaveFirst the first pause after an attempt
	// that brought no other relay. It grows up to relayAgainMost.
	leaveSpread, leaveFirst = time.Second, 2 * time.Second
)

// improve tries UDP now and then while a relay over TCP or TLS stands, where what is
// lost holds up what comes after it. It returns when to look again.
func (r *relays) improve(now time.Time, s *server) time.Time {
	far := now.Add(time.Minute)
	if s.old != nil {
		if until := s.have.stood.Add(overlap); until.After(now) {
			return until
		}
		r.retire(now, s)
	}
	switch {
	case s.have.drains:
		return r.replace(now, s)
	case s.have.transport <= path.UDP || !slices.ContainsFunc(s.URLs, overUDP), s.tries(path.UDP):
		return far
	case s.better.After(now):
		return s.better
	}
	s.improves++
	s.better = now.Add(improvePause(s.improves))
	s.tried[path.UDP] = false
	r.start(s, path.UDP)
	return s.better
}

func overUDP(url string) bool { return transportOf(url) == path.UDP }

// improvePause is the pause after so many attempts. Each ends before (allocateTime).
func improvePause(n int) time.Duration { return min(improveFirst<<min(n, 10), improveMost) }

// wants reports whether a relay over a transport is one to have: there is none, a
// worse one, or one that ends soon.
func (s *server) wants(t path.Transport) bool {
	return s.have == nil || s.have.drains || t == path.UDP && s.have.transport > path.UDP
}

// leave has another relay take the place of one whose server drains, before it ends:
// the server sends this node on to another one.
func (r *relays) leave(now time.Time, s *server, one *relay) {
	if one != s.have || one.drains {
		return
	}
	r.pairs.log.Debug("the server of a relay drains", "gateway", s.Relay, "addr", one.Relayed())
	one.drains = true
	s.improves, s.better = 0, now.Add(rand.N(leaveSpread))
}

// replace tries now and then to get a relay in place of one whose server drains. It
// returns when to look again.
func (r *relays) replace(now time.Time, s *server) time.Time {
	t := s.have.transport
	switch {
	case s.tries(t):
		return now.Add(time.Minute)
	case s.better.After(now):
		return s.better
	}
	s.better = now.Add(min(leaveFirst<<min(s.improves, 10), relayAgainMost))
	s.improves++
	s.tried[t] = false
	r.start(s, t)
	return s.better
}

// demote has both ends of all ways over a relay that is given up soon take others, as
// soon as these stand: it is offered as one over TLS, which is the last to be taken.
// What came over it is heard until it is retired.
func (r *relays) demote(now time.Time, one *relay) {
	one.candidate.Transport = path.TLS
	for _, l := range r.pairs.links {
		l.offer(now, one)
	}
}

// retire gives up the relay in whose place there is a better one.
func (r *relays) retire(now time.Time, s *server) {
	one := s.old
	s.old = nil
	r.giveUp(now, one)
}
