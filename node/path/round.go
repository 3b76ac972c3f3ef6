// SPDX-License-Identifier: Apache-2.0

package path

import "time"

// Rounds: what does not stand is tried again now and then, longer and longer
// apart.
const (
	roundAsks    = 3 // checks of each way in a round
	roundFirst   = 5 * time.Second
	roundMost    = 5 * time.Minute
	roundBetween = 4 * time.Second // that the peer can ask for

	lostFirst = time.Second
	// The longest wait between rounds while there is no way at all: a pair falls
	// back to the hub, a node without its gateway to nothing.
	lostMostAgent = 30 * time.Second
	lostMostProbe = 8 * time.Second
)

// rounds says when the next round begins.
type rounds struct {
	last time.Time
	n    int // since something changed
}

// again begins to count anew: something changed.
func (r *rounds) again(now time.Time) { r.last, r.n = now, 0 }

// nextRound returns when the next round is; false if there is nothing to try.
func (s *ways) nextRound() (time.Time, bool) {
	need := false
	for _, w := range s.list {
		need = need || s.lacking(w)
	}
	wait := roundFirst << min(s.round.n, 10)
	most := roundMost
	if s.selected == nil {
		wait, most = lostFirst<<min(s.round.n/2, 10), s.patient
	}
	return s.round.last.Add(min(wait, most)), need
}

// lacking says that a way does not stand, although it would be the better one or
// the spare that is missing.
func (s *ways) lacking(w *way) bool {
	if w.stands || s.spent(w) {
		return false
	}
	return s.selected == nil || w.rank() < s.selected.rank() || w.relayed() && s.spare == nil
}

// rounds begins a round when it is due, and asks the peer to do the same.
func (s *ways) rounds(now time.Time) {
	at, ok := s.nextRound()
	if !ok || at.After(now) {
		return
	}
	s.round.n++
	s.startRound(now)
	if w := s.selected; w != nil && w.relayed() && s.pace.take(now, paceEvery, paceBurst) {
		s.ask(now, w, true)
	}
}

// startRound has what is lacking checked now.
func (s *ways) startRound(now time.Time) {
	s.round.last = now
	s.show()
	for _, w := range s.list {
		if s.lacking(w) && w.tries >= w.limit {
			w.tries, w.limit = 0, roundAsks
			if w.spent >= metSpent {
				w.limit = 1
			}
		}
	}
}

// show sends a check from the native socket to a relay of the peer, one that
// answers if there is any. NATs forget a socket that only relays are used beside,
// and the relay shows the peer where its packets come from now. That relays let
// the packets of the peer in, checks from them to its reflexive addresses see to.
func (s *ways) show() {
	if s.selected == nil || !s.selected.relayed() {
		return
	}
	var best *way
	lets := 0
	for _, w := range s.list {
		switch {
		case w.route.Socket == Native && w.remote.Kind == Relayed:
			if best == nil || w.stands && !best.stands {
				best = w
			}
		case w.local.Kind == Relayed && w.remote.Kind == ServerReflexive && lets < MaxSockets:
			lets++
			w.soon = true
		}
	}
	if best != nil {
		best.soon = true
	}
}

// joinRound begins a round because the peer begins one.
func (s *ways) joinRound(now time.Time) {
	if now.Sub(s.round.last) >= roundBetween {
		s.startRound(now)
	}
}

// Restart checks everything again at once: this host woke up, or is in another
// network. Data keeps its way until that is known to be dead.
func (s *ways) Restart(now time.Time) {
	s.round.again(now)
	for _, w := range s.list {
		w.tries, w.limit, w.spent = 0, len(askGaps), 0
		w.soon = w.stands
		w.room.asked = time.Time{}
	}
}
