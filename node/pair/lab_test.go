// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
	"errors"
	"log/slog"
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
	// published is told that a node has a new plan; nil: nobody is.
	published func()
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
	for key, w := range n.ways {
		if !known(plan, key) {
			w.closed = true
			delete(n.ways, key)
		}
	}
	n.mu.Unlock()
	n.lab.mu.Lock()
	told := n.lab.published
	n.lab.mu.Unlock()
	if told != nil {
		told()
	}
}

// has is what the plan says of a node: whether it is a peer, and to what networks
// packets go there.
func (n *testNode) has(id mesh.NodeID) (sent []netip.Prefix, ok bool) {
	p, ok := n.pairs.View().Apply(n.plan).Peers.Get(id)
	if p.Veils {
		return slices.Concat(p.AllowedIPs, p.Veiled), ok
	}
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
