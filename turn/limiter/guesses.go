// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	// sets, of so many ways, are the networks that are counted at a time: 8192 of each
	// kind. A set is a cache line.
	sets, ways = 1024, 8
	// tagBits are those of a network's hash that tell it from others in its set: one
	// that has nothing refused is taken for one of those in 1 of 130000 cases.
	tagBits = 20
	// tick is the unit in which a count is kept: what is left of a word lasts 55 years.
	tick = 100 * time.Microsecond
	// wideBits and sites bound who has many networks. Of IPv6 a /40 may have as many
	// refused as two sites (/48) of 256 networks each: no single one keeps its
	// neighbours out, nor does who has more try without an end.
	wideBits, sites = 40, 2 * 256
)

// Guesses counts credentials that were refused, by network (/24 and /56, as Limiter), whatever
// way they came: each network may have so many refused a second, after a burst, and an
// IPv6 /40 some hundred times as many. Those of addresses that their sender has not
// proven are counted apart, so that nobody is kept out in whose name others guess.
//
// Its memory is bounded. When more networks have some refused than it has room for, it
// forgets those that have had the fewest: what somebody does from many networks is
// forgiven to some, and is never held against others. It is safe for concurrent use,
// takes no locks and allocates nothing.
type Guesses struct {
	seed            maphash.Seed
	start           time.Time
	depth           uint64    // of the bucket, in ticks
	cost            [2]uint64 // in ticks, of one that is refused: to its network, and to the wide one
	proven, claimed [sets]set
}

// set is where some networks are counted: each word is the tick at which the bucket of
// one is full again, above its tag. The least word is of who has spent least; 0 of nobody.
type set [ways]atomic.Uint64

// NewGuesses returns a count by which each network may have perSecond credentials refused in
// a second, and burst at once. Both are more than 0, and perSecond is no more than 1000.
func NewGuesses(perSecond, burst int) *Guesses {
	cost := uint64(time.Second / tick / time.Duration(perSecond))
	return &Guesses{
		seed: maphash.MakeSeed(), start: time.Now(),
		cost: [2]uint64{cost, max(cost/sites, 1)}, depth: uint64(burst) * cost,
	}
}

// Spent reports whether the network of an address may have no more refused for now.
func (g *Guesses) Spent(from netip.Addr, proven bool) bool {
	now := g.now()
	for i, p := range g.networks(from) {
		if !p.IsValid() {
			continue
		}
		s, tag := g.find(p, proven)
		if max(s.full(tag), now)+g.cost[i] > now+g.depth {
			return true
		}
	}
	return false
}

// Refused counts one. What comes beyond the bound, since several were tried at
// once, does not make the next wait longer.
func (g *Guesses) Refused(from netip.Addr, proven bool) {
	now := g.now()
	for i, p := range g.networks(from) {
		if p.IsValid() {
			s, tag := g.find(p, proven)
			s.spend(tag, g.cost[i], now, g.depth)
		}
	}
}

// now is the present tick.
func (g *Guesses) now() uint64 { return uint64(time.Since(g.start) / tick) }

// networks are those that an address counts for: its own and, of IPv6, the wide one.
func (g *Guesses) networks(from netip.Addr) [2]netip.Prefix {
	list := [2]netip.Prefix{network(from)}
	if from.Is6() {
		list[1], _ = from.Prefix(wideBits) // bits fit
	}
	return list
}

// find returns where a network is counted, and its tag there.
func (g *Guesses) find(p netip.Prefix, proven bool) (*set, uint64) {
	hash := maphash.Comparable(g.seed, p)
	tag := hash >> (64 - tagBits)
	if proven {
		return &g.proven[hash%sets], tag
	}
	return &g.claimed[hash%sets], tag
}

// full is the tick at which the bucket of a network is full again; 0 when none of its
// are known to be refused.
func (s *set) full(tag uint64) (full uint64) {
	for i := range s {
		if word := s[i].Load(); word&(1<<tagBits-1) == tag {
			full = max(full, word>>tagBits)
		}
	}
	return full
}

// spend counts one for a network, in place of the one that has spent least if it is not
// known. Two that come at once may both take such a place; the fuller one counts.
func (s *set) spend(tag, cost, now, depth uint64) {
	for {
		at, before := s.place(tag)
		full := now
		if before&(1<<tagBits-1) == tag {
			full = max(full, before>>tagBits)
		}
		if s[at].CompareAndSwap(before, min(full+cost, now+depth)<<tagBits|tag) {
			return
		}
	}
}

// place returns where in s a network is, or where it belongs, and what is there.
func (s *set) place(tag uint64) (at int, word uint64) {
	known := false
	for i := range s {
		w := s[i].Load()
		switch mine := w&(1<<tagBits-1) == tag; {
		case i == 0, mine && !known, mine && w > word, !mine && !known && w < word:
			at, word, known = i, w, known || mine
		}
	}
	return at, word
}
