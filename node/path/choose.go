// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"time"
)

// When one of two equal ways is the better one: quicker by both, in so many
// checks in a row.
const (
	quickerBy    = 5 * time.Millisecond
	quickerParts = 5 // by one part of these
	quickerTimes = 3
)

// hintFor is how long the peer's word on its way counts. It says it with each
// check, the last of which is a keepalive old.
const hintFor = 2*keepalive + 5*time.Second

// compare counts how often a way was quicker than the selected one.
func (s *ways) compare(w *way) {
	if s.selected == nil || w == s.selected {
		return
	}
	than := s.selected.rtt
	if w.rtt+quickerBy <= than && w.rtt*quickerParts <= than*(quickerParts-1) {
		w.better++
	} else {
		w.better = 0
	}
}

// choose makes the best way that stands the selected one, and another one the
// spare.
func (s *ways) choose(now time.Time) {
	hint := s.hint(now)
	var best *way
	for _, w := range s.list {
		if w.stands && (best == nil || s.prefer(w, best, hint)) {
			best = w
		}
	}
	if best != s.selected {
		s.note(best, now)
		s.selected, s.since = best, now
		for _, w := range s.list {
			w.better = 0
		}
		if best != nil {
			best.soon = true // it tells the peer, and is the first probe
		} else {
			s.round.again(now)
		}
	}
	s.chooseSpare()
}

// note keeps in mind which direct way is left for best, a relayed one or none.
func (s *ways) note(best *way, now time.Time) {
	switch {
	case best != nil && !best.relayed():
		s.lastDirect, s.ended = netip.AddrPort{}, time.Time{}
	case s.selected != nil && !s.selected.relayed():
		s.lastDirect, s.ended = s.selected.route.To, now
	}
}

// prefer says whether a is better than b.
func (s *ways) prefer(a, b, hint *way) bool {
	if doubtA, doubtB := s.doubtful(a), s.doubtful(b); doubtA != doubtB {
		return doubtB
	}
	if a.rank() != b.rank() {
		return a.rank() < b.rank()
	}
	if pullA, pullB := s.pull(a, hint), s.pull(b, hint); pullA != pullB {
		return pullA > pullB
	}
	return a.rtt < b.rtt
}

// doubtful says that a way may be dead, and that data is not to move to it. The
// selected one is left when it is dead, or for one that is as good.
func (s *ways) doubtful(w *way) bool { return w != s.selected && w.waiting >= suspectAfter }

// pull orders equal ways.
func (s *ways) pull(w, hint *way) int {
	switch {
	case w.waiting >= suspectAfter:
		return -1
	case w == hint:
		return 3
	case hint == nil && w.better >= quickerTimes:
		return 2
	case w == s.selected:
		return 1
	}
	return 0
}

// hint returns the way that the peer uses, where the peer is the one that
// decides; nil for none.
func (s *ways) hint(now time.Time) *way {
	var last *way
	for _, w := range s.list {
		if !s.decides && !w.used.IsZero() && now.Sub(w.used) < hintFor && (last == nil || w.used.After(last.used)) {
			last = w
		}
	}
	if last == nil || !last.stands {
		return nil
	}
	return last
}

// chooseSpare keeps the best relayed way that stands besides the selected one,
// and rather one that does not fail together with it.
func (s *ways) chooseSpare() {
	var spare *way
	for _, w := range s.list {
		switch {
		case !w.stands || !w.relayed() || w == s.selected:
		case spare == nil, s.apart(w) && !s.apart(spare):
			spare = w
		case s.apart(spare) && !s.apart(w):
		case w.rank() < spare.rank(), w.rank() == spare.rank() && w == s.spare:
			spare = w
		}
	}
	s.spare = spare
}

// apart says that a relayed way has nothing in common with the selected one.
func (s *ways) apart(w *way) bool {
	if s.selected == nil || !s.selected.relayed() {
		return true
	}
	return w.relay() != s.selected.relay()
}
