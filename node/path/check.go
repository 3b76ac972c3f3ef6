// SPDX-License-Identifier: Apache-2.0

package path

import (
	"time"
)

// When ways are checked. What is dead is seen within quiet and deadAfter probes:
// 1.8 s while data flows, 3.7 s where what is heard hides it. TCP that lost its
// packets tries again after 0.2, 0.6, 1.4, 3 and 6.2 s: each step that is missed
// is twice the wait.
const (
	paceEvery = 20 * time.Millisecond // one check, after paceBurst at once
	paceBurst = 5
	askGap    = 50 * time.Millisecond // between two checks of one way

	quiet        = 600 * time.Millisecond  // data without an answer for so long: probe
	consent      = 2500 * time.Millisecond // probe anyway
	probeLeast   = 400 * time.Millisecond  // between probes that wait for an answer,
	probeMost    = time.Second             // which slow ways get more time for
	suspectAfter = 2                       // probes, of which one was due
	deadAfter    = 3                       // probes
	activeFor    = 5 * time.Second         // after data the way is in use

	keepalive  = 15 * time.Second // of the selected way: NATs forget after 30 s
	spareEvery = 25 * time.Second
	rivalEvery = 10 * time.Second // of ways that are as good as the selected one
	lapse      = 35 * time.Second // what nobody checks does not stand any more
	answerable = 5 * time.Second  // the latest answer that counts
	provenFor  = time.Minute      // what stood is asked more often when nothing stands
	provenGap  = time.Second
	// unmetSpent is how many checks a way gets before the peer has shown itself: it
	// may have named the addresses of others.
	unmetSpent = 7
	// A peer that has not shown itself gets strangerBurst checks, and then one each
	// strangerEvery: who sends signals to have others checked pays more for those
	// than it costs the others.
	strangerEvery, strangerBurst = 2 * time.Second, 100
	// metSpent is how many checks a way gets that the peer named and never used,
	// until it has no more than one in a round.
	metSpent = 40
)

// askGaps are the waits before each check of a round on a way that does not
// stand. Round-trip times are unknown yet, and packets open NATs.
var askGaps = [...]time.Duration{
	0,
	100 * time.Millisecond,
	200 * time.Millisecond,
	400 * time.Millisecond,
	800 * time.Millisecond,
	1600 * time.Millisecond,
	3200 * time.Millisecond,
}

// bucket paces what is sent: it gives burst at once, and one each interval.
// The zero value is full.
type bucket struct{ full time.Time } // when it will be full again

// take takes one if there is one.
func (b *bucket) take(now time.Time, every time.Duration, burst int) bool {
	if b.next(every, burst).After(now) {
		return false
	}
	if b.full.Before(now) {
		b.full = now
	}
	b.full = b.full.Add(every)
	return true
}

// next is when the next one can be taken.
func (b *bucket) next(every time.Duration, burst int) time.Time {
	return b.full.Add(-time.Duration(burst-1) * every)
}

// Tick does what is due, and returns when to call it again at the latest. It is
// to be called after each other call as well; calls that come too early do no
// harm.
func (s *ways) Tick(now time.Time) (next time.Time) {
	s.expire(now)
	s.rounds(now)
	next = now.Add(keepalive)
	if at, ok := s.nextRound(); ok && at.Before(next) {
		next = at
	}
	if at, ok := s.measure(now); ok && at.Before(next) {
		next = at
	}
	for w, at := s.mostDue(now); w != nil; w, at = s.mostDue(now) {
		at = later(at, s.pace.next(paceEvery, paceBurst))
		if !s.met {
			at = later(at, s.stranger.next(strangerEvery, strangerBurst))
		}
		if at.After(now) {
			return earlier(next, at)
		}
		if s.dead(now, w) {
			s.died(now, w)
			continue
		}
		s.pace.take(now, paceEvery, paceBurst)
		if !s.met {
			s.stranger.take(now, strangerEvery, strangerBurst)
		}
		s.ask(now, w, false)
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// mostDue returns the way that is to be checked next. Of those that are due the
// selected one comes first, then those that stand, then those that were tried
// least or that the peer asked for, then the best.
func (s *ways) mostDue(now time.Time) (most *way, at time.Time) {
	urgency := 0
	for _, w := range s.list {
		due, ok := s.due(w)
		if !ok {
			continue
		}
		u := -1 // not yet
		if !due.After(now) {
			u = s.urgency(w)
		}
		if most == nil || u > urgency || u < 0 && urgency < 0 && due.Before(at) {
			most, at, urgency = w, due, u
		}
	}
	return most, at
}

// urgency orders the ways that are due; more is sooner.
func (s *ways) urgency(w *way) int {
	switch {
	case w == s.selected:
		return len(askGaps) + 2
	case w.stands:
		return len(askGaps) + 1
	case w.soon:
		return len(askGaps)
	}
	return max(len(askGaps)-w.tries, 0)
}

// due returns when a way is to be checked; false for not in the foreseeable
// future.
func (s *ways) due(w *way) (time.Time, bool) {
	switch {
	case w.soon:
		return w.asked.Add(askGap), true
	case w.stands && w.waiting > 0:
		return w.asked.Add(w.patience()), true
	case w.stands:
		return s.dueStanding(w)
	case !s.wanted(w) || s.spent(w):
		return time.Time{}, false
	case w.tries == 0 && w.limit > 0:
		return w.asked.Add(askGap), true
	case w.tries < w.limit:
		return w.asked.Add(askGaps[w.tries]), true
	case s.selected == nil && !w.verified.IsZero() && w.asked.Sub(w.verified) < provenFor:
		return w.asked.Add(provenGap), true
	}
	return time.Time{}, false
}

// dueStanding is due of a way that stands, with no check on its way.
func (s *ways) dueStanding(w *way) (time.Time, bool) {
	active := s.active(w)
	switch {
	case w == s.selected && active:
		vouched := w.verified
		if w.heard.After(vouched) {
			vouched = w.heard
		}
		return earlier(vouched.Add(quiet), w.verified.Add(consent)), true
	case w == s.selected:
		return w.verified.Add(keepalive), true
	case w == s.spare:
		return w.verified.Add(spareEvery), true
	case s.selected != nil && active && w.rank() == s.selected.rank():
		return w.verified.Add(rivalEvery), true
	}
	return time.Time{}, false
}

// active says whether data flowed a moment before the way would be checked.
func (s *ways) active(w *way) bool {
	last := s.sent
	if s.heard.After(last) {
		last = s.heard
	}
	// When the way was verified after the last data for long, there is none.
	return !last.IsZero() && w.verified.Sub(last) < activeFor
}

// patience is how long a probe may take until the next one goes out.
func (w *way) patience() time.Duration { return min(max(2*w.rtt, probeLeast), probeMost) }

// spent says that a way had all the checks that it gets until the peer shows
// itself.
func (s *ways) spent(w *way) bool { return !s.met && w.spent >= unmetSpent }

// wanted says whether a way that does not stand would be of use if it did.
func (s *ways) wanted(w *way) bool {
	switch {
	case s.selected == nil || w.rank() <= s.selected.rank():
		return true
	case !w.relayed():
		return false // a detour to where the same packets go now
	case s.spare == nil || w.rank() < s.spare.rank():
		return true
	}
	return s.apart(w) && !s.apart(s.spare)
}

// ask sends a check.
func (s *ways) ask(now time.Time, w *way, round bool) {
	m := s.newCheck(w, round)
	copy(w.asks[1:], w.asks[:])
	w.asks[0] = ask{m.ID, now}
	w.asked, w.soon = now, false
	w.waiting++
	w.spent++
	if !w.stands {
		w.tries++
	}
	s.out = append(s.out, Packet{w.route, s.marshal(m, w)})
	if w == s.selected && w.waiting == suspectAfter {
		s.suspect(now)
	}
}

// newCheck makes the message of a check, and counts it.
func (s *ways) newCheck(w *way, round bool) *Message {
	s.sequence++
	s.counters.Asked++
	return &Message{
		Type:        BindingRequest,
		ID:          newTransaction(s.tag),
		Note:        &Note{Sequence: s.sequence, Leg: w.local.Transport, Uses: w == s.selected, Round: round, Veils: s.veils},
		Fingerprint: true,
	}
}

// suspect asks on all ways that stand, so that it is known which of them are
// alive by the time that the selected one is dead.
func (s *ways) suspect(now time.Time) {
	for _, w := range s.list {
		w.soon = w.soon || w.stands && w != s.selected && w.waiting == 0
	}
	s.choose(now)
}

// answered looks for the check that a message answers, which came by a route;
// false if there is none, or if it was answered already.
func (s *ways) answered(now time.Time, r Route, id Transaction) (w *way, took time.Duration, ok bool) {
	if w = s.find(r); w == nil {
		return nil, 0, false
	}
	for i := range w.asks {
		if a := &w.asks[i]; a.id == id && !a.at.IsZero() && now.Sub(a.at) < answerable {
			return w, now.Sub(a.at), true
		}
	}
	if at := w.room.answered(id); !at.IsZero() && now.Sub(at) < answerable {
		return w, now.Sub(at), true
	}
	return nil, 0, false
}

// stood takes the answer to a check.
func (s *ways) stood(now time.Time, w *way, m *Message, took time.Duration) {
	for i := range w.asks {
		if w.asks[i].id == m.ID {
			w.asks[i] = ask{} // it counts once
		}
	}
	w.room.stood(m.ID)
	s.met = true
	s.counters.Answered++
	if w.rtt == 0 || !w.stands {
		w.rtt = took
	} else {
		w.rtt += (took - w.rtt) / 4
	}
	w.stands, w.verified, w.mapped = true, now, m.Mapped
	w.waiting, w.tries, w.limit, w.spent = 0, 0, 0, 0
	s.compare(w)
	s.choose(now)
}

// dead says that a way that stood does not answer any more.
func (s *ways) dead(now time.Time, w *way) bool {
	return w.stands && w.waiting >= deadAfter && now.Sub(w.asked) >= w.patience()
}

// died takes a way out of service.
func (s *ways) died(now time.Time, w *way) {
	w.stands, w.soon = false, false
	w.tries, w.limit = 0, len(askGaps)
	w.better = 0
	if w == s.selected {
		s.round.again(now)
	}
	s.choose(now)
}

// Doubt takes the ways out of service that a relay is on, until they are checked
// anew, which happens at once: its gateway may have started anew, and has forgotten
// then whose packets it lets in where. Packets wait for less than a round trip.
func (s *ways) Doubt(now time.Time, relay string) {
	for _, w := range s.list {
		if w.stands && w.relayed() && (w.local.Relay == relay || w.remote.Relay == relay) {
			w.stands, w.waiting, w.better = false, 0, 0
			w.tries, w.limit = 0, len(askGaps)
		}
	}
	s.round.again(now)
	s.choose(now)
}

// expire ends ways that are not checked any more.
func (s *ways) expire(now time.Time) {
	changed := false
	for _, w := range s.list {
		if w.stands && w.waiting == 0 && w != s.selected && w != s.spare && now.Sub(w.verified) >= lapse {
			w.stands, changed = false, true
			w.tries, w.limit, w.better = 0, 0, 0
		}
	}
	if changed {
		s.choose(now)
	}
}
