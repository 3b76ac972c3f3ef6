// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/remote"
	"github.com/meshgate/meshgate/node/store/storetest"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// Three gateways die and come back, one after the other and at last all of them,
// under two watches: each sees every version that concerns it, once and in order.
func TestWatch_SeesEveryVersionOnceWhileGatewaysDie(t *testing.T) {
	const rounds, perRound = 12, 25
	m := newMemory(t)
	gateways := []*server{newServer(t, m, nil), newServer(t, m, nil), newServer(t, m, nil)}
	c := newClient(t, nil, gateways[0].addr, gateways[1].addr, gateways[2].addr)
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	all, some := follow(ctx, c, "", rounds*perRound), follow(ctx, c, "b/", rounds*perRound/5)

	var want, wantSome []string
	var dead *server
	for round := range rounds {
		victim := gateways[round%3]
		victim.kill()
		if dead != nil && round != rounds-1 {
			dead.start()
		}
		for i := range perRound {
			key := "a"
			if i%5 == 0 {
				key = "b/"
			}
			value := fmt.Sprint(round, "-", i)
			line := fmt.Sprintf("%d %s=%s", put(t, m, key, value), key, value)
			want = append(want, line)
			if key == "b/" {
				wantSome = append(wantSome, line)
			}
			if i == perRound/2 && round == rounds-1 { // and now nobody is there for a while
				for _, g := range gateways {
					g.kill()
				}
			}
		}
		// Each must have been seen before the next one dies, or else one gateway
		// could serve it all in the end.
		if round == rounds-1 {
			gateways[1].start()
		}
		dead = victim
		all.wait(t, len(want))
	}
	all.check(t, want)
	some.check(t, wantSome)
	for _, name := range []string{"meshgate_remote_failovers_total", "meshgate_remote_reconnects_total"} {
		if got := c.metric(t, name, ""); got < 2 {
			t.Errorf("%s is %d", name, got)
		}
	}
	if got := c.metric(t, "meshgate_remote_failures_total", "malformed"); got != 0 {
		t.Errorf("%d answers were malformed", got)
	}
}

// followed is what a watch yielded, line by line.
type followed struct {
	lines chan string
	err   chan error
	got   []string
}

// follow reads n changes of one event each.
func follow(ctx context.Context, s store.Store, prefix string, n int) *followed {
	f := &followed{lines: make(chan string, n), err: make(chan error, 1)}
	go func() {
		defer close(f.lines)
		for c, err := range s.Watch(ctx, prefix, 0) {
			if err != nil {
				f.err <- err
				return
			}
			line := fmt.Sprint(c.Version)
			for _, e := range c.Events {
				line += " " + e.Key + "=" + string(e.Value)
			}
			f.lines <- line
			if n--; n == 0 {
				return
			}
		}
	}()
	return f
}

// wait returns once n lines were read.
func (f *followed) wait(t *testing.T, n int) {
	t.Helper()
	for len(f.got) < n {
		line, ok := <-f.lines
		if !ok {
			select {
			case err := <-f.err:
				t.Fatalf("ended after %d of %d changes: %v", len(f.got), n, err)
			default:
				t.Fatalf("ended after %d of %d changes", len(f.got), n)
			}
		}
		f.got = append(f.got, line)
	}
}

func (f *followed) check(t *testing.T, want []string) {
	t.Helper()
	f.wait(t, len(want))
	for i := range want {
		if f.got[i] != want[i] {
			t.Fatalf("change %d is %q, want %q", i, f.got[i], want[i])
		}
	}
}

// A gateway vanishes without a word: its connections stand, and say nothing.
func TestWatch_LeavesAGatewayThatVanished(t *testing.T) {
	m := newMemory(t)
	p := newPipe(t, newServer(t, m, nil).addr)
	c := newClient(t, nil, p.addr(), newServer(t, m, nil).addr)
	w := watch(t, c, "", 0)
	w.want(put(t, m, "k", "1"), "k", "1")
	defer p.stall()()
	w.want(put(t, m, "k", "2"), "k", "2")
	if got := c.metric(t, "meshgate_remote_failovers_total", ""); got != 1 {
		t.Errorf("moved %d times, want once", got)
	}
	// What the first one held back must not come after all.
	p.stall()()
	w.want(put(t, m, "k", "3"), "k", "3")
}

// A gateway that takes the connection, and says nothing from the beginning.
func TestWatch_LeavesAGatewayThatNeverSpoke(t *testing.T) {
	m := newMemory(t)
	p := newPipe(t, newServer(t, m, nil).addr)
	defer p.stall()()
	c := newClient(t, nil, p.addr(), newServer(t, m, nil).addr)
	version := put(t, m, "k", "1")
	for change, err := range c.Watch(testContext(t), "", 0) {
		if err != nil || change.Version != version {
			t.Errorf("got %+v, %v", change, err)
		}
		break
	}
}

// Calls leave it as well, each within the time that one try may take.
func TestCalls_LeaveAGatewayThatVanished(t *testing.T) {
	m := newMemory(t)
	p := newPipe(t, newServer(t, m, nil).addr)
	short := func(cfg *remote.Config) { cfg.Timeout = time.Second }
	for name, call := range map[string]func(ctx context.Context, c *client) error{
		"get":  func(ctx context.Context, c *client) error { _, err := c.Get(ctx, "k"); return err },
		"list": func(ctx context.Context, c *client) error { _, _, err := c.List(ctx, ""); return err },
		"page": func(ctx context.Context, c *client) error { _, _, err := c.Page(ctx, "", "", 1); return err },
		"sync": func(ctx context.Context, c *client) error { return c.Sync(ctx) },
	} {
		c := newClient(t, short, p.addr(), newServer(t, m, nil).addr)
		put(t, c, "k", name) // so that a connection stands
		flow := p.stall()
		if err := call(testContext(t), c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := c.metric(t, "meshgate_remote_failovers_total", ""); got != 1 {
			t.Errorf("%s: moved %d times, want once", name, got)
		}
		flow()
	}
}

// The answer to a change is lost with the gateway: whether it happened is for a
// read to tell, and nobody is asked to make it again.
func TestApply_OfAGatewayThatVanishedIsUncertain(t *testing.T) {
	m := newMemory(t)
	p := newPipe(t, newServer(t, m, nil).addr)
	c := newClient(t, func(cfg *remote.Config) { cfg.Timeout = time.Second }, p.addr(), newServer(t, m, nil).addr)
	put(t, c, "k", "1")
	defer p.stall()()
	_, err := c.Apply(testContext(t), store.Batch{Ops: []store.Op{{Key: "k", Value: []byte("2")}}})
	if !errors.Is(err, store.ErrUncertain) || errors.Is(err, remote.ErrUnreachable) {
		t.Errorf("got %v, want ErrUncertain", err)
	}
	if err := c.Sync(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if e, err := c.Get(testContext(t), "k"); err != nil || string(e.Value) != "1" {
		t.Errorf("got %s, %v: the change was made through the other gateway", e.Value, err)
	}
}

// A watch at a gateway that is cut off from the others moves on.
func TestWatch_LeavesAGatewayThatIsCutOff(t *testing.T) {
	m := newMemory(t)
	r := newReplica(t, m)
	c := newClient(t, nil, newServer(t, r, nil).addr, newServer(t, m, nil).addr)
	w := watch(t, c, "", 0)
	w.want(put(t, m, "k", "1"), "k", "1")
	mend := r.cut()
	defer mend()
	version := put(t, m, "k", "2")
	w.want(version, "k", "2")
	if got := c.metric(t, "meshgate_remote_failures_total", "behind"); got != 1 {
		t.Errorf("%d gateways were behind, want 1", got)
	}
}

// A watch that starts at a version that its only gateway does not have yet waits
// for what follows it, and yields nothing older.
func TestWatch_WaitsForAGatewayThatLags(t *testing.T) {
	m := newMemory(t)
	r := newReplica(t, m)
	mend := r.cut()
	c := newClient(t, nil, newServer(t, r, nil).addr)
	put(t, m, "k", "1")
	put(t, m, "k", "2")
	after := put(t, m, "k", "3")
	next, stop := iter.Pull2(c.Watch(testContext(t), "", after))
	defer stop()
	got := make(chan string, 1)
	go func() {
		change, err, _ := next()
		got <- fmt.Sprint(change.Version, len(change.Events), err)
	}()
	// Until the watch has noticed, and comes again.
	poll(t, func() bool { return c.metric(t, "meshgate_remote_failures_total", "behind") > 0 })
	mend()
	want := fmt.Sprint(put(t, m, "k", "4"), 1, error(nil))
	if line := <-got; line != want {
		t.Errorf("got %s, want %s", line, want)
	}
}

// What one gateway has shown, no other one takes back.
func TestReads_NeverGoBackInTime(t *testing.T) {
	m := newMemory(t)
	r := newReplica(t, m)
	put(t, r, "k", "old")
	t.Cleanup(r.cut())
	for name, read := range map[string]func(ctx context.Context, s store.Store) (string, error){
		"get": func(ctx context.Context, s store.Store) (string, error) {
			e, err := s.Get(ctx, "k")
			return string(e.Value), err
		},
		"list": func(ctx context.Context, s store.Store) (string, error) {
			list, _, err := s.List(ctx, "k")
			return fmt.Sprint(list[0].Value), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, inTurn, newServer(t, r, nil).addr, newServer(t, m, nil).addr)
			version := put(t, m, "k", "new")
			// Whoever watches sees it first.
			for change, err := range c.Watch(testContext(t), "", version-1) {
				if err != nil || change.Version != version {
					t.Fatal(change, err)
				}
				break
			}
			want := ""
			for i := range 2 {
				got, err := read(testContext(t), c)
				if err != nil || i > 0 && got != want || got == "old" {
					t.Fatalf("read %d: got %q, %v, want %q", i, got, err, want)
				}
				want = got
			}
			if got := c.metric(t, "meshgate_remote_failures_total", "behind"); got == 0 {
				t.Error("the gateway that lags was never asked")
			}
		})
	}
}

// Every call that shows a version binds the reads after it, also those that ended
// with an error.
func TestReads_AreNoOlderThanWhatAnyCallHasShown(t *testing.T) {
	for name, show := range map[string]func(ctx context.Context, s store.Store) error{
		"sync": func(ctx context.Context, s store.Store) error { return s.Sync(ctx) },
		"list": func(ctx context.Context, s store.Store) error { _, _, err := s.List(ctx, "none"); return err },
		"page": func(ctx context.Context, s store.Store) error { _, _, err := s.Page(ctx, "none", "", 1); return err },
		"get":  func(ctx context.Context, s store.Store) error { _, err := s.Get(ctx, "k"); return err },
		"get of another key": func(ctx context.Context, s store.Store) error {
			if _, err := s.Get(ctx, "none"); !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("got %w", err)
			}
			return nil
		},
		"conflict": func(ctx context.Context, s store.Store) error {
			_, err := s.Apply(ctx, store.Batch{If: []store.Condition{{Key: "k"}}, Ops: aPut.Ops})
			if !errors.Is(err, store.ErrConflict) {
				return fmt.Errorf("got %w", err)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMemory(t)
			r := newReplica(t, m)
			put(t, r, "k", "old")
			t.Cleanup(r.cut())
			put(t, m, "k", "new")
			// inTurn asks the second one first.
			c := newClient(t, inTurn, newServer(t, r, nil).addr, newServer(t, m, nil).addr)
			if err := show(testContext(t), c); err != nil {
				t.Fatal(err)
			}
			if e, err := c.Get(testContext(t), "k"); err != nil || string(e.Value) != "new" {
				t.Errorf("then got %q, %v, want new", e.Value, err)
			}
			if got := c.metric(t, "meshgate_remote_failures_total", "behind"); got != 1 {
				t.Errorf("%d gateways were behind, want 1", got)
			}
		})
	}
}

// Who makes a change reads it, also through a gateway that hears of it later.
func TestReads_WaitForOnesOwnChange(t *testing.T) {
	m := newMemory(t)
	r := newReplica(t, m)
	put(t, r, "k", "1")
	mend := r.cut()
	lagging, leading := newServer(t, r, nil), newServer(t, m, nil)
	c := newClient(t, nil, lagging.addr, leading.addr)
	if e, err := c.Get(testContext(t), "k"); err != nil || string(e.Value) != "1" {
		t.Fatal(e, err)
	}
	put(t, c, "k", "2") // the first one knows no leader
	leading.kill()
	got := make(chan string, 1)
	go func() {
		e, err := c.Get(testContext(t), "k")
		got <- fmt.Sprint(string(e.Value), err)
	}()
	poll(t, func() bool { return c.metric(t, "meshgate_remote_failures_total", "behind") > 0 })
	mend()
	if line := <-got; line != fmt.Sprint("2", error(nil)) {
		t.Errorf("got %s", line)
	}
}

// A watch of keys that nothing happens to keeps its place while others change, so
// that a move to another gateway loses nothing of it.
func TestWatch_PulsesKeepItsPlace(t *testing.T) {
	m := newMemory(t)
	first, second := newServer(t, m, nil), newServer(t, m, nil)
	var pulsed atomic.Uint64
	c := newClient(t, func(cfg *remote.Config) {
		cfg.Gateways[0].Client = tapped(t, first, &pulsed)
	}, first.addr, second.addr)
	next, stop := iter.Pull2(c.Watch(testContext(t), "b/", 0))
	defer stop()
	got := make(chan string, 1)
	go func() {
		change, err, _ := next()
		got <- fmt.Sprint(change.Version, err)
	}()
	flooded := flood(t, m)
	poll(t, func() bool { return pulsed.Load() >= flooded })
	for _, err := range m.Watch(t.Context(), "", 0) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("the flood was too small: %v", err)
		}
	}
	first.kill()
	want := fmt.Sprint(put(t, m, "b/1", "x"), error(nil))
	if line := <-got; line != want {
		t.Errorf("got %s, want %s", line, want)
	}
}

// tapped is a client that notes the versions of pulses.
func tapped(t *testing.T, v *server, pulsed *atomic.Uint64) meshgatev1connect.StoreClient {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return meshgatev1connect.NewStoreClient(&http.Client{Transport: tr}, "http://"+v.addr.String(), connect.WithGRPC(), connect.WithInterceptors(tap{pulsed}))
}

type tap struct{ pulsed *atomic.Uint64 }

func (tap) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }

func (tap) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (p tap) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return tappedConn{next(ctx, spec), p.pulsed}
	}
}

type tappedConn struct {
	connect.StreamingClientConn
	pulsed *atomic.Uint64
}

func (c tappedConn) Receive(msg any) error {
	err := c.StreamingClientConn.Receive(msg)
	if m, ok := msg.(*meshgatev1.WatchResponse); ok && err == nil && len(m.GetEvents()) == 0 {
		c.pulsed.Store(m.GetVersion())
	}
	return err
}

// flood makes a store forget its first changes, and returns the version of the last.
func flood(t *testing.T, m *storetest.Memory) uint64 {
	t.Helper()
	b := store.Batch{Ops: make([]store.Op, 4096)}
	for i := range b.Ops {
		b.Ops[i].Key = fmt.Sprintf("a/%d", i)
	}
	var version uint64
	for range 8 {
		var err error
		if version, err = m.Apply(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	return version
}

// forgetful is a store whose watches know nothing of the past.
type forgetful struct {
	*storetest.Memory
	begun *atomic.Int64 // watches that were not refused; nil: they are not counted
}

func (f forgetful) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		_, version, err := f.Page(ctx, "", "", 1)
		if err == nil && version > after {
			err = fmt.Errorf("%w: after version %d", store.ErrCompacted, after)
		}
		if err != nil {
			yield(store.Change{}, err)
			return
		}
		if f.begun != nil {
			f.begun.Add(1)
		}
		f.Memory.Watch(ctx, prefix, after)(yield)
	}
}

// A gateway that was just started has no changes of the past, another one may. If
// none has, the reader learns that it has to list again.
func TestWatch_CompactedOnlyWhenNoGatewayHasTheChanges(t *testing.T) {
	m := newMemory(t)
	young, old := newServer(t, forgetful{m, nil}, nil), newServer(t, m, nil)
	version := put(t, m, "k", "1")
	c := newClient(t, nil, young.addr, old.addr)
	watch(t, c, "", 0).want(version, "k", "1")

	c = newClient(t, nil, young.addr, newServer(t, forgetful{m, nil}, nil).addr)
	n := 0
	for _, err := range c.Watch(testContext(t), "", 0) {
		if n++; !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("got %v, want ErrCompacted", err)
		}
	}
	if n != 1 {
		t.Errorf("the watch yielded %d times, want once", n)
	}
	// One that is gone may have them, and is not waited for.
	old.kill()
	c = newClient(t, nil, old.addr, young.addr)
	for _, err := range c.Watch(testContext(t), "", 0) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("got %v, want ErrCompacted", err)
		}
	}
}

// Once the watch has moved, a gateway that did not have the changes may be asked
// again.
func TestWatch_ReturnsToAGatewayThatHadNotTheChanges(t *testing.T) {
	m := newMemory(t)
	var begun atomic.Int64
	young, old := newServer(t, forgetful{m, &begun}, nil), newServer(t, m, nil)
	c := newClient(t, nil, young.addr, old.addr)
	version := put(t, m, "k", "1")
	got := make(chan string, 2)
	go func() {
		for change, err := range c.Watch(testContext(t), "", 0) {
			got <- fmt.Sprint(change.Version, err)
			if err != nil || change.Version != version {
				return
			}
		}
	}()
	if line := <-got; line != fmt.Sprint(version, error(nil)) {
		t.Fatal(line)
	}
	old.kill()
	poll(t, func() bool { return begun.Load() > 0 })
	want := fmt.Sprint(put(t, m, "k", "2"), error(nil))
	if line := <-got; line != want {
		t.Errorf("got %s, want %s", line, want)
	}
}

// pulsing is a gateway that shows a sign of life before it says that it has not
// the changes.
type pulsing struct {
	meshgatev1connect.UnimplementedStoreHandler
}

func (pulsing) Watch(_ context.Context, req *connect.Request[meshgatev1.WatchRequest], s *connect.ServerStream[meshgatev1.WatchResponse]) error {
	if err := s.Send(&meshgatev1.WatchResponse{Version: req.Msg.GetAfter()}); err != nil {
		return err
	}
	err := connect.NewError(connect.CodeOutOfRange, store.ErrCompacted)
	detail, _ := connect.NewErrorDetail(store.FaultToProto(store.ErrCompacted, 0))
	err.AddDetail(detail)
	return err
}

// Signs of life do not make two such gateways send a watch to and fro for ever.
func TestWatch_CompactedAfterAPulse(t *testing.T) {
	_, h := meshgatev1connect.NewStoreHandler(pulsing{})
	around := func(http.Handler) http.Handler { return h }
	m := newMemory(t)
	c := newClient(t, nil, newServer(t, m, around).addr, newServer(t, m, around).addr)
	for _, err := range c.Watch(testContext(t), "", 0) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("got %v, want ErrCompacted", err)
		}
	}
}

// flighty is a gateway that shows a sign of life, and breaks off.
type flighty struct {
	meshgatev1connect.UnimplementedStoreHandler
	began chan time.Time
}

func (f flighty) Watch(ctx context.Context, _ *connect.Request[meshgatev1.WatchRequest], s *connect.ServerStream[meshgatev1.WatchResponse]) error {
	select {
	case f.began <- time.Now():
	case <-ctx.Done():
		return ctx.Err()
	}
	_ = s.Send(&meshgatev1.WatchResponse{}) // who is gone is gone
	return connect.NewError(connect.CodeUnavailable, errors.New("not now"))
}

// A gateway that breaks every watch off is left alone for longer and longer.
func TestWatch_BacksOffFromAGatewayThatBreaksItOff(t *testing.T) {
	f := flighty{began: make(chan time.Time)}
	_, h := meshgatev1connect.NewStoreHandler(f)
	c := newClient(t, nil, newServer(t, newMemory(t), func(http.Handler) http.Handler { return h }).addr)
	ctx, cancel := context.WithCancel(testContext(t))
	ended := make(chan error, 1)
	go func() {
		for _, err := range c.Watch(ctx, "", 0) {
			ended <- err
		}
	}()
	first := <-f.began
	for range 3 {
		<-f.began
	}
	// Half of 100, 200, 400 and 800 ms: the rest is jitter.
	if took := (<-f.began).Sub(first); took < 750*time.Millisecond {
		t.Errorf("came four times again within %s", took)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := c.metric(t, "meshgate_remote_reconnects_total", ""); got < 3 {
		t.Errorf("resumed %d times", got)
	}
}

// The time that a reader takes for a change is no silence of its gateway.
func TestWatch_ReaderMayTakeItsTime(t *testing.T) {
	const silence = 500 * time.Millisecond
	m := newMemory(t)
	c := newClient(t, func(cfg *remote.Config) { cfg.Silence = silence }, newServer(t, m, nil).addr)
	next, stop := iter.Pull2(c.Watch(testContext(t), "", 0))
	defer stop()
	for i := range 2 {
		version := put(t, m, "k", fmt.Sprint(i))
		if change, err, _ := next(); err != nil || change.Version != version {
			t.Fatalf("got version %d, %v, want %d", change.Version, err, version)
		}
		if i == 0 {
			<-time.After(silence + silence/5)
		}
	}
	if got := c.metric(t, "meshgate_remote_reconnects_total", ""); got != 0 {
		t.Errorf("it resumed %d times, want never", got)
	}
}

// A reader that is too slow is told so. What it gets until then has no gap.
func TestWatch_SlowReaderLosesNothingUnnoticed(t *testing.T) {
	m := newMemory(t)
	c := newClient(t, nil, newServer(t, m, nil).addr)
	next, stop := iter.Pull2(c.Watch(testContext(t), "", 0))
	defer stop()
	first := put(t, m, "k", "0")
	if change, err, _ := next(); err != nil || change.Version != first {
		t.Fatal(change, err)
	}
	versions := []uint64{}
	value := make([]byte, 1<<20)
	for range 48 { // more than the state keeps and buffers on the way hold
		version, err := m.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: "k", Value: value}}})
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, version)
	}
	for i := range versions {
		change, err, _ := next()
		if errors.Is(err, store.ErrCompacted) {
			return
		}
		if err != nil || change.Version != versions[i] {
			t.Fatalf("got version %d, %v, want %d", change.Version, err, versions[i])
		}
	}
	t.Error("all of it was buffered somewhere")
}
