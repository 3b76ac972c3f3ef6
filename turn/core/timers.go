// SPDX-License-Identifier: Apache-2.0

package core

import (
	"container/heap"
	"time"
)

// timer wakes its owner. A deadline that moves back is not worth moving the
// timer for: the owner wakes early, finds nothing due and sets it anew.
type timer struct {
	at    int64
	index int // in the heap, plus one; 0: not set
	owner timed
}

// timed has a timer. due is called with the timer unset.
type timed interface {
	due(c *Core, now int64, out *Output)
}

// timers is a heap of timers.
type timers []*timer

// Len, Less, Swap, Push and Pop are for container/heap.
func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at < t[j].at }
func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].index, t[j].index = i+1, j+1
}

// Push appends a timer.
func (t *timers) Push(x any) {
	one := x.(*timer)
	*t = append(*t, one)
	one.index = len(*t)
}

// Pop removes the last timer.
func (t *timers) Pop() any {
	last := len(*t) - 1
	one := (*t)[last]
	(*t)[last] = nil
	*t = (*t)[:last]
	one.index = 0
	return one
}

// wake makes sure that a timer fires at a moment or before.
func (c *Core) wake(t *timer, at int64) {
	switch {
	case t.index == 0:
		t.at = at
		heap.Push(&c.timers, t)
	case at < t.at:
		t.at = at
		heap.Fix(&c.timers, t.index-1)
	}
}

// stop unsets a timer.
func (c *Core) stop(t *timer) {
	if t.index != 0 {
		heap.Remove(&c.timers, t.index-1)
	}
}

// Next returns when Expire has something to do, and false when nothing is
// waiting. An event may move it; ask again after each batch.
func (c *Core) Next() (time.Time, bool) {
	if len(c.timers) == 0 {
		return time.Time{}, false
	}
	return c.time(c.timers[0].at), true
}

// Expire ends what has ended by now: allocations, permissions, channels,
// reservations, attempts to connect. Nothing that has ended is served before
// Expire either; it gives back what such things hold.
func (c *Core) Expire(now time.Time, out *Output) {
	at := c.at(now)
	for len(c.timers) > 0 && c.timers[0].at <= at {
		t := heap.Pop(&c.timers).(*timer)
		t.owner.due(c, at, out)
	}
}
