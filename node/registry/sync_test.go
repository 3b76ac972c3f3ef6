// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
)

// delayed is a store that shows a change to watchers only after a word on let.
type delayed struct {
	*storetest.Memory
	let chan struct{}
	err error // what Sync answers
}

func (d *delayed) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		for c, err := range d.Memory.Watch(ctx, prefix, after) {
			select {
			case <-d.let:
			case <-ctx.Done():
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

func (d *delayed) Sync(ctx context.Context) error {
	if d.err != nil {
		return d.err
	}
	return d.Memory.Sync(ctx)
}

// What another replica acknowledged is in the snapshot of a Sync, however late
// the change arrives here.
func TestSync_WaitsForWhatWasAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := storetest.New()
		writer, d := start(t, m), &delayed{Memory: m, let: make(chan struct{})}
		r := start(t, d)
		if s, err := r.Sync(t.Context()); err != nil || len(s.Groups) != 0 {
			t.Fatalf("of nothing: %v, %v", s, err)
		}
		update(t, writer, func(tx *registry.Tx) error { return tx.PutGroup(mesh.Group{Name: "g"}) })
		got := make(chan *mesh.Snapshot, 1)
		go func() {
			s, err := r.Sync(t.Context())
			if err != nil {
				t.Error(err)
			}
			got <- s
		}()
		synctest.Wait()
		select {
		case s := <-got:
			t.Fatalf("did not wait: %v", s)
		default:
		}
		d.let <- struct{}{}
		if s := <-got; len(s.Groups) != 1 {
			t.Errorf("groups %v", s.Groups)
		}
		// Keys of applications make versions that no snapshot has to reach.
		if _, err := m.Apply(t.Context(), store.Batch{Ops: []store.Op{put("app", "x")}}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Sync(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestSync_Errors(t *testing.T) {
	d := &delayed{Memory: storetest.New(), let: make(chan struct{})}
	r := start(t, d)
	for _, tt := range []struct{ store, want error }{
		{&store.NotLeaderError{Leader: "b"}, mesh.ErrPrecondition},
		{errors.New("disk"), mesh.ErrUnavailable},
		{context.DeadlineExceeded, context.DeadlineExceeded},
	} {
		d.err = tt.store
		if _, err := r.Sync(t.Context()); !errors.Is(err, tt.want) || !errors.Is(err, tt.store) {
			t.Errorf("%v: got %v", tt.store, err)
		}
	}
	d.err = nil
	d.Memory.Close()
	if _, err := r.Sync(t.Context()); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
}

// cramped is a store that has no room for the first reads.
type cramped struct {
	*storetest.Memory
	left int
}

func (c *cramped) Sync(ctx context.Context) error {
	if c.left--; c.left >= 0 {
		return store.ErrFull
	}
	return c.Memory.Sync(ctx)
}

// A replica that cannot catch up for want of room shows nothing until it has some,
// and does not end.
func TestRun_WaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		r := start(t, &cramped{storetest.New(), 5})
		<-r.Ready()
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("it was ready after %v, want 5 s", took)
		}
	})
}
