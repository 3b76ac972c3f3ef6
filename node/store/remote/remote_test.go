// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/remote"
	"github.com/meshgate/meshgate/node/store/storetest"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

func TestStore_KeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t testing.TB) store.Store {
		return newClient(t, nil, newServer(t, newMemory(t), nil).addr)
	})
}

// The same through two gateways in turn: what one call has seen the next one,
// at another gateway, must not miss.
func TestStore_KeepsTheContractOverGatewaysInTurn(t *testing.T) {
	storetest.Run(t, func(t testing.TB) store.Store {
		leader := newMemory(t)
		a, b := newServer(t, newReplica(t, leader), nil), newServer(t, newReplica(t, leader), nil)
		return newClient(t, inTurn, a.addr, b.addr)
	})
}

func TestNew_BadConfig(t *testing.T) {
	good := remote.Gateway{Name: "gw-1", Client: &rotation{}}
	for want, cfg := range map[string]remote.Config{
		"Config.Gateways is empty":           {},
		"Config.Gateways[0] lacks a name":    {Gateways: []remote.Gateway{{Client: &rotation{}}}},
		"Config.Gateways[1] lacks a name or": {Gateways: []remote.Gateway{good, {Name: "gw-2"}}},
		"a time in Config is negative":       {Gateways: []remote.Gateway{good}, Timeout: -1},
		"a time in Config is negative ":      {Gateways: []remote.Gateway{good}, Patience: -1},
		"Config.Silence 1s is not":           {Gateways: []remote.Gateway{good}, Silence: time.Second / 4},
		"Config.Silence 4m0s is not":         {Gateways: []remote.Gateway{good}, Silence: 4 * time.Minute},
	} {
		want = strings.Replace(strings.TrimSpace(want), "1s is", "250ms is", 1)
		if s, err := remote.New(cfg); s != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	taken := prometheus.NewRegistry()
	for i := range 2 {
		s, err := remote.New(remote.Config{Gateways: []remote.Gateway{good}, Registerer: taken})
		if (err == nil) != (i == 0) {
			t.Errorf("store %d with the same registry: %v", i, err)
		}
		if s != nil {
			s.Close()
		}
	}
}

// answers is a state that gives the same errors to everything.
type answers struct {
	*storetest.Memory
	err error
	// block makes calls wait for their context.
	block bool
	calls atomic.Int64
}

func (a *answers) answer(ctx context.Context) error {
	a.calls.Add(1)
	if a.block {
		<-ctx.Done()
		return ctx.Err()
	}
	return a.err
}

func (a *answers) List(ctx context.Context, prefix string) ([]store.Entry, uint64, error) {
	if err := a.answer(ctx); err != nil {
		return nil, 0, err
	}
	return a.Memory.List(ctx, prefix)
}

func (a *answers) Page(ctx context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error) {
	if err := a.answer(ctx); err != nil {
		return nil, 0, err
	}
	return a.Memory.Page(ctx, prefix, after, limit)
}

func (a *answers) Apply(ctx context.Context, b store.Batch) (uint64, error) {
	if err := a.answer(ctx); err != nil {
		return 7, err
	}
	return a.Memory.Apply(ctx, b)
}

func (a *answers) Sync(ctx context.Context) error {
	if err := a.answer(ctx); err != nil {
		return err
	}
	return a.Memory.Sync(ctx)
}

func (a *answers) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	if a.err != nil {
		return func(yield func(store.Change, error) bool) { yield(store.Change{}, a.answer(ctx)) }
	}
	return a.Memory.Watch(ctx, prefix, after)
}

var aPut = store.Batch{Ops: []store.Op{{Key: "k", Value: []byte("v")}}}

// What a gateway says of a change, and whether another one is asked.
func TestApply_AnswersOfAGateway(t *testing.T) {
	for _, tt := range []struct {
		err   error
		want  error // nil: the other gateway makes the change
		again bool  // whether the other one is asked
	}{
		{fmt.Errorf("%w: x", store.ErrConflict), store.ErrConflict, false},
		{fmt.Errorf("%w: x", store.ErrInvalid), store.ErrInvalid, false},
		{fmt.Errorf("%w: x", store.ErrFull), store.ErrFull, false},
		{fmt.Errorf("%w: x", store.ErrUncertain), store.ErrUncertain, false},
		{fmt.Errorf("%w: %w", context.DeadlineExceeded, store.ErrUncertain), store.ErrUncertain, false},
		{fmt.Errorf("%w: %w", store.ErrClosed, store.ErrUncertain), store.ErrUncertain, false},
		{errors.New("unknown fault"), store.ErrUncertain, false}, // it may have come at any time
		{&store.NotLeaderError{Leader: "gw-9"}, nil, true},
		{store.ErrClosed, nil, true},
		{fmt.Errorf("%w: x", mesh.ErrDenied), nil, true},
		{fmt.Errorf("%w: x", mesh.ErrUnauthenticated), nil, true},
		{fmt.Errorf("%w: too many", mesh.ErrExhausted), nil, true},
		{fmt.Errorf("%w: no state", mesh.ErrUnsupported), nil, true},
		{fmt.Errorf("%w: x", mesh.ErrUnavailable), store.ErrUncertain, false},
	} {
		first, second := &answers{Memory: newMemory(t), err: tt.err}, &answers{Memory: newMemory(t)}
		c := newClient(t, nil, newServer(t, first, nil).addr, newServer(t, second, nil).addr)
		version, err := c.Apply(testContext(t), aPut)
		if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%v: got %v, want %v", tt.err, err, tt.want)
		}
		if got := second.calls.Load(); (got > 0) != tt.again || first.calls.Load() != 1 {
			t.Errorf("%v: the gateways were asked %d and %d times", tt.err, first.calls.Load(), got)
		}
		if errors.Is(err, store.ErrConflict) && version != 7 {
			t.Errorf("%v: version %d, want that of the refusal", tt.err, version)
		}
	}
}

// A gateway takes the change and dies before it answers.
func TestApply_LostAnswerIsUncertainAndNotRepeated(t *testing.T) {
	m := newMemory(t)
	var calls atomic.Int64
	dying := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/Apply") {
				next.ServeHTTP(w, r)
				return
			}
			calls.Add(1)
			next.ServeHTTP(discard{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		})
	}
	c := newClient(t, nil, newServer(t, m, dying).addr, newServer(t, m, dying).addr)
	_, err := c.Apply(testContext(t), aPut)
	if !errors.Is(err, store.ErrUncertain) || calls.Load() != 1 {
		t.Errorf("got %v after %d calls, want ErrUncertain after one", err, calls.Load())
	}
	if e, err := c.Get(testContext(t), "k"); err != nil || string(e.Value) != "v" {
		t.Errorf("the change was not made: %v, %v", e, err)
	}
}

// discard is an answer that nobody gets.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
func (d discard) Flush()                      {}

// What surely was not sent may be sent to another gateway.
func TestApply_NotSentGoesToTheNextGateway(t *testing.T) {
	m := newMemory(t)
	gone := newServer(t, m, nil)
	gone.kill()
	c := newClient(t, nil, gone.addr, newServer(t, m, nil).addr)
	put(t, c, "k", "v")
}

func TestApply_ContextEndsFirst(t *testing.T) {
	c := newClient(t, nil, newServer(t, &answers{Memory: newMemory(t), block: true}, nil).addr)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Apply(ctx, aPut); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, store.ErrUncertain) {
		t.Errorf("got %v, want ErrUncertain and the cause of the context", err)
	}
}

// calls are all methods of a store, for tests that expect an error of each.
func calls(ctx context.Context, s store.Store) map[string]func() error {
	return map[string]func() error{
		"get":   func() error { _, err := s.Get(ctx, "k"); return err },
		"list":  func() error { _, _, err := s.List(ctx, ""); return err },
		"page":  func() error { _, _, err := s.Page(ctx, "", "", 1); return err },
		"sync":  func() error { return s.Sync(ctx) },
		"apply": func() error { _, err := s.Apply(ctx, aPut); return err },
		"watch": func() error {
			var last error
			for _, err := range s.Watch(ctx, "", 0) {
				if last != nil {
					return fmt.Errorf("went on after %w", last)
				}
				last = err
			}
			return last
		},
	}
}

// Nobody answers: calls end when their patience does, and Sync and Watch go on
// until their context ends.
func TestStore_NoGatewayAnswers(t *testing.T) {
	gone := newServer(t, newMemory(t), nil)
	gone.kill()
	c := newClient(t, func(cfg *remote.Config) { cfg.Patience = time.Second }, gone.addr)
	for name, call := range calls(testContext(t), c) {
		if name == "sync" || name == "watch" {
			continue
		}
		err := call()
		if !errors.Is(err, remote.ErrUnreachable) || errors.Is(err, store.ErrUncertain) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: got %v, want ErrUnreachable and why", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for _, name := range []string{"sync", "watch"} {
		if err := calls(ctx, c)[name](); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: got %v, want the context's error", name, err)
		}
	}
}

// Without a leader for all of its patience, a change says so.
func TestApply_NoLeader(t *testing.T) {
	c := newClient(t, func(cfg *remote.Config) { cfg.Patience = 200 * time.Millisecond },
		newServer(t, &answers{Memory: newMemory(t), err: &store.NotLeaderError{}}, nil).addr)
	_, err := c.Apply(testContext(t), aPut)
	if !errors.Is(err, store.ErrNotLeader) || !errors.Is(err, remote.ErrUnreachable) || errors.Is(err, store.ErrUncertain) {
		t.Errorf("got %v, want ErrNotLeader", err)
	}
}

func TestStore_CloseEndsEverything(t *testing.T) {
	state := &answers{Memory: newMemory(t), block: true}
	c := newClient(t, nil, newServer(t, state, nil).addr)
	done := make(chan error, 6)
	n := 0
	for name, call := range calls(testContext(t), c) {
		n++
		go func() {
			err := call()
			if name == "apply" && !errors.Is(err, store.ErrUncertain) {
				err = fmt.Errorf("apply ended with %w, which is not uncertain", err)
			}
			if err != nil && !errors.Is(err, store.ErrClosed) {
				err = fmt.Errorf("%s: %w", name, err)
			}
			done <- err
		}()
	}
	poll(t, func() bool { return state.calls.Load() >= int64(n) })
	c.Close()
	c.Close()
	for range n {
		if err := <-done; !errors.Is(err, store.ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
	for name, call := range calls(testContext(t), c) {
		if err := call(); !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s after Close: got %v, want ErrClosed", name, err)
		}
	}
}

// A watch may close its store, and ends.
func TestWatch_ClosesItsStore(t *testing.T) {
	m := newMemory(t)
	put(t, m, "k", "v")
	c := newClient(t, nil, newServer(t, m, nil).addr)
	var last error
	for _, err := range c.Watch(testContext(t), "", 0) {
		c.Close()
		last = err
	}
	if !errors.Is(last, store.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", last)
	}
}

// refusing answers everything as a gateway that does not let the caller in.
func refusing(code connect.Code) func(http.Handler) http.Handler {
	return func(http.Handler) http.Handler {
		w := connect.NewErrorWriter()
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = w.Write(rw, r, connect.NewError(code, errors.New("no role")))
		})
	}
}

func TestStore_Refused(t *testing.T) {
	m := newMemory(t)
	notFound := func(http.Handler) http.Handler { return http.NotFoundHandler() } // knows no such service
	for name, around := range map[string]func(http.Handler) http.Handler{
		"denied": refusing(connect.CodePermissionDenied), "unauthenticated": refusing(connect.CodeUnauthenticated),
		"unimplemented": refusing(connect.CodeUnimplemented), "not served": notFound,
	} {
		first, second := newServer(t, m, around), newServer(t, m, refusing(connect.CodePermissionDenied))
		c := newClient(t, nil, first.addr, second.addr)
		for call, do := range calls(testContext(t), c) {
			err := do()
			if call == "apply" && name == "not served" { // nobody knows who answered that
				if !errors.Is(err, store.ErrUncertain) {
					t.Errorf("%s %s: got %v, want ErrUncertain", name, call, err)
				}
				continue
			}
			if !errors.Is(err, remote.ErrRefused) || !strings.Contains(err.Error(), "gw-1") {
				t.Errorf("%s %s: got %v, want ErrRefused with the first gateway", name, call, err)
			}
		}
		// Another gateway may let it in, and is asked first from then on.
		c = newClient(t, nil, first.addr, newServer(t, m, nil).addr)
		if name == "not served" {
			if err := c.Sync(testContext(t)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		put(t, c, "k", name)
		if e, err := c.Get(testContext(t), "k"); err != nil || string(e.Value) != name {
			t.Errorf("%s: got %v, %v", name, e, err)
		}
		if got := c.metric(t, "meshgate_remote_failures_total", "refused"); got != 1 {
			t.Errorf("%s: refused %d times, want once", name, got)
		}
	}
}

// broken is a gateway whose answers make no sense.
type broken struct {
	meshgatev1connect.UnimplementedStoreHandler
}

func (broken) Get(context.Context, *connect.Request[meshgatev1.GetRequest]) (*connect.Response[meshgatev1.GetResponse], error) {
	return connect.NewResponse(&meshgatev1.GetResponse{Version: 9, Entry: &meshgatev1.StoreEntry{Key: "other", Version: 1}}), nil
}

func (broken) List(_ context.Context, _ *connect.Request[meshgatev1.ListRequest], s *connect.ServerStream[meshgatev1.ListResponse]) error {
	return s.Send(&meshgatev1.ListResponse{Version: 1, Last: true, Entries: []*meshgatev1.StoreEntry{{Key: "b", Version: 1}, {Key: "a", Version: 1}}})
}

func (broken) Watch(_ context.Context, _ *connect.Request[meshgatev1.WatchRequest], s *connect.ServerStream[meshgatev1.WatchResponse]) error {
	return s.Send(&meshgatev1.WatchResponse{Version: 0, Events: []*meshgatev1.StoreEvent{{Key: "a"}}})
}

// An answer that makes no sense is no answer.
func TestStore_LeavesAGatewayThatMakesNoSense(t *testing.T) {
	m := newMemory(t)
	version := put(t, m, "k", "v")
	_, senseless := meshgatev1connect.NewStoreHandler(broken{})
	first := newServer(t, m, func(http.Handler) http.Handler { return senseless })
	second := newServer(t, m, nil)
	for name, call := range map[string]func(c *client) error{
		"get":   func(c *client) error { _, err := c.Get(testContext(t), "k"); return err },
		"list":  func(c *client) error { _, _, err := c.List(testContext(t), ""); return err },
		"watch": func(c *client) error { watch(t, c, "", 0).want(version, "k", "v"); return nil },
	} {
		c := newClient(t, nil, first.addr, second.addr)
		if err := call(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := c.metric(t, "meshgate_remote_failures_total", "malformed"); got != 1 {
			t.Errorf("%s: %d malformed answers, want 1", name, got)
		}
	}
}

// A list of many parts is of one version, whatever is written meanwhile.
func TestList_OfManyParts(t *testing.T) {
	m := newMemory(t)
	c := newClient(t, func(cfg *remote.Config) { cfg.Timeout = patience }, newServer(t, m, nil).addr)
	const n = 60
	value := make([]byte, 50<<10)
	for i := range n {
		put(t, m, fmt.Sprintf("k%02d", i), string(value))
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 150 {
			select {
			case <-stop:
				return
			default:
				put(t, m, fmt.Sprintf("k%02d", i%n), string(value))
			}
		}
	}()
	for range 3 {
		entries, version, err := c.List(testContext(t), "k")
		if err != nil || len(entries) != n {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		// One key was written by each version: of the last n, each has one.
		seen := map[uint64]bool{}
		for _, e := range entries {
			seen[e.Version] = true
		}
		for v := version; v > version-n; v-- {
			if !seen[v] {
				t.Fatalf("list of version %d has no key of version %d", version, v)
			}
		}
	}
	close(stop)
	<-done
}

// A registry over it has the snapshots of one over the state itself.
func TestStore_CarriesARegistry(t *testing.T) {
	m := newMemory(t)
	a, b := newServer(t, m, nil), newServer(t, m, nil)
	c := newClient(t, nil, a.addr, b.addr)
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	near, far := registry.New(m, nil), registry.New(c, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 2)
	for _, r := range []*registry.Registry{near, far} {
		go func() { ended <- r.Run(ctx) }()
	}
	if err := near.Bootstrap(testContext(t), registry.Bootstrap{Self: mesh.Node{ID: "gw-1", PublicKey: key.Public()}}); err != nil {
		t.Fatal(err)
	}
	a.kill()
	for i := range 5 {
		id := mesh.NodeID(fmt.Sprintf("node-%d", i))
		// A read finds out who is gone; a change that did could not be repeated.
		if _, err := far.Sync(testContext(t)); err != nil {
			t.Fatal(err)
		}
		other, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := far.Update(testContext(t), func(tx *registry.Tx) error {
			return tx.PutNode(&mesh.Node{ID: id, PublicKey: other.Public()})
		}); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			a.start()
			b.kill()
		}
	}
	want, err := near.Sync(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	got, err := far.Sync(testContext(t))
	if err != nil || got.Version != want.Version || got.Node("node-4") == nil {
		t.Errorf("got version %d, %v, want %d", got.Version, err, want.Version)
	}
	cancel()
	for range 2 {
		<-ended
	}
}
