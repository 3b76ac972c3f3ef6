// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// floorMemory is what the streams of each session may hold whatever others
	// do, and floorChannels how many channels it may have: so a caller that fills
	// the budget makes others slow, and not mute. A message of the largest size
	// fits into it.
	floorMemory   = 256 << 10
	floorChannels = 4
	// channelMemory is what a channel costs that carries nothing: a buffer in
	// each direction.
	channelMemory = 64 << 10
	// reclaimAfter is how much must have come free for it to be worth a collection.
	reclaimAfter = 8 << 20
)

// budget bounds what sessions hold in memory: each for itself, those of one
// caller together, and all of them. It is safe for concurrent use.
//
// Bytes that have no room wait, which stops their sender; channels are refused.
// Sessions that wait for the same room get it in turn.
type budget struct {
	total, perCaller int64

	mu       sync.Mutex // guards the fields below, and all accounts
	used     int64
	peak     int64 // of used, since the last collection was asked for
	channels int64
	callers  map[string]*holding
	waiting  []*account // for room in total
	full     []*account // always empty: a full session is served by itself
}

// holding is what the sessions of one caller hold.
type holding struct {
	used     int64
	channels int64
	accounts int
	waiting  []*account // for room in perCaller
}

// account is what one session holds.
type account struct {
	budget *budget
	caller string
	of     *holding
	limit  int64 // of held

	held     int64 // by streams
	counted  int64 // what of held counts for the caller and for all
	channels int64 // paid is how many of them count
	paid     int64
	waiters  []*waiter
	queue    *[]*account // where the account waits, or nil
	closed   bool
}

// waiter is a stream that waits for room.
type waiter struct {
	n     int64
	ready chan struct{} // closed when it has got it
}

func newBudget(total, perCaller int64) *budget {
	return &budget{total: total, perCaller: perCaller, callers: map[string]*holding{}}
}

// account opens the account of a session, which must be closed.
func (b *budget) account(caller string, limit int64) *account {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.callers[caller]
	if h == nil {
		h = &holding{}
		b.callers[caller] = h
	}
	h.accounts++
	return &account{budget: b, caller: caller, of: h, limit: limit}
}

// held is what all sessions hold.
func (b *budget) held() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Acquire waits for room for n bytes of a stream, or until ctx ends. It
// implements bridge.Memory.
func (a *account) Acquire(ctx context.Context, n int64) error {
	b := a.budget
	b.mu.Lock()
	if len(a.waiters) == 0 && a.room(n) == nil {
		a.take(n)
		b.mu.Unlock()
		return nil
	}
	w := &waiter{n: n, ready: make(chan struct{})}
	a.waiters = append(a.waiters, w)
	b.settle(a)
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(a.waiters, w); i >= 0 {
		a.waiters = slices.Delete(a.waiters, i, i+1)
		b.settle(a)
		return ctx.Err()
	}
	return nil // it came at the last moment
}

// Release gives n bytes back. What counts for others is given back first.
func (a *account) Release(n int64) {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.closed {
		return
	}
	a.held -= n
	a.pay(-min(n, a.counted))
	b.settle(a)
	b.serve(a.of)
}

// open takes the room of one more channel, which leave gives back. The error
// wraps mesh.ErrExhausted.
func (a *account) open() error {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	pays := a.channels >= floorChannels
	switch {
	case !pays:
	case a.of.used+channelMemory > b.perCaller:
		return fmt.Errorf("the connections of %q hold the %d MiB that those of one caller may; close some: %w",
			a.caller, b.perCaller>>20, mesh.ErrExhausted)
	case b.used+channelMemory > b.total:
		return fmt.Errorf("the connections at this node hold all the memory that they may; try again later: %w", mesh.ErrExhausted)
	default:
		a.paid++
		a.add(channelMemory)
	}
	a.channels++
	a.of.channels++
	b.channels++
	return nil
}

func (a *account) leave() {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.closed {
		return
	}
	a.channels--
	a.of.channels--
	b.channels--
	if a.paid > 0 {
		a.paid--
		a.add(-channelMemory)
		b.serve(a.of)
	}
}

// share is what one channel may have waiting to be sent: its part of what the
// session, its caller and all may have.
func (a *account) share() int64 {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	return min(a.limit/max(a.channels, 1), b.perCaller/max(a.of.channels, 1), b.total/max(b.channels, 1))
}

// close gives back what is left, and says whether so much has come free that
// the system should have it.
func (a *account) close() (collect bool) {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.closed {
		return false
	}
	a.closed = true
	a.add(-a.counted - a.paid*channelMemory)
	a.of.channels -= a.channels
	b.channels -= a.channels
	a.enqueue(nil)
	b.serve(a.of)
	if a.of.accounts--; a.of.accounts == 0 {
		delete(b.callers, a.caller)
	}
	if b.peak-b.used < reclaimAfter {
		return false
	}
	b.peak = b.used
	return true
}

// room is nil if n bytes fit, and otherwise where to wait for it: the queue of
// the caller or of all, or one that nobody serves if the session itself is full.
// It needs the lock.
func (a *account) room(n int64) *[]*account {
	b := a.budget
	switch {
	case a.held > 0 && a.held+n > a.limit:
		return &b.full
	case a.held-a.counted+n <= floorMemory:
		return nil
	case a.of.used+n > b.perCaller:
		return &a.of.waiting
	case b.used+n > b.total:
		return &b.waiting
	}
	return nil
}

// take needs the lock, and room.
func (a *account) take(n int64) {
	if a.held-a.counted+n > floorMemory {
		a.pay(n)
	}
	a.held += n
}

// pay counts n bytes of streams for the caller and for all; add any bytes.
func (a *account) pay(n int64) {
	a.counted += n
	a.add(n)
}

func (a *account) add(n int64) {
	a.of.used += n
	a.budget.used += n
	a.budget.peak = max(a.budget.peak, a.budget.used)
}

// settle gives the waiters of an account what has room, and has the account
// wait for the rest where that comes. It needs the lock.
func (b *budget) settle(a *account) {
	for len(a.waiters) > 0 && !a.closed {
		w := a.waiters[0]
		if q := a.room(w.n); q != nil {
			a.enqueue(q)
			return
		}
		a.take(w.n)
		a.waiters = a.waiters[1:]
		close(w.ready)
	}
	a.enqueue(nil)
}

// enqueue has an account wait in q, in none if q is nil, keeping its place.
func (a *account) enqueue(q *[]*account) {
	if q == &a.budget.full {
		q = nil
	}
	if a.queue == q {
		return
	}
	if a.queue != nil {
		i := slices.Index(*a.queue, a)
		*a.queue = slices.Delete(*a.queue, i, i+1)
	}
	if a.queue = q; q != nil {
		*q = append(*q, a)
	}
}

// serve gives room to those that wait for it, after some of h came free.
func (b *budget) serve(h *holding) {
	for _, q := range []*[]*account{&h.waiting, &b.waiting} {
		for len(*q) > 0 {
			first := (*q)[0]
			if b.settle(first); first.queue == q && (*q)[0] == first {
				break // there is no more
			}
		}
	}
}
