// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// laggingStore has version now, and gets next after a time.
type laggingStore struct {
	Store     // the rest is not called
	now, next atomic.Uint64
	after     time.Duration
	syncs     atomic.Int64
	sync      func(context.Context) error // nil: at once
}

func (s *laggingStore) Page(context.Context, string, string, int) ([]store.Entry, uint64, error) {
	return nil, s.now.Load(), nil
}

func (s *laggingStore) Watch(ctx context.Context, _ string, after uint64) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		if next := s.next.Load(); next > after {
			select {
			case <-time.After(s.after):
				s.now.Store(next)
				if !yield(store.Change{Version: next, Events: []store.Event{{Entry: store.Entry{Key: "k", Value: []byte("v"), Version: next}}}}, nil) {
					return
				}
			case <-ctx.Done():
			}
		}
		<-ctx.Done()
		yield(store.Change{}, ctx.Err())
	}
}

func (s *laggingStore) Sync(ctx context.Context) error {
	s.syncs.Add(1)
	if s.sync != nil {
		return s.sync(ctx)
	}
	return ctx.Err()
}

// A watch from a version that the state never gets to ends, as a read does, and
// tells meanwhile that it is behind.
func TestStoreWatch_FromTheFutureEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := &laggingStore{}
		keys.now.Store(5)
		pulses := 0
		started := time.Now()
		err := (&storeService{store: keys}).newWatch("", 1<<60, func(m *meshgatev1.WatchResponse) error {
			if pulses++; !m.GetBehind() || len(m.GetEvents()) > 0 {
				t.Errorf("sent %v", m)
			}
			return nil
		}).serve(t.Context(), time.Second/2)
		var fault *storeFault
		if !errors.Is(err, mesh.ErrUnavailable) || !errors.As(err, &fault) || fault.detail.GetKind() != meshgatev1.StoreFault_KIND_BEHIND || fault.detail.GetVersion() != 5 {
			t.Errorf("got %v", err)
		}
		if took := time.Since(started); took != behindPatience || pulses < 4 {
			t.Errorf("it took %s and %d pulses", took, pulses)
		}
		synctest.Wait()
	})
}

// A gateway that lags for a moment goes on once it is there.
func TestStoreWatch_FromTheNearFutureGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := &laggingStore{after: behindPatience / 2}
		keys.now.Store(5)
		keys.next.Store(6)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		behind, last := 0, false
		err := (&storeService{store: keys}).newWatch("", 6, func(m *meshgatev1.WatchResponse) error {
			if last = m.GetBehind(); last {
				behind++
			}
			if m.GetVersion() != 6 || len(m.GetEvents()) > 0 {
				t.Errorf("sent %v, which is before the watch", m)
			}
			return nil
		}).serve(ctx, time.Second/4)
		if !errors.Is(err, context.DeadlineExceeded) || behind == 0 || last {
			t.Errorf("%v, behind %d times, at last %v", err, behind, last)
		}
		synctest.Wait()
	})
}

// However many watches there are, their pulses ask the leader ten times a second.
func TestStoreWatch_PulsesAskTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := &laggingStore{}
		s := &storeService{store: keys}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		const watches = 50
		var pulses atomic.Int64
		ended := make(chan error)
		for i := range watches {
			go func() {
				<-time.After(time.Duration(i) * time.Millisecond) // at moments of their own
				ended <- s.newWatch("", 0, func(m *meshgatev1.WatchResponse) error {
					if pulses.Add(1); m.GetBehind() && ctx.Err() == nil {
						t.Error("behind")
					}
					return nil
				}).serve(ctx, minPulse)
			}()
		}
		for range watches {
			if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
		if n := keys.syncs.Load(); n < 50 || n > 101 {
			t.Errorf("the leader was asked %d times", n)
		}
		if n := pulses.Load(); n < 50*watches {
			t.Errorf("%d pulses", n)
		}
		synctest.Wait()
	})
}

func TestSyncs_EndWithTheLastWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s syncs
		ended, calls := make(chan error, 9), 0
		ask := func(ctx context.Context) error {
			calls++
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}
		short, cancelShort := context.WithTimeout(t.Context(), time.Second)
		defer cancelShort()
		long, cancelLong := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancelLong()
		got := make(chan error)
		go func() { got <- s.recent(short, minPulse, ask) }()
		go func() { got <- s.recent(long, minPulse, ask) }()
		if err := <-got; !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		synctest.Wait()
		if len(ended) != 0 || calls != 1 {
			t.Errorf("%d calls, ended %d, while one waits still", calls, len(ended))
		}
		<-got
		synctest.Wait()
		if len(ended) != 1 || s.last != nil {
			t.Error("a call goes on that nobody waits for")
		}
		refused := errors.New("refused")
		for range 2 { // an answer counts for a while, whatever it is
			if err := s.recent(t.Context(), minPulse, func(context.Context) error { calls++; return refused }); !errors.Is(err, refused) {
				t.Error(err)
			}
		}
		<-time.After(minPulse)
		if err := s.recent(t.Context(), minPulse, func(context.Context) error { calls++; return nil }); err != nil || calls != 3 {
			t.Errorf("%v after %d calls", err, calls)
		}
	})
}
