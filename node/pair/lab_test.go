// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// lab is a network of nodes in one bubble: datagrams take a millisecond, and
// signals and the directory what goroutines take.
type lab struct {
	t  *testing.T
	mu sync.Mutex
	// hosts finds who has an address.
	hosts map[netip.AddrPort]*socket
	nodes map[mesh.NodeID]*testNode
	// blocked says which datagrams are lost.
	blocked func(from, to netip.AddrPort) bool
	// tap sees each datagram that is sent, with mu held; nil: nobody does.
	tap func(to netip.AddrPort, b []byte)
	// refused says why two nodes are no pair.
	refused func(a, b mesh.NodeID) string
	// routes are networks behind nodes.
	routes map[mesh.NodeID]netip.Prefix
	// held, if it is not nil, has the directory wait until it is closed.
	held chan struct{}
	// down is true while no gateway answers.
	down    bool
	books   []*book
	relays  int
	given   []*fakeRelay
	gateway mesh.Peer
}

// socket is one of a node's device.
type socket struct {
	node   *testNode
	number wg.Socket
	addr   netip.AddrPort
}

// testNode is a node with its fake device.
type testNode struct {
	lab    *lab
	id     mesh.NodeID
	record *mesh.Node
	addr   netip.Addr
	pairs  *Pairs
	stop   func()

	mu      sync.Mutex
	sockets map[wg.Socket]*socket
	last    wg.Socket
	ways    map[mesh.WireGuardKey]*fakeWay
	shaken  map[mesh.WireGuardKey]time.Time
	shakes  map[mesh.WireGuardKey]int // how often the device was asked for a session
	plan    mesh.Plan
	addrs   []netip.Addr
}

func newLab(t *testing.T) *lab {
	return &lab{
		t: t, hosts: make(map[netip.AddrPort]*socket), nodes: make(map[mesh.NodeID]*testNode),
		blocked: func(netip.AddrPort, netip.AddrPort) bool { return false },
		refused: func(mesh.NodeID, mesh.NodeID) string { return "" },
	}
}

const wireguardPort = 51820

// record is a node of the mesh; n makes its addresses.
func record(t *testing.T, id mesh.NodeID, n byte) *mesh.Node {
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return &mesh.Node{
		ID: id, PublicKey: key.Public(), IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, 0, n}), 32), Paths: true,
		Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}},
	}
}

// start runs a node whose host has the address 10.0.0.n, behind a gateway.
func (l *lab) start(id mesh.NodeID, n byte) *testNode {
	return l.run(record(l.t, id, n), netip.AddrFrom4([4]byte{10, 0, 0, n}))
}

// run runs a node at an address; again after it was stopped, too.
func (l *lab) run(rec *mesh.Node, addr netip.Addr) *testNode {
	n := &testNode{
		lab: l, id: rec.ID, record: rec, addr: addr, addrs: []netip.Addr{addr},
		sockets: make(map[wg.Socket]*socket), ways: make(map[mesh.WireGuardKey]*fakeWay), shaken: make(map[mesh.WireGuardKey]time.Time),
		shakes: make(map[mesh.WireGuardKey]int),
	}
	n.plan = mesh.Plan{Self: rec}
	if l.gateway.Node != nil {
		n.plan.Peers = mesh.PeersOf(l.gateway)
	}
	n.listen(wg.NativeSocket, netip.AddrPortFrom(addr, wireguardPort))
	var logger *slog.Logger
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(l.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("self", string(n.id))
	}
	var err error
	n.pairs, err = New(Config{
		Logger: logger,
		Self:   n.id, Device: fakeDevice{n}, Directory: n, Signals: n, Allocate: n.allocate, Publish: n.published,
		Addrs: func() ([]netip.Addr, error) { n.mu.Lock(); defer n.mu.Unlock(); return slices.Clone(n.addrs), nil },
	})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.pairs.Run(ctx); !errors.Is(err, context.Canceled) {
			l.t.Errorf("%s: %v", n.id, err)
		}
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, s := range n.sockets {
			delete(l.hosts, s.addr)
		}
	})
	l.mu.Lock()
	l.nodes[n.id] = n
	l.mu.Unlock()
	n.pairs.Follow(n.plan, netip.MustParsePrefix("172.16.0.0/12").Contains)
	return n
}

// end stops all nodes.
func (l *lab) end() {
	for _, n := range l.nodes {
		n.stop()
	}
}

// withGateway gives the nodes that start from now on a gateway, at an address.
func (l *lab) withGateway(n byte) netip.AddrPort {
	rec := record(l.t, "gate", n)
	rec.Features = append(rec.Features, mesh.Feature{Kind: v1.Feature_MEMBERSHIP, Port: 8443})
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), wireguardPort)
	l.gateway = mesh.Peer{Node: rec, Endpoint: at.String(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts[at] = &socket{addr: at}
	return at
}

// send carries a datagram.
func (l *lab) send(from *socket, to netip.AddrPort, b []byte) {
	b = slices.Clone(b)
	l.mu.Lock()
	if l.tap != nil {
		l.tap(to, b)
	}
	l.mu.Unlock()
	time.AfterFunc(time.Millisecond, func() {
		l.mu.Lock()
		dst := l.hosts[to]
		lost := dst == nil || l.blocked(from.addr, to)
		l.mu.Unlock()
		switch {
		case lost:
		case dst.node == nil: // a gateway
			if answer, ok := path.Answer(b, from.addr); ok {
				l.send(dst, from.addr, answer)
			}
		default:
			dst.node.pairs.STUN(dst.number, from.addr, b)
		}
	})
}

func (n *testNode) listen(number wg.Socket, addr netip.AddrPort) {
	s := &socket{n, number, addr}
	n.mu.Lock()
	n.sockets[number] = s
	n.mu.Unlock()
	n.lab.mu.Lock()
	n.lab.hosts[addr] = s
	n.lab.mu.Unlock()
}

// published does what a node does: the device has the peers of the plan.
func (n *testNode) published() {
	plan := n.pairs.View().Apply(n.plan)
	n.mu.Lock()
	defer n.mu.Unlock()
	for key, w := range n.ways {
		if !known(plan, key) {
			w.closed = true
			delete(n.ways, key)
		}
	}
}

// has is what the plan says of a node: whether it is a peer, and what is behind
// it.
func (n *testNode) has(id mesh.NodeID) (allowed []netip.Prefix, ok bool) {
	p, ok := n.pairs.View().Apply(n.plan).Peers.Get(id)
	return p.AllowedIPs, ok
}

// known reports whether a peer of the plan has the key.
func known(plan mesh.Plan, key mesh.WireGuardKey) bool {
	for p := range plan.Peers.All() {
		if p.Node.PublicKey.WireGuard() == key {
			return true
		}
	}
	return false
}

// status is that of the way to a node.
func (n *testNode) status(id mesh.NodeID) Status {
	for _, s := range n.pairs.Status() {
		if s.Node == id {
			return s
		}
	}
	return Status{}
}

// until waits for virtual time to make something true, and returns how long that
// took.
func (l *lab) until(limit time.Duration, what string, is func() bool) time.Duration {
	l.t.Helper()
	began := time.Now()
	for {
		synctest.Wait()
		if is() {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			l.t.Fatalf("not within %s: %s", limit, what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// fakeDevice is a device that knows the peers of the last plan.
type fakeDevice struct{ n *testNode }

// fakeWay is a path of it.
type fakeWay struct {
	n        *testNode
	key      mesh.WireGuardKey
	route    wg.Route
	accepted []wg.Route
	activity wg.Activity
	looks    int // at activity
	closed   bool
}

func (d fakeDevice) ListenPort() uint16 { return wireguardPort }

func (d fakeDevice) OpenPath(key mesh.WireGuardKey) (Way, error) {
	plan := d.n.pairs.View().Apply(d.n.plan)
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	if !known(plan, key) {
		return nil, mesh.ErrNotFound
	}
	w := &fakeWay{n: d.n, key: key}
	d.n.ways[key] = w
	return w, nil
}

func (d fakeDevice) AddSocket(s wg.PacketSocket) (wg.Socket, func(), error) {
	d.n.mu.Lock()
	d.n.last++
	number := d.n.last
	d.n.mu.Unlock()
	d.n.listen(number, s.(*fakeRelay).at)
	return number, func() {
		d.n.lab.mu.Lock()
		delete(d.n.lab.hosts, s.(*fakeRelay).at)
		d.n.lab.mu.Unlock()
		_ = s.Close()
	}, nil
}

func (d fakeDevice) SendSTUN(number wg.Socket, to netip.AddrPort, b []byte) error {
	d.n.mu.Lock()
	s := d.n.sockets[number]
	d.n.mu.Unlock()
	if s == nil {
		return mesh.ErrNotFound
	}
	d.n.lab.send(s, to, b)
	return nil
}

// Handshake succeeds after ten milliseconds, if both have each other and a way.
func (d fakeDevice) Handshake(key mesh.WireGuardKey) {
	d.n.mu.Lock()
	d.n.shakes[key]++
	d.n.mu.Unlock()
	time.AfterFunc(10*time.Millisecond, func() {
		d.n.lab.mu.Lock()
		var peer *testNode
		for _, o := range d.n.lab.nodes {
			if o.record.PublicKey.WireGuard() == key {
				peer = o
			}
		}
		d.n.lab.mu.Unlock()
		own := d.n.record.PublicKey.WireGuard()
		if peer == nil || !d.n.leads(key) || !peer.leads(own) {
			return
		}
		d.n.shook(key)
		peer.shook(own)
	})
}

func (n *testNode) leads(key mesh.WireGuardKey) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.ways[key]
	return w != nil && w.route.To.IsValid()
}

func (n *testNode) shook(key mesh.WireGuardKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shaken[key] = time.Now()
}

// shookWith is when two nodes last made a session.
func (n *testNode) shookWith(o *testNode) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.shaken[o.record.PublicKey.WireGuard()]
}

// talk notes that packets went both ways between two nodes.
func (l *lab) talk(a, b *testNode) {
	for _, ends := range [][2]*testNode{{a, b}, {b, a}} {
		n := ends[0]
		n.mu.Lock()
		if w := n.ways[ends[1].record.PublicKey.WireGuard()]; w != nil {
			w.activity = wg.Activity{Sent: time.Now(), Heard: time.Now(), From: w.route}
		}
		n.mu.Unlock()
	}
}

func (d fakeDevice) Stats() (mesh.InterfaceStats, error) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	var s mesh.InterfaceStats
	for key, at := range d.n.shaken {
		s.Peers = append(s.Peers, mesh.PeerStats{PublicKey: key, LastHandshake: at})
	}
	return s, nil
}

func (w *fakeWay) Route(s wg.Socket, to netip.AddrPort) {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	w.route = wg.Route{Socket: s, To: to}
}

func (w *fakeWay) Accept(routes []wg.Route) error {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	w.accepted = routes
	return nil
}

func (w *fakeWay) Activity() wg.Activity {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	w.looks++
	return w.activity
}

func (w *fakeWay) Closed() bool { w.n.mu.Lock(); defer w.n.mu.Unlock(); return w.closed }
func (w *fakeWay) Close()       { w.n.mu.Lock(); defer w.n.mu.Unlock(); w.closed = true }

// fakeRelay is a relay whose packets are those of its address.
type fakeRelay struct {
	n    *testNode
	at   netip.AddrPort
	done chan struct{}
	once sync.Once
	// gone says that the server does not know it, and mute since when it does not
	// answer. The lab guards them.
	gone bool
	mute time.Time
}

func (n *testNode) allocate(ctx context.Context, url, _, _ string) (Relay, error) {
	n.lab.mu.Lock()
	n.lab.relays++
	at := netip.AddrPortFrom(netip.MustParseAddr("10.0.9.9"), uint16(49152+n.lab.relays))
	n.lab.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(5 * time.Millisecond):
	}
	if url == "turn:nowhere" {
		return nil, errors.New("no answer")
	}
	r := &fakeRelay{n: n, at: at, done: make(chan struct{})}
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	n.lab.given = append(n.lab.given, r)
	return r, nil
}

// gone reports whether the server has lost a relay.
func (l *lab) gone(r *fakeRelay) bool { l.mu.Lock(); defer l.mu.Unlock(); return r.gone }

func (l *lab) silence(r *fakeRelay) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.mute.IsZero() {
		return 0
	}
	return time.Since(r.mute)
}

func (r *fakeRelay) Relayed() netip.AddrPort   { return r.at }
func (r *fakeRelay) SetCredential(_, _ string) {}
func (r *fakeRelay) Done() <-chan struct{}     { return r.done }
func (r *fakeRelay) Check() {
	if r.n.lab.gone(r) {
		_ = r.Close()
	}
}
func (r *fakeRelay) Silent() time.Duration { return r.n.lab.silence(r) }
func (r *fakeRelay) Close() error          { r.once.Do(func() { close(r.done) }); return nil }
func (r *fakeRelay) ReadBatch([][]byte, []int, []netip.AddrPort) (int, error) {
	<-r.done
	return 0, net.ErrClosed
}
func (r *fakeRelay) WriteBatch([][]byte, netip.AddrPort) error { return nil }

// book is a stream of the directory to one node.
type book struct {
	n      *testNode
	ctx    context.Context
	news   chan News
	wanted map[string]bool
}

// Follow implements Directory.
func (n *testNode) Follow(ctx context.Context) (Book, error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	if n.lab.down {
		return nil, mesh.ErrUnavailable
	}
	b := &book{n: n, ctx: ctx, news: make(chan News, 2048), wanted: make(map[string]bool)}
	b.news <- News{Servers: []Server{{Relay: "gate", URLs: []string{"turn:10.0.9.9:3478?transport=udp"}}}}
	n.lab.books = append(n.lab.books, b)
	return b, nil
}

// Ask implements Book.
func (b *book) Ask(add, drop []string) error {
	b.n.lab.mu.Lock()
	held := b.n.lab.held
	b.n.lab.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
	}
	b.n.lab.mu.Lock()
	defer b.n.lab.mu.Unlock()
	for _, text := range drop {
		delete(b.wanted, text)
	}
	for _, text := range add {
		b.wanted[text] = true
		b.tell(text)
	}
	return nil
}

// tell answers. The caller holds the lab.
func (b *book) tell(text string) {
	for _, o := range b.n.lab.nodes {
		if string(o.id) != text && o.record.IPv4.Addr().String() != text {
			continue
		}
		if why := b.n.lab.refused(b.n.id, o.id); why != "" {
			b.news <- News{Answers: []Answer{{Wanted: text, Reason: why}}}
			return
		}
		allowed := o.record.Prefixes()
		if route, ok := b.n.lab.routes[o.id]; ok {
			allowed = append(allowed, route)
		}
		b.news <- News{Answers: []Answer{{Wanted: text, Peer: mesh.Peer{
			Node: o.record, AllowedIPs: allowed, Protocol: v1.ConnectProtocol_CONNECT_ICE,
		}}}}
		return
	}
	b.news <- News{Answers: []Answer{{Wanted: text, Reason: "no such node"}}}
}

// changed has the directory tell everything again.
func (l *lab) changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.books {
		for text := range b.wanted {
			b.tell(text)
		}
	}
}

// cut ends all streams and calls, and no gateway answers any more.
func (l *lab) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	for _, b := range l.books {
		close(b.news)
	}
	l.books = nil
}

// Next implements Book.
func (b *book) Next() (News, error) {
	select {
	case news, ok := <-b.news:
		if !ok {
			return News{}, io.EOF
		}
		return news, nil
	case <-b.ctx.Done():
		return News{}, b.ctx.Err()
	}
}

// end is one end of a channel.
type end struct {
	ctx context.Context
	in  <-chan mesh.PathSignal
	out chan<- mesh.PathSignal
}

// Call implements Signals.
func (n *testNode) Call(ctx context.Context, to mesh.NodeID) (Channel, error) {
	n.lab.mu.Lock()
	peer, down := n.lab.nodes[to], n.lab.down
	n.lab.mu.Unlock()
	if peer == nil || down {
		return nil, mesh.ErrUnavailable
	}
	there, back := make(chan mesh.PathSignal, 4), make(chan mesh.PathSignal, 4)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_ = peer.pairs.Answer(ctx, n.id, end{ctx, there, back})
	}()
	return end{ctx, back, there}, nil
}

func (e end) Send(s mesh.PathSignal) error {
	if s.Ufrag == "" || s.Session == 0 {
		return fmt.Errorf("a signal that says nothing: %v", s)
	}
	select {
	case e.out <- s:
		return nil
	case <-e.ctx.Done():
		return e.ctx.Err()
	}
}

func (e end) Receive() (mesh.PathSignal, error) {
	select {
	case s := <-e.in:
		return s, nil
	case <-e.ctx.Done():
		return mesh.PathSignal{}, e.ctx.Err()
	}
}
