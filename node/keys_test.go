// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
)

func TestKeys_WriteReadAndFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{store: storetest.New()}
		publish := func(key, value string, ttl time.Duration) {
			t.Helper()
			if err := n.Publish(t.Context(), key, []byte(value), ttl, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := n.Key(t.Context(), "a/1"); !errors.Is(err, mesh.ErrNotFound) {
			t.Errorf("absent key: %v", err)
		}
		publish("a/1", "before", 0)
		changes, err := n.WatchKeys(t.Context(), "a/")
		if err != nil {
			t.Fatal(err)
		}
		publish("b", "of others", 0)
		publish("a/1", "x", 0)
		publish("a/2", "y", time.Second)
		if item, err := n.Key(t.Context(), "a/2"); err != nil || string(item.Value) != "y" {
			t.Errorf("%v, %v", item, err)
		}
		for after, want := range map[string][]string{"": {"a/1", "a/2"}, "a/1": {"a/2"}, "a/2": nil} {
			items, err := n.Keys(t.Context(), "a/", after, 10)
			var keys []string
			for _, item := range items {
				keys = append(keys, item.Key)
			}
			if err != nil || !slices.Equal(keys, want) {
				t.Errorf("after %q: %v, %v", after, keys, err)
			}
		}
		var got []string
		for item, err := range changes {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s=%s %v", item.Key, item.Value, item.Deleted))
			if item.Deleted {
				break
			}
		}
		if want := []string{"a/1=x false", "a/2=y false", "a/2= true"}; !slices.Equal(got, want) {
			t.Errorf("followed %v, want %v", got, want)
		}
	})
}

// leaderless waits for a leader until the context ends.
type leaderless struct {
	store.Store
	sent bool // the change is on its way
}

func (s leaderless) Apply(ctx context.Context, _ store.Batch) (uint64, error) {
	<-ctx.Done()
	if s.sent {
		return 0, fmt.Errorf("%w: %w", ctx.Err(), store.ErrUncertain)
	}
	return 0, ctx.Err()
}

func TestPublish_KeepsToItsGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{store: storetest.New()}
		r := registry.New(n.store, nil)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		defer func() { stop(); <-ended }()
		<-r.Ready()
		guard := r.Snapshot()
		publish := func(value string) error { return n.Publish(t.Context(), "app", []byte(value), 0, guard) }
		if err := errors.Join(publish("1"), publish("2")); err != nil {
			t.Fatalf("while nothing changes: %v", err)
		}
		if _, err := r.Update(t.Context(), func(tx *registry.Tx) error { return tx.PutGroup(mesh.Group{Name: "g"}) }); err != nil {
			t.Fatal(err)
		}
		if err := publish("3"); !errors.Is(err, store.ErrConflict) {
			t.Errorf("after a change: %v, want ErrConflict", err)
		}
		if item, err := n.Key(t.Context(), "app"); err != nil || string(item.Value) != "2" {
			t.Errorf("the key is %q, %v, want 2", item.Value, err)
		}
		guard = r.Snapshot()
		if err := publish("4"); err != nil {
			t.Errorf("with the new state: %v", err)
		}
		start := time.Now()
		n.store = leaderless{}
		if err := publish("5"); err != errNoLeader || time.Since(start) != syncTimeout {
			t.Errorf("without a leader: %v after %v", err, time.Since(start))
		}
		n.store = leaderless{sent: true}
		if err := publish("6"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errNoLeader) {
			t.Errorf("an answer that does not come: %v, want an open outcome", err)
		}
	})
}

// broken answers everything with an error.
type broken struct {
	store.Store
	err error
}

func (b broken) Get(context.Context, string) (store.Entry, error) { return store.Entry{}, b.err }
func (b broken) Page(context.Context, string, string, int) ([]store.Entry, uint64, error) {
	return nil, 0, b.err
}
func (b broken) Apply(context.Context, store.Batch) (uint64, error) { return 0, b.err }
func (b broken) Watch(context.Context, string, uint64) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) { yield(store.Change{}, b.err) }
}

func TestKeys_ErrorsOfTheStore(t *testing.T) {
	for _, tt := range []struct{ store, want error }{
		{store.ErrClosed, mesh.ErrUnavailable},
		{store.ErrFull, mesh.ErrExhausted},
		{&store.NotLeaderError{Leader: "b"}, mesh.ErrPrecondition},
		{context.Canceled, context.Canceled},
	} {
		n := &Node{store: broken{err: tt.store}}
		_, key := n.Key(t.Context(), "a")
		_, keys := n.Keys(t.Context(), "a", "", 1)
		_, watch := n.WatchKeys(t.Context(), "a")
		for _, err := range []error{key, keys, watch, n.Publish(t.Context(), "a", nil, 0, nil), watchError(tt.store)} {
			if !errors.Is(err, tt.want) {
				t.Errorf("%v: got %v, want %v", tt.store, err, tt.want)
			}
		}
	}
	if err := watchError(store.ErrCompacted); !errors.Is(err, mesh.ErrExhausted) {
		t.Errorf("too slow: %v", err)
	}
	n := &Node{}
	_, key := n.Key(t.Context(), "a")
	_, keys := n.Keys(t.Context(), "a", "", 1)
	_, watch := n.WatchKeys(t.Context(), "a")
	for _, err := range []error{key, keys, watch, n.Publish(t.Context(), "a", nil, 0, nil)} {
		if !errors.Is(err, mesh.ErrUnsupported) {
			t.Errorf("a node without state: %v", err)
		}
	}
}
