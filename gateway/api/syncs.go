// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"sync"
	"time"
)

// syncs shares among many what asks the leader: whoever wants to know whether
// this gateway is up to date joins who asked a moment ago. The zero value is
// ready; it is safe for concurrent use.
type syncs struct {
	mu   sync.Mutex // guards last, and the waiters of any
	last *syncing   // nil before the first, and after one that nobody waits for
}

// syncing is one question.
type syncing struct {
	begun   time.Time
	cancel  context.CancelFunc
	waiters int
	done    chan struct{} // closed when err is there
	err     error
}

// recent returns what ask says, now or when it was called less than age ago by
// another one. A call that nobody waits for any more is ended, and every call
// after maxPulse.
func (s *syncs) recent(ctx context.Context, age time.Duration, ask func(context.Context) error) error {
	c := s.join(ctx, age, ask)
	defer s.leave(c)
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join is the call whose answer counts, which may be over.
func (s *syncs) join(ctx context.Context, age time.Duration, ask func(context.Context) error) *syncing {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || s.last.over() && time.Since(s.last.begun) >= age {
		c := &syncing{begun: time.Now(), done: make(chan struct{})}
		ctx, c.cancel = context.WithTimeout(context.WithoutCancel(ctx), maxPulse)
		go func() {
			defer c.cancel()
			c.err = ask(ctx)
			close(c.done)
		}()
		s.last = c
	}
	s.last.waiters++
	return s.last
}

func (s *syncs) leave(c *syncing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.waiters--; c.waiters > 0 || c.over() {
		return
	}
	c.cancel()
	if s.last == c {
		s.last = nil // its answer would be that it was ended
	}
}

func (c *syncing) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
