// SPDX-License-Identifier: Apache-2.0

package shard

import "time"

// A thread that packets wake more often than every streamGap takes a nap before it
// looks for more: the next find it awake, several at a time. A wake-up costs more
// than anything that is done with a packet, and at 20 000 packets a second naps
// halve the work, for some 50 microseconds that a packet is later. Where they find no
// more than one, such as between two who wait for each other's answers, they save
// nothing: there are none for a while.
const (
	streamGap = 200 * time.Microsecond
	nap       = 50 * time.Microsecond
	napSlack  = time.Microsecond // by which the kernel may be late
	maxYield  = 16               // of the last naps
	awake     = 64               // turns without naps when they yield nothing
	newYield  = 4                // with which they are tried again
)

// A thread that does not wait keeps a processor of Go's scheduler. It lends it to
// other goroutines this often, for lendFor or as long as they need it: that they
// wait for the scheduler's own patience of 10 ms would be felt by all who share the
// process.
const (
	lendEvery = 2 * time.Millisecond
	lendFor   = time.Microsecond
)

// look returns how many events there are. It waits while there is nothing to do.
func (t *thread) look() int {
	pending := t.pending()
	t.napped = !pending && t.streaming && t.yield >= 0
	switch lend := t.woke.Sub(t.lent) >= lendEvery; {
	case lend && t.napped:
		t.lend(nap)
	case lend && pending:
		t.lend(lendFor)
	case t.napped:
		doze(nap)
	}
	if pending || t.napped {
		if n, errno := poll(t.epoll, t.events[:]); pending || n > 0 && errno == 0 {
			return max(n, 0)
		}
	}
	if t.napped {
		t.napped = false
		t.rate(0)
	}
	t.lent = t.woke
	n, errno := wait(t.epoll, t.events[:], t.patience())
	if errno != 0 {
		return 0 // EINTR: the scheduler of Go wants something
	}
	return n
}

// lend sleeps as goroutines do.
func (t *thread) lend(d time.Duration) {
	t.lent = t.woke
	t.timer.Reset(d)
	<-t.timer.C
}

// rate notes how many packets came while the thread napped.
func (t *thread) rate(packets int) {
	if t.yield = min(t.yield+2*(packets-1), maxYield); packets == 1 {
		t.yield--
	}
	if t.yield < 0 {
		t.yield = -awake
	}
}

// pending reports whether there is something to do at once.
func (t *thread) pending() bool {
	if t.busy || t.ready.len() > 0 || t.next < len(t.running) || t.shard.calls.any.Load() {
		return true
	}
	for _, p := range t.listeners {
		if p != nil && p.lane.ready {
			return true
		}
	}
	return false
}

// patience is how many milliseconds there is nothing to do; -1 is for ever.
func (t *thread) patience() int {
	next, ok := t.core.Next()
	if len(t.offloaded) > 0 && (!ok || t.credit.Before(next)) {
		next, ok = t.credit, true
	}
	if !ok {
		return -1
	}
	const longest = time.Hour
	return int(min(max(time.Until(next), 0)+time.Millisecond, longest) / time.Millisecond) // rounded up
}
