// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// backoffMin and backoffMax bound how long a gateway that failed is left alone.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// member is a gateway and how it has been doing.
type member struct {
	Gateway

	// Guarded by the lock of members:

	failures int // in a row
	// until is when it may be asked again, and err why not before.
	until time.Time
	err   error
}

// members chooses whom to ask: the gateway that answered last, and when it fails
// the next one that is not known to fail.
type members struct {
	log     *slog.Logger
	metrics *metrics

	mu      sync.Mutex // guards the fields below and those of each member
	list    []*member
	current int
}

func newMembers(gateways []Gateway, m *metrics, log *slog.Logger) *members {
	ms := &members{log: log, metrics: m}
	for _, g := range gateways {
		ms.list = append(ms.list, &member{Gateway: g})
	}
	return ms
}

// wait returns the gateway to ask, once there is one that may be asked, of those
// that are not in except. When all are, the error wraps ErrRefused and one of
// theirs.
func (ms *members) wait(ctx context.Context, except map[*member]error) (*member, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m, delay := ms.next(except)
		switch {
		case m == nil:
			return nil, ms.refused(except)
		case delay == 0:
			return m, nil
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// next returns the gateway to be asked next, and how long it is to be left alone
// yet; nil when there is none that is not in except.
func (ms *members) next(except map[*member]error) (best *member, delay time.Duration) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	now := time.Now()
	for i := range ms.list {
		m := ms.list[(ms.current+i)%len(ms.list)]
		if _, ok := except[m]; ok {
			continue
		}
		left := max(m.until.Sub(now), 0)
		if best == nil || left < delay {
			best, delay = m, left
		}
	}
	return best, delay
}

// refused tells why nobody is left to be asked.
func (ms *members) refused(except map[*member]error) error {
	for _, m := range ms.list { // which nobody changes
		if err := except[m]; err != nil {
			return fmt.Errorf("%w: gateway %s: %w", ErrRefused, m.Name, err)
		}
	}
	return ErrRefused
}

// why returns what is wrong with the gateways, for a call that did not get to ask
// one; nil when nothing is known.
func (ms *members) why() error {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.list {
		if m.err != nil {
			return fmt.Errorf("gateway %s: %w", m.Name, m.err)
		}
	}
	return nil
}

// worked notes that a gateway gave an answer. If the one that was asked before
// fails, or is among those that refused, it is now asked first.
func (ms *members) worked(m *member, refusals map[*member]error) {
	ms.mu.Lock()
	current := ms.list[ms.current]
	again := m.failures > 0
	m.failures, m.until, m.err = 0, time.Time{}, nil
	// An answer that was under way does not bring its gateway back.
	moved := current != m && (current.failures > 0 || refusals[current] != nil)
	if moved {
		for i, other := range ms.list {
			if other == m {
				ms.current = i
			}
		}
		ms.metrics.failovers.Inc()
	}
	ms.mu.Unlock()
	if again || moved {
		ms.log.Info("state is read through gateway", "gateway", m.Name)
	}
}

// failed notes that a gateway gave none, and leaves it alone for a while.
func (ms *members) failed(m *member, err error) {
	ms.mu.Lock()
	m.failures++
	m.err = err
	delay := backoff(m.failures)
	m.until = time.Now().Add(delay)
	first := m.failures == 1
	ms.mu.Unlock()
	ms.metrics.failed(reasonOf(err))
	level := slog.LevelDebug
	if first {
		level = slog.LevelWarn // later ones say nothing new
	}
	ms.log.Log(context.Background(), level, "gateway does not serve the state, asking another or again",
		"gateway", m.Name, "err", err, "dur", delay)
}

// backoff is how long a gateway is left alone after so many failures in a row.
// The jitter keeps those that lost a gateway together from coming back together.
func backoff(failures int) time.Duration {
	d := backoffMax
	if shift := failures - 1; shift < 6 {
		d = min(backoffMin<<shift, backoffMax)
	}
	return d/2 + rand.N(d/2+1)
}
