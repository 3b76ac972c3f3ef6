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

// Limiter caps how many packets a second go to each network that did not show a
// credential yet, so that a server cannot be used to flood a third party whose
// address somebody forges (/24 and /56: who floods, floods a network). It
// is a token bucket per prefix, kept as the time at which the bucket is full
// again: one word, no locks, nothing to clean up. It is safe for concurrent use.
type Limiter struct {
	seed  maphash.Seed
	start time.Time
	cost  time.Duration // of one answer
	depth time.Duration // of the bucket
	full  [slots]atomic.Int64
}

// New returns a limiter that lets perSecond answers a second go to each network,
// and burst at once. Both are more than 0.
func New(perSecond, burst int) *Limiter {
	cost := time.Second / time.Duration(perSecond)
	return &Limiter{seed: maphash.MakeSeed(), start: time.Now(), cost: cost, depth: time.Duration(burst) * cost}
}

// Take says whether one more answer may go to addr. Loopback is free: no
// router delivers a forged loopback source.
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
			return true
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
