// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

// attempt tries to get a relay from a server, unless it has one that is good enough:
// over UDP first, and soon over the others, too.
func (r *relays) attempt(now time.Time, s *server) time.Time {
	switch {
	case s.have != nil:
		return r.improve(now, s)
	case s.again.After(now):
		return s.again
	case s.began.IsZero():
		s.began = now
		s.tried, s.repeats = [path.TLS + 1]bool{}, 0
	}
	r.start(s, path.UDP)
	streams, patience := s.began.Add(streamsAfter), datagramsTime
	if s.worked > path.UDP && s.fails < 3 {
		streams, patience = s.began, 0 // UDP did not get through here
	}
	if s.tries(path.UDP) && streams.After(now) {
		return streams
	}
	r.start(s, path.TCP)
	r.start(s, path.TLS)
	if s.tries(path.TCP) || s.tries(path.TLS) {
		return r.repeat(now, s)
	}
	if over := s.began.Add(patience); s.tries(path.UDP) && over.After(now) {
		return over
	}
	s.full = nil // by now it is something else
	r.failed(now, s)
	return s.again
}

// repeat tries the transport again that worked before, if it has failed while
// others hang: where a firewall drops what they send they do so for long, and the
// gateway may be back meanwhile. It returns when to look again.
func (r *relays) repeat(now time.Time, s *server) time.Time {
	t := s.worked
	if t == path.NoRelay || !s.tried[t] || s.tries(t) {
		return now.Add(time.Minute)
	}
	again := s.failed[t].Add(pauseAfter(s.repeats))
	if again.After(now) {
		return again
	}
	s.repeats++
	s.tried[t] = false
	r.start(s, t)
	return now.Add(time.Minute)
}

// pauseAfter is the pause after so many failures.
func pauseAfter(n int) time.Duration {
	return min(relayAgainFirst<<min(max(n-patientFails, 0), 10), relayAgainMost)
}

// tries reports whether an attempt over a transport is under way.
func (s *server) tries(t path.Transport) bool {
	for url := range s.trying {
		if transportOf(url) == t {
			return true
		}
	}
	return false
}

// failed has a server rest.
func (r *relays) failed(now time.Time, s *server) {
	s.stop()
	s.began = time.Time{}
	s.again = now.Add(pauseAfter(s.fails))
	s.fails++
}

// refused has a server rest that has no relay left: whatever else is tried there
// would be refused as well, and each attempt is work for a server that is busy.
func (r *relays) refused(now time.Time, s *server, err error) {
	if s.full == nil {
		r.pairs.log.Warn("a gateway has no relay for this node; nodes without a direct path are reached by way of gateways, which is slower",
			"gateway", s.Relay, "err", err)
	}
	s.full = err
	s.fails = max(s.fails, patientFails+fullFails)
	r.failed(now, s)
}

// without says why a node has no relays, as far as gateways have said so; empty
// where it has one.
func (r *relays) without() string {
	why := ""
	for _, s := range r.servers {
		switch {
		case s.have != nil:
			return ""
		case s.full != nil && why == "":
			why = fmt.Sprintf("gateway %s: %v", s.Relay, s.full)
		}
	}
	return why
}

// start tries all URLs of one transport, unless that was tried: a server may have
// addresses of both IP versions, and this host may have one of them.
func (r *relays) start(s *server, t path.Transport) {
	if s.tried[t] {
		return
	}
	s.tried[t] = true
	for _, url := range s.URLs {
		if transportOf(url) == t && s.trying[url] == nil {
			r.try(s, url)
		}
	}
}

// try tries one URL.
func (r *relays) try(s *server, url string) {
	p, user, password, t := r.pairs, s.Username, s.Password, transportOf(url)
	ctx, cancel := context.WithTimeout(p.ctx, allocateTime)
	s.trying[url] = cancel
	round := s.round
	p.running.Go(func() {
		got, err := p.cfg.Allocate(ctx, url, user, password)
		canceled := ctx.Err()
		cancel()
		taken := p.do(func(now time.Time) {
			if s.round == round {
				delete(s.trying, url)
				s.failed[t] = now
			}
			if err != nil {
				if canceled == nil || errors.Is(canceled, context.DeadlineExceeded) {
					p.metrics.failed[t].Inc()
				}
				p.log.Debug("no relay", "url", url, "err", err)
				if errors.Is(err, ErrFull) && s.round == round && s.have == nil && slices.Contains(r.servers, s) {
					r.refused(now, s, err)
				}
				return
			}
			p.metrics.made[t].Inc()
			if canceled != nil || !slices.Contains(r.servers, s) || s.have != nil && (s.round != round || !s.wants(t)) {
				_ = got.Close() // another one was quicker
				return
			}
			r.open(now, s, t, got)
		})
		if !taken && err == nil {
			_ = got.Close()
		}
	})
}

// stop ends all attempts.
func (s *server) stop() {
	for url, cancel := range s.trying {
		cancel()
		delete(s.trying, url)
	}
	s.round++
}
