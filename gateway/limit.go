// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// maxBuckets bounds how many keys a set of buckets remembers. The one not used
// for the longest time is forgotten first, that is, found full again.
const maxBuckets = 8192

// buckets is a set of token buckets, one per key. It is safe for concurrent use.
type buckets struct {
	perSecond, burst float64

	mu    sync.Mutex // guards the fields below
	byKey map[string]*list.Element
	used  *list.List // of *bucket, the last used in front
}

// bucket held tokens at a point in time.
type bucket struct {
	key    string
	tokens float64
	at     time.Time
}

// newBuckets makes buckets that hold burst tokens and gain perSecond.
func newBuckets(perSecond float64, burst int) *buckets {
	return &buckets{perSecond: perSecond, burst: float64(burst), byKey: make(map[string]*list.Element), used: list.New()}
}

// take takes a token from key's bucket; false when it is empty.
func (b *buckets) take(key string) bool { return b.takeN(key, 1) }

// takeN takes n tokens from key's bucket, or none; false when it has fewer.
func (b *buckets) takeN(key string, n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.getLocked(key)
	if k.tokens < float64(n) {
		return false
	}
	k.tokens -= float64(n)
	return true
}

// giveBack returns a token that take took.
func (b *buckets) giveBack(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.getLocked(key)
	k.tokens = min(b.burst, k.tokens+1)
}

// getLocked returns key's bucket as it is now, a full one when key is new.
func (b *buckets) getLocked(key string) *bucket {
	now := time.Now()
	if e, ok := b.byKey[key]; ok {
		b.used.MoveToFront(e)
		k := e.Value.(*bucket)
		k.tokens = min(b.burst, k.tokens+b.perSecond*now.Sub(k.at).Seconds())
		k.at = now
		return k
	}
	if b.used.Len() >= maxBuckets {
		oldest := b.used.Back()
		b.used.Remove(oldest)
		delete(b.byKey, oldest.Value.(*bucket).key)
	}
	k := &bucket{key: key, tokens: b.burst, at: now}
	b.byKey[key] = b.used.PushFront(k)
	return k
}

// slots counts what each key holds, up to a limit. It is safe for concurrent use.
type slots struct {
	limit int

	mu   sync.Mutex // guards held
	held map[string]int
}

func newSlots(limit int) *slots { return &slots{limit: limit, held: make(map[string]int)} }

// acquire takes a slot for key; false when it holds all of them. The caller
// gives it back by calling release once.
func (s *slots) acquire(key string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[key] >= s.limit {
		return nil, false
	}
	s.held[key]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[key]--; s.held[key] == 0 {
			delete(s.held, key)
		}
	}, true
}

// tracker counts what is going on, so that an end can wait for it.
type tracker struct {
	mu     sync.Mutex // guards the fields below
	n      int
	closed bool
	idle   chan struct{} // closed when closed is set and n is 0
}

func newTracker() *tracker { return &tracker{idle: make(chan struct{})} }

// enter counts one more, to be ended by leave; false after close.
func (t *tracker) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.n++
	return true
}

// leave counts one less.
func (t *tracker) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.closed {
		close(t.idle)
	}
}

// close lets nobody in any more. The channel closes when all have left. Call
// it once.
func (t *tracker) close() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed = true; t.n == 0 {
		close(t.idle)
	}
	return t.idle
}

// network is the key under which limits know a stranger: the IPv4 address, or
// the IPv6 /64, all of which one customer holds.
func network(a netip.Addr) string {
	if a = a.Unmap(); a.Is6() {
		p, err := a.WithZone("").Prefix(64)
		if err != nil {
			return a.String()
		}
		return p.String()
	}
	return a.String()
}
