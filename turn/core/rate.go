// SPDX-License-Identifier: Apache-2.0

package core

import (
	"sync/atomic"
	"time"
)

// Rate bounds the bytes that all allocations relay together that share it, of one
// core or of several: in both directions, with a burst of a second's worth, or of
// 64 KiB if that is more. It begins with a second's worth. It may have no bound at
// first, or at last: whoever shares it then is bounded as soon as Set says so. It is
// safe for concurrent use.
//
// What peers send can not use up what clients may: the last quarter of the burst is for
// clients, but for half of the rate, which is for both. So clients have half of the rate
// whatever comes in, and what they do not use is for peers.
type Rate struct {
	start     time.Time
	perSecond atomic.Int64
	bucket    atomic.Pointer[bucket] // of this rate, or of one before that has not been used since
}

// bucket is what has passed at one rate. Its times are in nanoseconds since the start
// of the Rate. There is another one for each rate: a packet that still has the old one
// in its hands owes nothing that is counted in the time of the new one.
type bucket struct {
	perSecond int64
	depth     int64        // the burst, in nanoseconds
	full      atomic.Int64 // when it is full again
	share     atomic.Int64 // when peers have paid for what they took of the last quarter
}

// NewRate returns a rate of bytes per second; 0 is no bound.
func NewRate(perSecond int64) *Rate { return newRate(time.Now(), perSecond) }

func newRate(at time.Time, perSecond int64) *Rate {
	r := &Rate{start: at}
	r.Set(perSecond)
	r.bucket.Store(newBucket(perSecond))
	return r
}

// newBucket returns a bucket with a second's worth at the start of its Rate.
func newBucket(perSecond int64) *bucket {
	b := &bucket{perSecond: perSecond}
	if perSecond > 0 {
		b.depth = depth(perSecond)
		b.full.Store(b.depth - int64(time.Second))
	}
	return b
}

// Set changes the rate, in bytes per second; 0 is no bound. What has passed counts as
// so many bytes, whatever the rate was then: a higher one is there at once. Whoever
// serves Bindings learns of it by PolicyChanged.
func (r *Rate) Set(perSecond int64) { r.perSecond.Store(perSecond) }

// PerSecond is the rate; 0 is no bound.
func (r *Rate) PerSecond() int64 { return r.perSecond.Load() }

// now returns the bucket of the rate and the time that it counts in; nil without a bound.
func (r *Rate) now(at time.Time) (*bucket, int64) {
	now := int64(at.Sub(r.start))
	for {
		// In this order: who sees the bucket of a rate sees the rate, too, and does
		// not go back to the one before.
		b := r.bucket.Load()
		perSecond := r.perSecond.Load()
		switch {
		case perSecond == 0:
			return nil, now
		case b.perSecond == perSecond:
			return b, now
		}
		r.bucket.CompareAndSwap(b, b.turned(now, perSecond))
	}
}

// turned returns the bucket of another rate that misses as many bytes as b does, at most
// as many as it holds, and owes as many as b does beyond what that holds (spend).
func (b *bucket) turned(now, perSecond int64) *bucket {
	next := newBucket(perSecond)
	if b.perSecond == 0 {
		next.full.Add(now)
		return next
	}
	missing := max(0, b.full.Load()-now)
	debt := max(0, missing-b.depth)
	longer := float64(b.perSecond) / float64(perSecond)
	missing = int64(min(float64(missing-debt)*longer, float64(next.depth)))
	next.full.Store(now + missing + int64(min(float64(debt)*longer, maxDebt)))
	return next
}

// maxDebt is the longest debt that another rate takes over, in nanoseconds: years.
const maxDebt = 1 << 60

// take says whether n bytes may pass at a moment, to a client or to a peer.
func (r *Rate) take(at time.Time, n int, toClient bool) bool {
	b, now := r.now(at)
	if b == nil {
		return true
	}
	cost := b.cost(uint64(n))
	paid := !toClient
	for {
		before := b.full.Load()
		after := max(before, now) + cost
		switch {
		case after-now > b.depth:
			return false
		case !paid && after-now > b.depth-b.depth/4:
			if !b.shared(now, cost) {
				return false
			}
			paid = true
		}
		if b.full.CompareAndSwap(before, after) {
			return true
		}
	}
}

// shared says whether something from a peer may have its part of the last quarter:
// at half the rate, in bursts of a sixteenth of the depth, and one packet.
func (b *bucket) shared(now, cost int64) bool {
	for {
		before := b.share.Load()
		begin := max(before, now)
		if begin-now > b.depth/8 {
			return false
		}
		if b.share.CompareAndSwap(before, begin+2*cost) {
			return true
		}
	}
}

// spend takes n bytes that have passed already, and returns for how long no more
// may pass.
func (r *Rate) spend(at time.Time, n uint64) time.Duration {
	b, now := r.now(at)
	if b == nil {
		return 0
	}
	cost := b.cost(n)
	for {
		before := b.full.Load()
		after := max(before, now) + cost
		if b.full.CompareAndSwap(before, after) {
			return max(0, time.Duration(after-now-b.depth))
		}
	}
}

// Room is what may pass now at once, as the time in which the rate brings it; below
// zero, for how long nothing may. A path past the core begins with it. Without a bound
// it says nothing.
func (r *Rate) Room(at time.Time) time.Duration {
	b, now := r.now(at)
	if b == nil {
		return 0
	}
	return time.Duration(b.depth - max(0, b.full.Load()-now))
}

// Idle says whether a new rate could do no more than this one: nothing of what has
// passed counts any more.
func (r *Rate) Idle(at time.Time) bool {
	b, now := r.now(at)
	return b == nil || b.full.Load() <= now
}

// cost is the time in which the rate brings n bytes, in nanoseconds.
func (b *bucket) cost(n uint64) int64 { return int64(float64(n) * 1e9 / float64(b.perSecond)) }

// depth is the burst of a rate, in nanoseconds.
func depth(perSecond int64) int64 { return int64(max(1, 1<<16/float64(perSecond)) * 1e9) }

// passes says whether n bytes of an allocation may pass now, to its client or to a peer.
func (c *Core) passes(a *allocation, now int64, n int, toClient bool) bool {
	return a.rate == nil || a.rate.take(c.time(now), n, toClient)
}

// bound gives a the rate that the credential of r stands for. Another credential of
// its user may bring another one.
func (c *Core) bound(a *allocation, r *request) {
	switch perSecond := r.account.BytesPerSecond; {
	case c.cfg.Rate != nil:
		a.rate = c.cfg.Rate(a.user, perSecond)
	case a.rate != nil:
		a.rate.Set(perSecond)
	case perSecond > 0:
		a.rate = newRate(c.time(r.now), perSecond)
	}
}
