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
type Rate struct {
	start     time.Time
	perSecond atomic.Int64
	full      atomic.Int64 // when the bucket is full again, in nanoseconds since start
}

// NewRate returns a rate of bytes per second; 0 is no bound.
func NewRate(perSecond int64) *Rate { return newRate(time.Now(), perSecond) }

func newRate(at time.Time, perSecond int64) *Rate {
	r := &Rate{start: at}
	r.Set(perSecond)
	if perSecond > 0 {
		r.full.Store(depth(perSecond) - int64(time.Second))
	}
	return r
}

// Set changes the rate, in bytes per second; 0 is no bound. Whoever serves Bindings learns
// of it by PolicyChanged.
func (r *Rate) Set(perSecond int64) { r.perSecond.Store(perSecond) }

// PerSecond is the rate; 0 is no bound.
func (r *Rate) PerSecond() int64 { return r.perSecond.Load() }

// take says whether n bytes may pass at a moment.
func (r *Rate) take(at time.Time, n int) bool {
	perSecond := r.perSecond.Load()
	if perSecond == 0 {
		return true
	}
	cost, depth := int64(float64(n)*1e9/float64(perSecond)), depth(perSecond)
	now := int64(at.Sub(r.start))
	for {
		before := r.full.Load()
		after := max(before, now) + cost
		if after-now > depth {
			return false
		}
		if r.full.CompareAndSwap(before, after) {
			return true
		}
	}
}

// spend takes n bytes that have passed already, and returns for how long no more
// may pass.
func (r *Rate) spend(at time.Time, n uint64) time.Duration {
	perSecond := r.perSecond.Load()
	if perSecond == 0 {
		return 0
	}
	now := int64(at.Sub(r.start))
	cost := int64(float64(n) * 1e9 / float64(perSecond))
	for {
		before := r.full.Load()
		after := max(before, now) + cost
		if r.full.CompareAndSwap(before, after) {
			return max(0, time.Duration(after-now-depth(perSecond)))
		}
	}
}

// Room is what may pass now at once, as the time in which the rate brings it; below
// zero, for how long nothing may. A path past the core begins with it. Without a bound
// it says nothing.
func (r *Rate) Room(at time.Time) time.Duration {
	perSecond := max(1, r.perSecond.Load())
	return time.Duration(depth(perSecond) - max(0, r.full.Load()-int64(at.Sub(r.start))))
}

// Idle says whether a new rate could do no more than this one: nothing of what has
// passed counts any more.
func (r *Rate) Idle(at time.Time) bool {
	return r.perSecond.Load() == 0 || r.full.Load() <= int64(at.Sub(r.start))
}

// depth is the burst of a rate, in nanoseconds.
func depth(perSecond int64) int64 { return int64(max(1, 1<<16/float64(perSecond)) * 1e9) }

// passes says whether n bytes of an allocation may pass now.
func (c *Core) passes(a *allocation, now int64, n int) bool {
	return a.rate == nil || a.rate.take(c.time(now), n)
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
