// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"context"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
	"github.com/meshgate/meshgate/node/store/remote"
	"github.com/meshgate/meshgate/node/store/storetest"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test; nothing should come near it.
const patience = time.Minute

// replica is a copy of a leader's state, at the same versions. It follows as long
// as it is not cut off.
type replica struct {
	leader *storetest.Memory
	state  *kv.State
	end    func()

	mu   sync.Mutex // guards free
	free chan struct{}
}

func newReplica(t testing.TB, leader *storetest.Memory) *replica {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &replica{leader: leader, state: kv.New(), free: make(chan struct{})}
	close(r.free)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.follow(ctx)
	}()
	r.end = sync.OnceFunc(func() { cancel(); r.state.Close(); <-done })
	t.Cleanup(r.end)
	return r
}

func (r *replica) follow(ctx context.Context) {
	for c, err := range r.leader.Watch(ctx, "", 0) {
		if err != nil {
			return
		}
		select {
		case <-r.gate():
		case <-ctx.Done():
			return
		}
		var b store.Batch
		now := time.Now()
		for _, e := range c.Events {
			op := store.Op{Key: e.Key, Value: e.Value, Delete: e.Deleted}
			if !e.ExpiresAt.IsZero() {
				op.TTL = e.ExpiresAt.Sub(now)
			}
			b.Ops = append(b.Ops, op)
		}
		if _, err := r.state.Apply(c.Version, now, b); err != nil {
			panic(err)
		}
	}
}

func (r *replica) gate() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.free
}

// cut keeps the leader's changes from the replica, until mend is called.
func (r *replica) cut() (mend func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	free := make(chan struct{})
	r.free = free
	return func() { close(free) }
}

func (r *replica) isCut() bool {
	select {
	case <-r.gate():
		return false
	default:
		return true
	}
}

func (r *replica) List(_ context.Context, prefix string) ([]store.Entry, uint64, error) {
	return r.state.List(prefix)
}

func (r *replica) Page(_ context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error) {
	return r.state.Page(prefix, after, limit)
}

func (r *replica) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return r.state.Watch(ctx, prefix, after)
}

// Apply is forwarded to the leader, which a replica that is cut off does not know.
func (r *replica) Apply(ctx context.Context, b store.Batch) (uint64, error) {
	if r.isCut() {
		return 0, &store.NotLeaderError{}
	}
	version, err := r.leader.Apply(ctx, b)
	if err == nil {
		err = r.state.Wait(ctx, version)
	}
	return version, err
}

func (r *replica) Sync(ctx context.Context) error {
	select {
	case <-r.gate():
	case <-ctx.Done():
		return ctx.Err()
	}
	_, version, err := r.leader.Page(ctx, "", "", 1)
	if err != nil {
		return err
	}
	return r.state.Wait(ctx, version)
}

// server is a gateway that serves a state on a port that it keeps.
type server struct {
	t       testing.TB
	handler http.Handler
	addr    netip.AddrPort
	http    *http.Server
	ended   chan struct{}
}

// hosts counts the addresses of servers.
var hosts atomic.Uint32

// newHost is a loopback address that nobody had before. From another one nobody
// connects: whatever else this machine does, the port of a server that was killed
// is free until it starts again.
func newHost() netip.Addr {
	n := hosts.Add(1)
	return netip.AddrFrom4([4]byte{127, 77, byte(n >> 8), byte(n)})
}

// newServer serves s on a loopback port until the test ends. around may be nil.
func newServer(t testing.TB, s api.Store, around func(http.Handler) http.Handler) *server {
	t.Helper()
	service := api.NewStoreHandler(s, connect.WithInterceptors(errorsAsAGateway{}))
	mux := http.NewServeMux()
	mux.Handle(service.Path, service.Handler)
	v := &server{t: t, handler: mux, addr: netip.AddrPortFrom(newHost(), 0)}
	if around != nil {
		v.handler = around(mux)
	}
	v.start()
	t.Cleanup(v.kill)
	return v
}

// start serves, on the port of the last time.
func (v *server) start() {
	v.t.Helper()
	l, err := net.Listen("tcp4", v.addr.String())
	if err != nil {
		v.t.Fatal(err)
	}
	v.addr = netip.MustParseAddrPort(l.Addr().String())
	v.http = &http.Server{Handler: v.handler, Protocols: new(http.Protocols)}
	v.http.Protocols.SetUnencryptedHTTP2(true)
	v.ended = make(chan struct{})
	go func(s *http.Server, ended chan struct{}) {
		defer close(ended)
		_ = s.Serve(l) // it ends with kill
	}(v.http, v.ended)
}

// kill cuts all connections and waits for the listener to be gone.
func (v *server) kill() {
	_ = v.http.Close() // no connection is left to fail
	<-v.ended
}

// errorsAsAGateway turns errors into what the clients of a gateway get.
type errorsAsAGateway struct{}

func (errorsAsAGateway) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		if err != nil {
			return nil, api.Error(ctx, err, "test")
		}
		return res, nil
	}
}

func (errorsAsAGateway) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (errorsAsAGateway) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return api.Error(ctx, err, "test")
		}
		return nil
	}
}

// pipe forwards connections to an address, unless it is told to stall.
type pipe struct {
	target string
	l      net.Listener
	wait   sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	closed bool
	conns  []net.Conn
	flow   chan struct{} // closed while bytes flow
}

func newPipe(t testing.TB, target netip.AddrPort) *pipe {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pipe{target: target.String(), l: l, flow: make(chan struct{})}
	close(p.flow)
	p.wait.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *pipe) addr() netip.AddrPort { return netip.MustParseAddrPort(p.l.Addr().String()) }

func (p *pipe) accept() {
	for {
		near, err := p.l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp4", p.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, near, far)
		if p.closed {
			_, _ = near.Close(), far.Close()
		}
		p.mu.Unlock()
		p.wait.Go(func() { p.carry(near, far) })
		p.wait.Go(func() { p.carry(far, near) })
	}
}

// carry copies bytes. What a stalled pipe has read it keeps, and says nothing.
func (p *pipe) carry(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		flow := p.flow
		p.mu.Unlock()
		<-flow
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// stall makes the peer vanish: neither bytes nor ends of connections pass any
// more, until flow is called.
func (p *pipe) stall() (flow func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stalled := make(chan struct{})
	p.flow = stalled
	return sync.OnceFunc(func() { close(stalled) })
}

func (p *pipe) close() {
	_ = p.l.Close()
	p.mu.Lock()
	p.closed = true
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.wait.Wait()
}

// client is a store over gateways, with its metrics.
type client struct {
	*remote.Store
	registry *prometheus.Registry
}

// newClient makes a store over the gateways at addrs; change may alter its
// configuration.
func newClient(t testing.TB, change func(*remote.Config), addrs ...netip.AddrPort) *client {
	t.Helper()
	c := &client{registry: prometheus.NewRegistry()}
	cfg := remote.Config{Timeout: 5 * time.Second, Silence: 1500 * time.Millisecond, Registerer: c.registry}
	for i, addr := range addrs {
		peers, err := peer.New(peer.Config{Dial: (&net.Dialer{}).DialContext})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(peers.Close)
		cfg.Gateways = append(cfg.Gateways, remote.Gateway{Name: fmt.Sprintf("gw-%d", i+1), Client: peers.Store(addr)})
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if c.Store, err = remote.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// metric is the sum of a metric's series that have the label value, or of all.
func (c *client) metric(t testing.TB, name, label string) int {
	t.Helper()
	families, err := c.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || m.GetLabel()[0].GetValue() == label {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return int(sum)
}

func newMemory(t testing.TB) *storetest.Memory {
	m := storetest.New()
	t.Cleanup(m.Close)
	return m
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func put(t testing.TB, s interface {
	Apply(context.Context, store.Batch) (uint64, error)
}, key, value string) uint64 {
	t.Helper()
	version, err := s.Apply(testContext(t), store.Batch{Ops: []store.Op{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return version
}

// watcher reads a watch and checks what it must be: every change once, in order.
type watcher struct {
	t    testing.TB
	next func() (store.Change, error, bool)
	last uint64
}

func watch(t testing.TB, s store.Store, prefix string, after uint64) *watcher {
	next, stop := iter.Pull2(s.Watch(testContext(t), prefix, after))
	t.Cleanup(stop)
	return &watcher{t: t, next: next, last: after}
}

func (w *watcher) want(version uint64, key, value string) {
	w.t.Helper()
	c, err, ok := w.next()
	if err != nil || !ok {
		w.t.Fatalf("watch ended with %v after version %d, want version %d", err, w.last, version)
	}
	if c.Version != version || len(c.Events) != 1 || c.Events[0].Key != key || string(c.Events[0].Value) != value || c.Events[0].Version != version {
		w.t.Fatalf("got %+v after version %d, want %s=%s at version %d", c, w.last, key, value, version)
	}
	w.last = c.Version
}

// poll waits until done.
func poll(t testing.TB, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for !done() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("it did not happen")
		}
	}
}

// inTurn makes every gateway of a client pass the call on to the next one in turn.
func inTurn(cfg *remote.Config) {
	r := &rotation{}
	for _, g := range cfg.Gateways {
		r.clients = append(r.clients, g.Client)
	}
	cfg.Gateways = []remote.Gateway{{Name: "in turn", Client: r}}
}

// rotation is a client that uses another one for each call.
type rotation struct {
	clients []meshgatev1connect.StoreClient
	calls   atomic.Uint64
}

func (r *rotation) pick() meshgatev1connect.StoreClient {
	return r.clients[r.calls.Add(1)%uint64(len(r.clients))]
}

func (r *rotation) Get(ctx context.Context, req *connect.Request[meshgatev1.GetRequest]) (*connect.Response[meshgatev1.GetResponse], error) {
	return r.pick().Get(ctx, req)
}

func (r *rotation) List(ctx context.Context, req *connect.Request[meshgatev1.ListRequest]) (*connect.ServerStreamForClient[meshgatev1.ListResponse], error) {
	return r.pick().List(ctx, req)
}

func (r *rotation) Watch(ctx context.Context, req *connect.Request[meshgatev1.WatchRequest]) (*connect.ServerStreamForClient[meshgatev1.WatchResponse], error) {
	return r.pick().Watch(ctx, req)
}

func (r *rotation) Apply(ctx context.Context, req *connect.Request[meshgatev1.ApplyRequest]) (*connect.Response[meshgatev1.ApplyResponse], error) {
	return r.pick().Apply(ctx, req)
}

func (r *rotation) Sync(ctx context.Context, req *connect.Request[meshgatev1.SyncRequest]) (*connect.Response[meshgatev1.SyncResponse], error) {
	return r.pick().Sync(ctx, req)
}
