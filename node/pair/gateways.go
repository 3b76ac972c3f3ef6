// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"time"

	"github.com/meshgate/meshgate/node/path"
)

const (
	// mutedAfter is how long a gateway is without a way before it is said that it
	// does not answer: checks that begin anew take a moment.
	mutedAfter = 2 * time.Second
	// keptAlive is how long packets of WireGuard that came say that a gateway is
	// there which answers no checks: a keepalive, and some.
	keptAlive = 30 * time.Second
)

// attest notes whether a way to the gateway stands, and logs when it does not
// answer any more, and when it does again.
func (l *link) attest(now time.Time, s path.State) {
	if s.Standing {
		l.verified, l.gone = s.Verified, time.Time{}
	} else if l.gone.IsZero() {
		l.gone = now
	}
	since := l.silent(now)
	if mute := !since.IsZero(); mute != l.mute {
		l.mute, l.pairs.fresh = mute, true
		if mute {
			l.pairs.log.Warn("gateway does not answer", "gateway", string(l.peer.Node.ID), "dur", now.Sub(since).Round(time.Second), "reason", s.Why)
		} else {
			l.pairs.log.Info("gateway answers again", "gateway", string(l.peer.Node.ID))
		}
	}
}

// silent is when a gateway was heard last that does not answer any more; zero for
// one that does, or of which no way ever stood: what runs there may answer no
// checks at all.
func (l *link) silent(now time.Time) time.Time {
	if l.verified.IsZero() || l.gone.IsZero() || now.Sub(l.gone) < mutedAfter {
		return time.Time{}
	}
	since := l.verified
	if l.way != nil {
		heard := l.way.Activity().Heard
		if heard.After(l.gone) && now.Sub(heard) < keptAlive {
			return time.Time{}
		}
		since = later(since, heard)
	}
	return since
}

// reached logs when a gateway is reached in another way than before. That it is
// directly, to begin with, is no news.
func (l *link) reached(s path.State) {
	over := path.NoRelay
	if !s.Direct {
		over = s.Transport
	}
	if over == l.over {
		return
	}
	l.over = over
	if s.Direct {
		l.pairs.log.Info("gateway is reached directly", "gateway", string(l.peer.Node.ID), "addr", s.Route.To)
	} else {
		l.pairs.log.Info("gateway is reached over a relay", "gateway", string(l.peer.Node.ID), "transport", over.String(), "reason", s.Why)
	}
}
