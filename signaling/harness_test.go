// SPDX-License-Identifier: Apache-2.0

package signaling_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/client"
	"github.com/meshgate/meshgate/signaling/rtc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	self  = mesh.NodeID("gateway")
	other = mesh.NodeID("node-b")
)

// call is a bidirectional call in memory. It behaves as the rpc servers do:
// when the handler returns, the client receives its result.
type call[Req, Res any] struct {
	ctx    context.Context
	cancel context.CancelFunc
	up     chan Req
	down   chan Res
	half   chan struct{} // closed by CloseSend
	once   sync.Once
	done   chan struct{} // closed when the handler has returned
	err    error         // its result
}

func newCall[Req, Res any](ctx context.Context) *call[Req, Res] {
	c := &call[Req, Res]{up: make(chan Req), down: make(chan Res, 64), half: make(chan struct{}), done: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(ctx)
	return c
}

// serve runs the handler.
func (c *call[Req, Res]) serve(handle func(context.Context, signaling.Stream[Req, Res]) error) {
	go func() {
		c.err = handle(c.ctx, serverEnd[Req, Res]{c})
		c.cancel()
		close(c.done)
	}()
}

type serverEnd[Req, Res any] struct{ *call[Req, Res] }

func (s serverEnd[Req, Res]) Receive() (Req, error) {
	var zero Req
	select {
	case m := <-s.up:
		return m, nil
	case <-s.half:
		return zero, io.EOF
	case <-s.ctx.Done():
		return zero, s.ctx.Err()
	}
}

func (s serverEnd[Req, Res]) Send(m Res) error {
	select {
	case s.down <- m:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// clientEnd implements signaling.ClientStream and client.Stream.
type clientEnd[Req, Res any] struct{ *call[Req, Res] }

func (c clientEnd[Req, Res]) Send(m Req) error {
	select {
	case c.up <- m:
		return nil
	case <-c.half:
		return errors.New("sent after CloseSend")
	case <-c.ctx.Done():
		return io.EOF
	}
}

func (c clientEnd[Req, Res]) Receive() (Res, error) {
	var zero Res
	select {
	case m := <-c.down:
		return m, nil
	default:
	}
	select {
	case m := <-c.down:
		return m, nil
	case <-c.done:
		select {
		case m := <-c.down:
			return m, nil
		default:
		}
		if c.err != nil {
			return zero, c.err
		}
		return zero, io.EOF
	}
}

func (c clientEnd[Req, Res]) CloseSend() error {
	c.once.Do(func() { close(c.half) })
	return nil
}

// world is a policy, a network and a set of nodes for a Service.
type world struct {
	mu      sync.Mutex
	denied  map[string]error // by destination
	asked   []string         // "caller node destination"
	nodes   map[mesh.NodeID]*signaling.Service
	stock   map[mesh.NodeID]bool
	refusal error // of calls to other nodes
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	tamper  func(*v1.DataChannelNegotiation) *v1.DataChannelNegotiation // on the way to the client; nil result drops
	seen    []*v1.DataChannelNegotiation                                // what the target got
}

func (w *world) Authorize(_ context.Context, caller string, node mesh.NodeID, d signaling.Destination) (netip.AddrPort, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, fmt.Sprintf("%s %s %s", caller, node, d))
	if err := w.denied[d.String()]; err != nil {
		return netip.AddrPort{}, err
	}
	host := d.Host
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("no node %q: %w", d.Host, mesh.ErrNotFound)
	}
	return netip.AddrPortFrom(ip, d.Port), nil
}

func (w *world) questions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.asked...)
}

func (w *world) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	dial := w.dial
	w.mu.Unlock()
	if dial != nil {
		return dial(ctx, network, address)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

func (w *world) Local(node mesh.NodeID) (bool, error) {
	if node == self || w.stock[node] {
		return true, nil
	}
	if w.nodes[node] == nil {
		return false, mesh.ErrNotFound
	}
	return false, nil
}

func (w *world) Negotiate(ctx context.Context, node mesh.NodeID) (signaling.Negotiation, error) {
	if w.refusal != nil {
		return nil, w.refusal
	}
	c := newCall[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation](ctx)
	c.serve(func(ctx context.Context, s signaling.Stream[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]) error {
		return w.nodes[node].NegotiateDataChannel(ctx, self, tampered{s, w})
	})
	return clientEnd[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]{c}, nil
}

// tampered lets a test see what a target gets and change what it says.
type tampered struct {
	signaling.Stream[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]
	w *world
}

func (t tampered) Receive() (*v1.DataChannelNegotiation, error) {
	m, err := t.Stream.Receive()
	if err == nil {
		t.w.mu.Lock()
		t.w.seen = append(t.w.seen, m)
		t.w.mu.Unlock()
	}
	return m, err
}

func (t tampered) Send(m *v1.DataChannelNegotiation) error {
	if t.w.tamper != nil {
		if m = t.w.tamper(m); m == nil {
			return nil
		}
	}
	return t.Stream.Send(m)
}

func (w *world) Signal(ctx context.Context, node mesh.NodeID) (signaling.Signals, error) {
	if w.refusal != nil {
		return nil, w.refusal
	}
	c := newCall[*v1.WebRTCSignal, *v1.WebRTCSignal](ctx)
	c.serve(func(ctx context.Context, s signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
		return w.nodes[node].ReceiveSignalChannel(ctx, self, s)
	})
	return clientEnd[*v1.WebRTCSignal, *v1.WebRTCSignal]{c}, nil
}

// newService returns a Service of node in w.
func newService(t testing.TB, w *world, node mesh.NodeID, change ...func(*signaling.Config)) *signaling.Service {
	t.Helper()
	cfg := signaling.Config{
		Self: node, Authorizer: w, Dialer: w, Peers: w,
		RTC: rtc.Config{Loopback: true, Local: loopbackOnly},
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := signaling.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func loopbackOnly(a netip.Addr) bool { return a.IsLoopback() && a.Is4() }

// start calls StartDataChannel of s in memory.
func start(t testing.TB, s *signaling.Service, id string) clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer] {
	t.Helper()
	c := newCall[*v1.StartDataChannelRequest, *v1.DataChannelOffer](context.Background())
	caller := signaling.Caller{ID: id, Addr: netip.MustParseAddrPort("192.0.2.7:4711")}
	c.serve(func(ctx context.Context, stream signaling.Stream[*v1.StartDataChannelRequest, *v1.DataChannelOffer]) error {
		return s.StartDataChannel(ctx, caller, stream)
	})
	t.Cleanup(func() {
		c.cancel()
		<-c.done
	})
	return clientEnd[*v1.StartDataChannelRequest, *v1.DataChannelOffer]{c}
}

// dial opens an in-band peer connection to node.
func dial(t testing.TB, s *signaling.Service, node mesh.NodeID, change ...func(*client.Options)) *client.Conn {
	t.Helper()
	c, err := tryDial(t, s, node, change...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func clientOptions() client.Options {
	return client.Options{Node: string(self), RTC: rtc.Config{Loopback: true, Local: loopbackOnly}}
}

func tryDial(t testing.TB, s *signaling.Service, node mesh.NodeID, change ...func(*client.Options)) (*client.Conn, error) {
	t.Helper()
	opts := clientOptions()
	opts.Node = string(node)
	for _, f := range change {
		f(&opts)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, start(t, s, "alice"), opts)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, nil
}

// listen serves each TCP connection with f and returns the address.
func listen(t testing.TB, f func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				f(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// echo sends everything back and passes the end on.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// eventually polls cond until it holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("never came true: %s", what)
		}
	}
}

// counter is a UDP socket that counts packets and answers none.
type counter struct {
	port    int
	packets atomic.Int64
}

func udpCounter(t testing.TB) *counter {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{port: pc.LocalAddr().(*net.UDPAddr).Port}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			if _, _, err := pc.ReadFrom(buf); err != nil {
				return
			}
			c.packets.Add(1)
		}
	}()
	t.Cleanup(func() {
		_ = pc.Close()
		<-done
	})
	return c
}
