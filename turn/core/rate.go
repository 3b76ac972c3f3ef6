// SPDX-License-Identifier: Apache-2.0

package core

import (
	"sync/atomic"
	"time"
)

// Rate bounds the bytes that all allocations relay together that share it, of one
// core or of several: in both directions, with a burst of a second's worth, or of
// 64 KiB if that is more. It may have no bound at first, or at last: whoever shares it
// then is bounded as soon as Set says so. It is safe for concurrent use.
type Rate struct {
	start     time.Time
	perSecond atomic.Int64
	full      atomic.Int64 // when the bucket is full again, in nanoseconds since start
}

// NewRate returns a rate of bytes per second; 0 is no bound.
func NewRate(perSecond int64) *Rate {
	r := &Rate{start: time.Now()}
	r.Set(perSecond)
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

// depth is the burst of a rate, in nanoseconds.
func depth(perSecond int64) int64 { return int64(max(1, 1<<16/float64(perSecond)) * 1e9) }

// passes says whether n bytes of an allocation may pass now.
func (c *Core) passes(a *allocation, now int64, n int) bool {
	return a.bucket.take(now, n) && (a.rate == nil || a.rate.take(c.time(now), n))
}
