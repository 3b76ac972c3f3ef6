// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// Guesses counts credentials that were refused, by network (/24 and /56, as Limiter), whatever
// way they came: each network may have so many refused a second, after a burst. Those
// of addresses that their sender has not proven are counted apart, so that nobody is kept
// out in whose name others guess. Its memory is bounded as that of Limiter is. It is
// safe for concurrent use.
type Guesses struct {
	seed            maphash.Seed
	start           time.Time
	cost            time.Duration // of one that is refused
	depth           time.Duration // of the bucket
	proven, claimed [slots]atomic.Int64
}

// NewGuesses returns a count by which each network may have perSecond credentials refused in
// a second, and burst at once. Both are more than 0.
func NewGuesses(perSecond, burst int) *Guesses {
	cost := time.Second / time.Duration(perSecond)
	return &Guesses{seed: maphash.MakeSeed(), start: time.Now(), cost: cost, depth: time.Duration(burst) * cost}
}

// Spent reports whether the network of an address may have no more refused for now.
func (g *Guesses) Spent(from netip.Addr, proven bool) bool {
	now := int64(time.Since(g.start))
	return max(g.slot(from, proven).Load(), now)+int64(g.cost)-now > int64(g.depth)
}

// Refused counts one. What comes beyond the bound, since several were tried at
// once, does not make the next wait longer.
func (g *Guesses) Refused(from netip.Addr, proven bool) {
	slot := g.slot(from, proven)
	now := int64(time.Since(g.start))
	for {
		before := slot.Load()
		after := min(max(before, now)+int64(g.cost), now+int64(g.depth))
		if slot.CompareAndSwap(before, after) {
			return
		}
	}
}

func (g *Guesses) slot(from netip.Addr, proven bool) *atomic.Int64 {
	i := maphash.Comparable(g.seed, network(from)) % slots
	if proven {
		return &g.proven[i]
	}
	return &g.claimed[i]
}
