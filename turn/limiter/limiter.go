// SPDX-License-Identifier: Apache-2.0

// Package limiter bounds what servers of UDP answer to strangers.
package limiter

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// slots bounds the memory of a limiter. Prefixes that share a slot share
// its rate; a flood from forged sources can so at worst silence the answers to
// other strangers, never those to clients that have an allocation.
const slots = 8192

const (
	// networks is for how many networks at a time a limiter is as generous as for
	// one. When more of them ask, most of the addresses are forged, or
	// everybody comes back at once.
	networks = 200
	// share is how many ask then until one of them is answered. An answer is at most
	// 2.6 times as long as what it answers: what goes out is less than what came
	// in, however many networks are named, and a stranger who asks seven times
	// is heard.
	share = 5
)

// Limiter caps how many packets a second go to each network that did not show a
// credential yet, so that a server cannot be used to flood a third party whose
// address somebody forges (/24 and /56: who floods, floods a network). It
// is a token bucket per prefix, kept as the time at which the bucket is full
// again: one word, no locks, nothing to clean up. One more bucket is for all
// networks together. It is safe for concurrent use.
type Limiter struct {
	seed  maphash.Seed
	start time.Time
	cost  time.Duration // of one answer
	depth time.Duration // of the bucket
	full  [slots]atomic.Int64
	all   atomic.Int64
}

// New returns a limiter that lets perSecond answers a second go to each network,
// and burst at once. Both are more than 0.
func New(perSecond, burst int) *Limiter {
	cost := time.Second / time.Duration(perSecond)
	return &Limiter{seed: maphash.MakeSeed(), start: time.Now(), cost: cost, depth: time.Duration(burst) * cost}
}

// Take says whether one more answer may go to addr: whether its network has some
// left, and all of them together. Loopback is free: no router delivers a forged
// loopback source.
func (l *Limiter) Take(addr netip.Addr) bool {
	if addr.IsLoopback() {
		return true
	}
	slot := &l.full[maphash.Comparable(l.seed, network(addr))%slots]
	now := int64(time.Since(l.start))
	for {
		before := slot.Load()
		after := max(before, now) + int64(l.cost)
		if after-now > int64(l.depth) {
			return false
		}
		if slot.CompareAndSwap(before, after) {
			return l.takeOfAll(now)
		}
	}
}

// takeOfAll takes from the bucket of all networks, into which everybody who asks
// puts a share.
func (l *Limiter) takeOfAll(now int64) bool {
	cost := max(int64(l.cost)/networks, 1)
	for {
		before := l.all.Load()
		after := max(before-cost/share, now)
		ok := after+cost-now <= int64(l.depth)
		if ok {
			after += cost
		}
		if l.all.CompareAndSwap(before, after) {
			return ok
		}
	}
}

// network returns the prefix that one customer of a provider usually holds.
func network(addr netip.Addr) netip.Prefix {
	bits := 24
	if addr.Is6() {
		bits = 56
	}
	p, _ := addr.Prefix(bits) // bits fit
	return p
}
