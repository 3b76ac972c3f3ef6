// SPDX-License-Identifier: Apache-2.0

// Package storetest has what tests of stores and of their users need: an
// in-memory store and the conformance suite of the store contract.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/store"
)

// patience ends a test that waits for something that does not come.
const patience = 2 * time.Minute

// Run checks that the stores made by open keep the contract of store.Store.
// Each call of open returns a store without a key, closed when the test ends.
func Run(t *testing.T, open func(t testing.TB) store.Store) {
	tests := []struct {
		name string
		run  func(t *testing.T, f fixture)
	}{
		{"Get", testGet},
		{"Delete", testDelete},
		{"List", testList},
		{"Page", testPage},
		{"Versions", testVersions},
		{"BatchIsOrdered", testBatchIsOrdered},
		{"Conditions", testConditions},
		{"RefusedBatchChangesNothing", testRefusedBatch},
		{"InvalidBatch", testInvalidBatch},
		{"CancelledApply", testCancelledApply},
		{"ValuesAreCopied", testValuesAreCopied},
		{"ConcurrentCounters", testConcurrentCounters},
		{"WatchFromStart", testWatchFromStart},
		{"WatchResumes", testWatchResumes},
		{"WatchPrefix", testWatchPrefix},
		{"WatchWholeBatch", testWatchWholeBatch},
		{"WatchSeesEveryChangeOnce", testWatchSeesEveryChangeOnce},
		{"WatchCancel", testWatchCancel},
		{"WatchCompacted", testWatchCompacted},
		{"Expiry", testExpiry},
		{"ExpiryOfRefreshedKey", testExpiryOfRefreshedKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			t.Cleanup(cancel)
			f := fixture{t: t, ctx: ctx, Store: open(t)}
			if err := f.Sync(ctx); err != nil {
				t.Fatalf("sync of a new store: %v", err)
			}
			tt.run(t, f)
		})
	}
}

// fixture is a store under test, with methods that fail the test themselves.
type fixture struct {
	store.Store
	t   testing.TB
	ctx context.Context
}

func (f fixture) apply(b store.Batch) uint64 {
	f.t.Helper()
	version, err := f.Apply(f.ctx, b)
	if err != nil {
		f.t.Fatalf("apply %v: %v", b, err)
	}
	return version
}

func (f fixture) put(key, value string) uint64 {
	f.t.Helper()
	return f.apply(store.Batch{Ops: []store.Op{put(key, value)}})
}

func (f fixture) delete(key string) uint64 {
	f.t.Helper()
	return f.apply(store.Batch{Ops: []store.Op{remove(key)}})
}

func (f fixture) get(key string) store.Entry {
	f.t.Helper()
	e, err := f.Get(f.ctx, key)
	if err != nil {
		f.t.Fatalf("get %q: %v", key, err)
	}
	return e
}

func (f fixture) wantMissing(key string) {
	f.t.Helper()
	if e, err := f.Get(f.ctx, key); !errors.Is(err, store.ErrNotFound) {
		f.t.Fatalf("get %q: got %v, %v, want ErrNotFound", key, e, err)
	}
}

// list returns the entries under prefix as "key=value" and the version.
func (f fixture) list(prefix string) ([]string, uint64) {
	f.t.Helper()
	entries, version, err := f.List(f.ctx, prefix)
	if err != nil {
		f.t.Fatalf("list %q: %v", prefix, err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Key+"="+string(e.Value))
	}
	return got, version
}

func (f fixture) wantList(prefix string, want ...string) {
	f.t.Helper()
	if got, _ := f.list(prefix); !slices.Equal(got, want) {
		f.t.Fatalf("list %q: got %q, want %q", prefix, got, want)
	}
}

// follower reads a watch change by change.
type follower struct {
	t    testing.TB
	next func() (store.Change, error, bool)
}

func (f fixture) watch(prefix string, after uint64) follower {
	next, stop := iter.Pull2(f.Watch(f.ctx, prefix, after))
	f.t.Cleanup(stop)
	return follower{f.t, next}
}

// change returns the next change as "version key=value -key".
func (w follower) change() (uint64, string) {
	w.t.Helper()
	c, err, ok := w.next()
	if err != nil || !ok {
		w.t.Fatalf("watch: got %v, %v, %v, want a change", c, err, ok)
	}
	return c.Version, text(w.t, c)
}

func (w follower) want(version uint64, events string) {
	w.t.Helper()
	if v, got := w.change(); v != version || got != events {
		w.t.Fatalf("watch: got %d %q, want %d %q", v, got, version, events)
	}
}

// text writes the events of a change as "key=value" and "-key".
func text(t testing.TB, c store.Change) string {
	t.Helper()
	var got []string
	for _, e := range c.Events {
		if e.Version != c.Version {
			t.Fatalf("event of %q has version %d in change %d", e.Key, e.Version, c.Version)
		}
		if e.Deleted {
			got = append(got, "-"+e.Key)
		} else {
			got = append(got, e.Key+"="+string(e.Value))
		}
	}
	return strings.Join(got, " ")
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }

func remove(key string) store.Op { return store.Op{Key: key, Delete: true} }

// parallel runs do n times at once and waits for all.
func parallel(n int, do func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := do(i); err != nil {
				errs[i] = fmt.Errorf("worker %d: %w", i, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
