// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// limiterSlots bounds the memory of a limiter. Prefixes that share a slot share
// its rate; a flood from forged sources can so at worst silence the answers to
// other strangers, never those to clients that have an allocation.
const limiterSlots = 8192

// limiter caps how many packets a second go to each network that did not show a
// credential yet, so that the server cannot be used to flood a third party whose
// address somebody forges (/24 and /56: who floods, floods a network). It
// is a token bucket per prefix, kept as the time at which the bucket is full
// again: one word, no locks, nothing to clean up. It is safe for concurrent use.
type limiter struct {
	seed  maphash.Seed
	start time.Time
	cost  time.Duration // of one answer
	depth time.Duration // of the bucket
	full  [limiterSlots]atomic.Int64
}

func newLimiter(perSecond, burst int) *limiter {
	cost := time.Second / time.Duration(perSecond)
	return &limiter{seed: maphash.MakeSeed(), start: time.Now(), cost: cost, depth: time.Duration(burst) * cost}
}

// take says whether one more answer may go to addr. Loopback is free: no
// router delivers a forged loopback source.
func (l *limiter) take(addr netip.Addr) bool {
	if addr.IsLoopback() {
		return true
	}
	slot := &l.full[maphash.Comparable(l.seed, network(addr))%limiterSlots]
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

// connections counts stream connections, in total and by source address. It is
// safe for concurrent use.
type connections struct {
	total, perSource int

	mu       sync.Mutex // guards the fields below
	count    int
	bySource map[netip.Addr]int
}

// enter counts one more connection of addr, or says that it is one too many.
func (c *connections) enter(addr netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count >= c.total || c.bySource[host(addr)] >= c.perSource {
		return false
	}
	c.count++
	c.bySource[host(addr)]++
	return true
}

func (c *connections) leave(addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count--
	if c.bySource[host(addr)]--; c.bySource[host(addr)] == 0 {
		delete(c.bySource, host(addr))
	}
}

// host returns what one machine can make up addresses from: a /64 counts as one source.
func host(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		p, _ := addr.Prefix(64) // 64 bits fit
		return p.Addr()
	}
	return addr
}
