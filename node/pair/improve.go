// SPDX-License-Identifier: Apache-2.0

package pair

import (
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

// wants reports whether a relay over a transport is one to have: there is none, or a
// worse one.
func (s *server) wants(t path.Transport) bool {
	return s.have == nil || t == path.UDP && s.have.transport > path.UDP
}

// retire gives up the relay in whose place there is a better one.
func (r *relays) retire(now time.Time, s *server) {
	one := s.old
	s.old = nil
	r.giveUp(now, one)
}
