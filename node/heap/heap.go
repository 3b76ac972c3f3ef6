// SPDX-License-Identifier: Apache-2.0

// Package heap decides how often a process collects its garbage. The runtime
// lets a heap grow by a share of what is alive, which for a small heap is so
// little that a busy process does nothing else but collect.
package heap

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// Keep lets the heap of this process grow by percent of what is alive, and by no
// less than least bytes, between two collections, until stop is called: then
// percent alone counts. It is called once at a time.
func Keep(percent int, least uint64) (stop func()) {
	k := &keeper{percent: percent, least: least}
	k.adjust()
	after := &collection{k}
	runtime.SetFinalizer(after, (*collection).over)
	return k.stop
}

// collection is garbage: it is found with every collection.
type collection struct{ keeper *keeper }

// over is called after a collection, and again after the next.
func (c *collection) over() {
	if c.keeper.adjust() {
		runtime.SetFinalizer(c, (*collection).over)
	}
}

// keeper sets the share by which the heap may grow.
type keeper struct {
	percent int
	least   uint64

	mu    sync.Mutex // guards the fields below
	set   int        // the last percentage that was set; 0: none
	ended bool
}

// adjust sets the share for what is alive now; false after stop.
func (k *keeper) adjust() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return false
	}
	// To set it stops the world for a moment: not for next to nothing.
	if want := share(k.percent, k.least, alive()); want > k.set+k.set/8 || want < k.set-k.set/8 {
		k.set = want
		debug.SetGCPercent(want)
	}
	return true
}

func (k *keeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	debug.SetGCPercent(k.percent)
}

// minimum is the heap for which a percentage counts when less is alive, in bytes
// (runtime, heapMinimum).
const minimum = 4 << 20

// share is the percentage of what is alive that is at least percent, and least
// bytes.
func share(percent int, least, alive uint64) int {
	return max(percent, int(least*100/max(alive, minimum)))
}

// alive is what the last collection left, in bytes.
func alive() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0 // no runtime that this was written for
	}
	return sample[0].Value.Uint64()
}
