// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"context"
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

// still are the pairs of node "bob", which nobody runs: a test does what Run would,
// step by step, in virtual time. What it counts is its own goroutine's alone.
type still struct {
	*Pairs
	t *testing.T

	// The device.
	port      uint16
	unknown   bool // OpenPath finds no peer
	ways      map[mesh.WireGuardKey]*stillWay
	stun      []netip.AddrPort // where messages went
	shakes    map[mesh.WireGuardKey]int
	shaken    map[mesh.WireGuardKey]time.Time
	received  uint64 // of each peer
	looks     int    // at Stats
	statsErr  error
	sockets   wg.Socket
	socketErr error // of AddSocket
	addrs     []netip.Addr
	addrsErr  error
	beside    netip.Prefix

	mu       sync.Mutex // guards the fields below
	removed  []wg.Socket
	called   []mesh.NodeID // by Signals
	said     []mesh.PathSignal
	tries    []string // URLs at which a relay was asked for
	tried    []Server // with what
	allocate func(ctx context.Context, url string) (Relay, error)
}

// inStill runs a test of pairs that nobody runs.
func inStill(t *testing.T, test func(t *testing.T, s *still)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &still{
			t: t, port: wireguardPort, ways: make(map[mesh.WireGuardKey]*stillWay), shakes: make(map[mesh.WireGuardKey]int),
			shaken: make(map[mesh.WireGuardKey]time.Time), addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")},
			allocate: func(ctx context.Context, _ string) (Relay, error) { <-ctx.Done(); return nil, ctx.Err() },
		}
		p, err := New(Config{
			Self: "bob", Device: s, Signals: s, Publish: func() {},
			Allocate: func(ctx context.Context, url, user, password string) (Relay, error) {
				s.mu.Lock()
				s.tries, s.tried = append(s.tries, url), append(s.tried, Server{Username: user, Password: password})
				allocate := s.allocate
				s.mu.Unlock()
				return allocate(ctx, url)
			},
			Addrs:  func() ([]netip.Addr, error) { return slices.Clone(s.addrs), s.addrsErr },
			Beside: func(a netip.Addr) bool { return s.beside.IsValid() && s.beside.Contains(a) },
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Pairs = p
		ctx, cancel := context.WithCancel(context.Background())
		p.ctx = ctx
		defer p.running.Wait()
		defer close(p.ended)
		defer cancel()
		test(t, s)
	})
}

// wait has all go on that waits for Run.
func (s *still) wait() {
	for {
		synctest.Wait()
		select {
		case event := <-s.events:
			event(time.Now())
		default:
			return
		}
	}
}

// pass lets time pass.
func (s *still) pass(d time.Duration) {
	<-time.After(d)
	s.wait()
}

// follow gives the node the peers of a plan.
func (s *still) follow(peers ...mesh.Peer) {
	s.replan(time.Now(), mesh.Plan{Peers: mesh.PeersOf(peers...)}, netip.MustParsePrefix("172.16.0.0/12").Contains)
}

// peer is a node as a pair; n makes its addresses.
func (s *still) peer(id mesh.NodeID, n byte) mesh.Peer {
	s.t.Helper()
	r := record(s.t, id, n)
	return mesh.Peer{Node: r, AllowedIPs: r.Prefixes(), Protocol: v1.ConnectProtocol_CONNECT_ICE}
}

// gate is the gateway, which carries the whole mesh.
func (s *still) gate(id mesh.NodeID, n byte) mesh.Peer {
	s.t.Helper()
	p := s.peer(id, n)
	p.Node.Features = append(p.Node.Features, mesh.Feature{Kind: v1.Feature_MEMBERSHIP, Port: 8443})
	p.Endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n}), wireguardPort).String()
	p.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}
	return p
}

// link makes a link whose finder does what the test says.
func (s *still) link(k kind, peer mesh.Peer) (*link, *stillFinder) {
	s.t.Helper()
	l, err := s.newLink(time.Now(), k, peer)
	if err != nil {
		s.t.Fatal(err)
	}
	f := &stillFinder{finder: l.finder}
	l.finder = f
	return l, f
}

// tell is news of the directory: of one thing that is wanted.
func (s *still) tell(wanted string, peer mesh.Peer, reason string) {
	s.learn(time.Now(), News{Answers: []Answer{{Wanted: wanted, Peer: peer, Reason: reason}}})
}

// told is what the directory would be told now, in order.
func (s *still) told() (add, drop []string) {
	add, drop = s.asking.take()
	slices.Sort(add)
	slices.Sort(drop)
	return add, drop
}

// stillFinder finds what a test says.
type stillFinder struct {
	finder
	selected    path.Route
	ok          bool
	narrow      bool
	accepted    []path.Route
	verified    map[path.Route]time.Time
	state       path.State
	out         []path.Packet
	sent, heard time.Time
	from        path.Route
	restarts    int
	packets     int
	local       map[path.Socket][]path.Candidate
}

func (f *stillFinder) Packet(time.Time, path.Socket, netip.AddrPort, []byte) bool {
	f.packets++
	return true
}

func (f *stillFinder) SetLocal(now time.Time, s path.Socket, list []path.Candidate) error {
	if f.local == nil {
		f.local = make(map[path.Socket][]path.Candidate)
	}
	f.local[s] = list
	return f.finder.SetLocal(now, s, list)
}
func (f *stillFinder) Sent(at time.Time)                   { f.sent = at }
func (f *stillFinder) Heard(at time.Time, from path.Route) { f.heard, f.from = at, from }
func (f *stillFinder) Tick(now time.Time) time.Time        { return now.Add(time.Hour) }
func (f *stillFinder) Outgoing() []path.Packet             { return f.out }
func (f *stillFinder) Selected() (path.Route, bool)        { return f.selected, f.ok }
func (f *stillFinder) Narrow() bool                        { return f.narrow }
func (f *stillFinder) Accepted(time.Time) []path.Route     { return slices.Clone(f.accepted) }
func (f *stillFinder) Verified(r path.Route) time.Time     { return f.verified[r] }
func (f *stillFinder) Restart(time.Time)                   { f.restarts++ }
func (f *stillFinder) State() path.State                   { return f.state }

// finds has a finder find a way, or none.
func (f *stillFinder) finds(ok bool) {
	f.ok, f.state.Standing = ok, ok
	f.selected = path.Route{}
	if ok {
		f.selected = path.Route{Socket: path.Native, To: netip.MustParseAddrPort("10.0.0.7:51820")}
	}
	f.state.Route, f.state.Direct = f.selected, ok
}

// stillWay is a path of the device.
type stillWay struct {
	routes   []wg.Route // all that it was led to
	accepted [][]wg.Route
	err      error // of Accept
	activity wg.Activity
	closed   bool
	narrow   []bool // all that it was told
}

func (w *stillWay) Route(s wg.Socket, to netip.AddrPort) {
	w.routes = append(w.routes, wg.Route{Socket: s, To: to})
}
func (w *stillWay) Accept(list []wg.Route) error {
	w.accepted = append(w.accepted, list)
	return w.err
}
func (w *stillWay) Narrow(on bool)        { w.narrow = append(w.narrow, on) }
func (w *stillWay) Activity() wg.Activity { return w.activity }
func (w *stillWay) Closed() bool          { return w.closed }
func (w *stillWay) Close()                { w.closed = true }

func (s *still) ListenPort() uint16 { return s.port }

func (s *still) OpenPath(key mesh.WireGuardKey) (Way, error) {
	if s.unknown {
		return nil, mesh.ErrNotFound
	}
	s.ways[key] = &stillWay{}
	return s.ways[key], nil
}

func (s *still) AddSocket(wg.PacketSocket) (wg.Socket, func(), error) {
	if s.socketErr != nil {
		return 0, nil, s.socketErr
	}
	s.sockets++
	n := s.sockets
	return n, func() { s.mu.Lock(); defer s.mu.Unlock(); s.removed = append(s.removed, n) }, nil
}

func (s *still) SendSTUN(_ wg.Socket, to netip.AddrPort, _ []byte) error {
	s.stun = append(s.stun, to)
	return nil
}
func (s *still) Handshake(key mesh.WireGuardKey) { s.shakes[key]++ }

func (s *still) Stats() (mesh.InterfaceStats, error) {
	s.looks++
	var stats mesh.InterfaceStats
	for key, at := range s.shaken {
		stats.Peers = append(stats.Peers, mesh.PeerStats{PublicKey: key, LastHandshake: at, ReceiveBytes: s.received})
	}
	return stats, s.statsErr
}

// Call implements Signals: nobody answers, and nobody hangs up.
func (s *still) Call(ctx context.Context, node mesh.NodeID) (Channel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.called = append(s.called, node)
	return stillChannel{s, ctx, nil}, nil
}

// calls is whom the node has called so far.
func (s *still) calls() []mesh.NodeID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.called)
}

// signals is what it has said so far.
func (s *still) signals() []mesh.PathSignal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.said)
}

// stillChannel is one on which the other side says what comes from in.
type stillChannel struct {
	s   *still
	ctx context.Context
	in  <-chan mesh.PathSignal
}

func (c stillChannel) Send(m mesh.PathSignal) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.said = append(c.s.said, m)
	return nil
}

func (c stillChannel) Receive() (mesh.PathSignal, error) {
	select {
	case m, ok := <-c.in:
		if !ok {
			return m, mesh.ErrUnavailable
		}
		return m, nil
	case <-c.ctx.Done():
		return mesh.PathSignal{}, c.ctx.Err()
	}
}
