// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// maxCalls is how many calls wait before Do does.
const maxCalls = 1024

// call is one call of Do, or a question for the counters.
type call struct {
	run   func(now time.Time, c *core.Core, out *core.Output)
	stats chan<- Stats
}

// calls are what waits for the thread of a shard.
type calls struct {
	any atomic.Bool // waiting is not empty, or closed: read without the lock

	mu      sync.Mutex
	room    sync.Cond
	waiting []call
	closed  bool
}

func (q *calls) init() { q.room.L = &q.mu }

// push adds a call and wakes the engine. It is false when the queue is closed,
// or full and wait is not set.
func (q *calls) push(c call, e engine, wait bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) >= maxCalls && !q.closed {
		if !wait {
			return false
		}
		if e.here() {
			break // nobody else would make room
		}
		q.room.Wait()
	}
	if q.closed {
		return false
	}
	q.waiting = append(q.waiting, c)
	q.rouse(e)
	return true
}

// rouse wakes the engine unless it has been and has not looked yet.
func (q *calls) rouse(e engine) {
	if !q.any.Swap(true) {
		e.wake()
	}
}

func (q *calls) close(e engine) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		q.room.Broadcast()
		q.rouse(e)
	}
}

// take returns all waiting calls, in their order, and whether there will be no
// more. spare, emptied, is used for those that come.
func (q *calls) take(spare []call) (_ []call, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.any.Store(q.closed)
	clear(spare)
	waiting := q.waiting
	q.waiting = spare[:0]
	q.room.Broadcast()
	return waiting, q.closed
}
