// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
)

// Memory is a store.Store of one replica that lives in memory. It owns no
// goroutine and works under testing/synctest. New makes one.
type Memory struct {
	state *kv.State

	mu     sync.Mutex // orders commands; guards the fields below
	next   uint64
	timer  *time.Timer // calls expire at the end of the earliest time to live
	closed bool
}

var _ store.Store = (*Memory)(nil)

// New returns an empty store.
func New() *Memory {
	m := &Memory{state: kv.New()}
	m.timer = time.AfterFunc(time.Hour, m.expire)
	m.timer.Stop()
	return m
}

// Get implements store.Store.
func (m *Memory) Get(_ context.Context, key string) (store.Entry, error) { return m.state.Get(key) }

// List implements store.Store.
func (m *Memory) List(_ context.Context, prefix string) ([]store.Entry, uint64, error) {
	return m.state.List(prefix)
}

// Page implements store.Store.
func (m *Memory) Page(_ context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error) {
	return m.state.Page(prefix, after, limit)
}

// Apply implements store.Store.
func (m *Memory) Apply(ctx context.Context, batch store.Batch) (uint64, error) {
	if err := batch.Validate(); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	batch.Ops = slices.Clone(batch.Ops)
	for i, op := range batch.Ops {
		batch.Ops[i].Value = slices.Clone(op.Value)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, store.ErrClosed
	}
	m.next++
	version, err := m.state.Apply(m.next, time.Now(), batch)
	m.armLocked()
	return version, err
}

// Watch implements store.Store.
func (m *Memory) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return m.state.Watch(ctx, prefix, after)
}

// Sync implements store.Store. The only replica is always up to date.
func (m *Memory) Sync(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return store.ErrClosed
	}
	return ctx.Err()
}

// Close ends all watches; the store answers store.ErrClosed from then on.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.timer.Stop()
	m.state.Close()
}

func (m *Memory) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.next++
	m.state.Expire(m.next, time.Now())
	m.armLocked()
}

func (m *Memory) armLocked() {
	if at, _ := m.state.NextExpiry(); !at.IsZero() {
		m.timer.Reset(time.Until(at))
	}
}
