// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// stuckWriter is the answer to a client that takes nothing: its window is closed,
// or its socket is full.
type stuckWriter struct {
	*httptest.ResponseRecorder
	taken chan struct{} // closed when it takes everything at last
	stuck *atomic.Int32
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	w.stuck.Add(1)
	<-w.taken
	w.stuck.Add(-1)
	return len(p), nil
}

// noKeys is an interface whose methods are not called.
type noKeys = Keys

// seesAnswer counts streams whose answer is known to their handler.
type seesAnswer struct {
	refusal
	known *atomic.Int32
}

func (s seesAnswer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if answerFrom(ctx) != nil {
			s.known.Add(1)
		}
		return next(ctx, conn)
	}
}

// firstWriter ends its call when the first message is written.
type firstWriter struct {
	*httptest.ResponseRecorder
	done func()
}

func (w *firstWriter) Flush() { w.done() }

// noWays is embedded where nothing of it is called.
type noWays = Ways

// However many subscribers do not take their messages, one that does gets its own
// at once: they are those that hold streams open, and those that open new ones.
func TestSubscribePeers_SlowOnesHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVersions(t, 3)
		v.latest = v.snap
		var known atomic.Int32
		services, err := Services(Config{State: v, Members: v, Objects: v, Keys: struct{ noKeys }{}, Links: v, Remote: v, Signaling: struct{ Signaling }{}, Pairs: struct{ PairPlans }{}, Ways: struct{ noWays }{}, RemoteWays: struct{ RemoteWays }{}},
			connect.WithInterceptors(seesAnswer{known: &known}))
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(services, func(s Service) bool { return s.Name == v1connect.MembershipName })
		subscribe := func(ctx context.Context, w http.ResponseWriter) {
			raw, err := proto.Marshal(&v1.SubscribePeersRequest{Id: "phone"})
			if err != nil {
				t.Error(err)
			}
			body := append([]byte{0, 0, 0, 0, byte(len(raw))}, raw...)
			r := httptest.NewRequestWithContext(ctx, http.MethodPost, v1connect.MembershipSubscribePeersProcedure, bytes.NewReader(body))
			r.Header.Set("Content-Type", "application/connect+proto")
			services[at].Handler.ServeHTTP(w, r)
		}
		stay, leave := context.WithCancel(t.Context())
		taken := make(chan struct{})
		var slow sync.WaitGroup
		var stuck atomic.Int32
		const many = 200
		for range many {
			slow.Go(func() { subscribe(stay, &stuckWriter{httptest.NewRecorder(), taken, &stuck}) })
		}
		synctest.Wait()
		if n := stuck.Load(); n != many {
			t.Errorf("%d of %d wait for their clients, the others for a shift", n, many)
		}
		if n := known.Load(); n != many {
			t.Errorf("%d of %d are known to write to their client", n, many)
		}
		start := time.Now()
		ctx, done := context.WithTimeout(t.Context(), time.Minute)
		quick := &firstWriter{httptest.NewRecorder(), done}
		subscribe(ctx, quick)
		if waited := time.Since(start); waited != 0 || quick.Body.Len() == 0 {
			t.Errorf("another subscriber waited %v for slow ones, and got %d bytes", waited, quick.Body.Len())
		}
		leave()
		close(taken)
		slow.Wait()
	})
}

// A subscriber has its shift until its message is ready, and not any longer.
func TestSubscriber_ItsShiftEndsWithTheMessage(t *testing.T) {
	f := testFake(t)
	m := &membershipService{state: f, members: f}
	quiet := func(*v1.PeerConfigurations) error { return nil }
	for name, b := range map[string]*subscriber{"written": {answer: &shiftWriter{ResponseWriter: httptest.NewRecorder()}}, "unknown": {}} {
		b.service, b.id = m, "phone"
		if err := b.tell(t.Context(), f.snap, func(*v1.PeerConfigurations) error {
			if n := len(m.shifts.places); (n == 1) != (b.answer != nil) {
				t.Errorf("%s: %d shifts while its message is packed", name, n)
			}
			if b.answer != nil {
				if _, err := b.answer.Write(nil); err != nil {
					t.Error(err)
				}
			}
			if n := len(m.shifts.places); n != 0 {
				t.Errorf("%s: %d shifts while its message is sent", name, n)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		b.sent = nil
		for _, send := range []func(*v1.PeerConfigurations) error{quiet, quiet, func(*v1.PeerConfigurations) error { return io.ErrClosedPipe }} {
			_ = b.tell(t.Context(), f.snap, send)
		}
		if n := len(m.shifts.places); n != 0 {
			t.Errorf("%s: %d shifts did not end", name, n)
		}
	}
}

func TestShifts_EndWithTheContext(t *testing.T) {
	var shifts shifts
	for range max(1, runtime.GOMAXPROCS(0)-1) {
		if _, err := shifts.take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := shifts.take(ctx); !errors.Is(err, context.Canceled) {
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
