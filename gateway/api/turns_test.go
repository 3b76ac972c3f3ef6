// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Subscribers are told a few at a time, and one that does not take its message
// holds up the others once, and not for long.
func TestSubscriber_SlowOnesHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testFake(t)
		m := &membershipService{state: f, members: f}
		places := max(1, runtime.GOMAXPROCS(0)-1)
		taken := make(chan struct{})
		stuck := func(*v1.PeerConfigurations) error { <-taken; return nil }
		var slow []*subscriber
		for range places {
			slow = append(slow, &subscriber{service: m, id: "phone"})
		}
		told := func(change string) {
			var wg sync.WaitGroup
			for _, b := range slow {
				wg.Go(func() {
					if err := b.tell(t.Context(), f.snap, stuck); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			start := time.Now()
			quick := &subscriber{service: m, id: "phone"}
			if err := quick.tell(t.Context(), f.snap, func(*v1.PeerConfigurations) error { return nil }); err != nil {
				t.Fatal(err)
			}
			want := longestTurn
			if change == "second" {
				want = 0
			}
			if waited := time.Since(start); waited != want {
				t.Errorf("%s change: another subscriber waited %v for slow ones, want %v", change, waited, want)
			}
			close(taken)
			wg.Wait()
			taken = make(chan struct{})
		}
		told("first")
		next := *f.snap
		next.ACLs = append([]mesh.ACL{{Name: "more", Accept: true}}, next.ACLs...)
		f.snap = &next
		told("second")
		// What they took late is taken in time again.
		for _, b := range slow {
			b.sent = nil
			if err := b.tell(t.Context(), f.snap, func(*v1.PeerConfigurations) error { return nil }); err != nil || b.slow {
				t.Errorf("still slow: %v, %v", b.slow, err)
			}
		}
		if n := len(m.turns.places); n != 0 {
			t.Errorf("%d turns did not end", n)
		}
	})
}

func TestTurns_EndWithTheContext(t *testing.T) {
	var turns turns
	for range max(1, runtime.GOMAXPROCS(0)-1) {
		if _, err := turns.take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := turns.take(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// versions is a State of snapshots that come one after the other.
type versions struct {
	*fake
	mu      sync.Mutex
	latest  *mesh.Snapshot
	changed chan struct{}
	waiting atomic.Int32 // calls of Wait that block
}

func newVersions(t testing.TB, version uint64) *versions {
	v := &versions{fake: testFake(t), changed: make(chan struct{})}
	v.latest = &mesh.Snapshot{Version: version}
	return v
}

func (v *versions) set(version uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.latest = &mesh.Snapshot{Version: version}
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *versions) Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	for {
		v.mu.Lock()
		latest, changed := v.latest, v.changed
		v.mu.Unlock()
		if latest.Version > after {
			return latest, nil
		}
		v.waiting.Add(1)
		select {
		case <-changed:
		case <-ctx.Done():
		}
		v.waiting.Add(-1)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// However many wait for news, one of them asks for it, and when that one goes
// another does.
func TestNews_OneWaitsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVersions(t, 5)
		var n news
		first, leave := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() { _, err := n.wait(first, v, 5); gone <- err }()
		synctest.Wait()
		const many = 100
		got := make(chan uint64, many)
		for range many {
			go func() {
				s, err := n.wait(t.Context(), v, 5)
				if err != nil {
					t.Error(err)
				}
				got <- s.Version
			}()
		}
		synctest.Wait()
		if w := v.waiting.Load(); w != 1 {
			t.Fatalf("%d wait for the state", w)
		}
		leave()
		synctest.Wait()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if w := v.waiting.Load(); w != 1 || len(got) != 0 {
			t.Fatalf("%d wait for the state after one left, %d do so no more", w, len(got))
		}
		v.set(6)
		for range many {
			if version := <-got; version != 6 {
				t.Errorf("version %d", version)
			}
		}
	})
}

// One that lags behind is not made to wait for what the others wait for.
func TestNews_TellsLaggards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVersions(t, 7)
		var n news
		ahead := make(chan uint64, 2)
		for range 2 {
			go func() {
				s, err := n.wait(t.Context(), v, 7)
				if err != nil {
					t.Error(err)
				}
				ahead <- s.Version
			}()
		}
		synctest.Wait()
		if s, err := n.wait(t.Context(), v, 5); err != nil || s.Version != 7 {
			t.Errorf("%v, %v", s, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := n.wait(ctx, v, 7); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		v.set(8)
		if a, b := <-ahead, <-ahead; a != 8 || b != 8 {
			t.Errorf("versions %d and %d", a, b)
		}
	})
}
