// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
	"golang.zx2c4.com/wireguard/device"
)

// side is a node with a path to another one, which has one back.
type side struct {
	*wgtest.Node
	path   *wg.Path
	relay  *wgtest.Socket
	remove func()
	// direct and relayed lead to the other side.
	direct, relayed wg.Route
}

// to sends the packets of a side another way.
func (s *side) to(r wg.Route) { s.path.Route(r.Socket, r.To) }

// loopback is where a node's UDP port is.
func loopback(n *wgtest.Node) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.ListenPort())
}

// open gives s a relay socket and a path to other.
func (s *side) open(tb testing.TB, other *side) {
	tb.Helper()
	id, remove, err := s.AddSocket(s.relay)
	if err != nil {
		tb.Fatal(err)
	}
	s.remove = remove
	s.direct = wg.Route{Socket: wg.NativeSocket, To: loopback(other.Node)}
	s.relayed = wg.Route{Socket: id, To: other.relay.Addr}
	if s.path, err = s.OpenPath(other.Key()); err != nil {
		tb.Fatal(err)
	}
	if err := s.path.Accept([]wg.Route{s.direct, s.relayed}); err != nil {
		tb.Fatal(err)
	}
}

// sides makes two nodes that know each other by their paths alone, which lead
// nowhere yet.
func sides(tb testing.TB) (a, b *side) {
	tb.Helper()
	network := wgtest.NewSwitch()
	a = &side{Node: wgtest.New(tb, 1, wg.Options{}), relay: network.Socket("192.0.2.1:1001")}
	b = &side{Node: wgtest.New(tb, 2, wg.Options{}), relay: network.Socket("192.0.2.2:1002")}
	a.SetPeers(withoutEndpoint(b.Peer()))
	b.SetPeers(withoutEndpoint(a.Peer()))
	a.open(tb, b)
	b.open(tb, a)
	return a, b
}

// wander moves both sides from one way to another without a pause until it is
// stopped, which returns how often that was.
func wander(a, b *side) (stop func() int) {
	ended, moves := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			for _, s := range []*side{a, b} {
				s.to([]wg.Route{s.direct, s.relayed}[n%2])
			}
			n++
			select {
			case <-ended:
				moves <- n
				return
			case <-time.After(200 * time.Microsecond):
			}
		}
	}()
	return func() int {
		close(ended)
		return <-moves
	}
}

// checkMoved fails the test when nothing went by one of the ways.
func checkMoved(tb testing.TB, moves int, sides ...*side) {
	tb.Helper()
	if moves < 10 {
		tb.Errorf("the paths moved %d times", moves)
	}
	for _, s := range sides {
		if got := s.relay.Sent.Load(); got == 0 {
			tb.Error("nothing was sent through a relay")
		}
		if got := s.relay.Lost.Load(); got != 0 {
			tb.Errorf("the test's own network lost %d datagrams", got)
		}
	}
}

func TestPath_StreamSurvivesMoves(t *testing.T) {
	a, b := sides(t)
	a.to(a.relayed)
	b.to(b.relayed)
	client, server := connect(t, a.Node, b.Node, b.IPv4)
	stop := wander(a, b)
	transfer(t, client, server, 16<<20)
	transfer(t, server, client, 16<<20)
	checkMoved(t, stop(), a, b)
}

// flood sends n numbered datagrams, of which few are on their way at one time,
// and returns how often each arrived.
func flood(tb testing.TB, from, to *wgtest.Node, n int) []int {
	tb.Helper()
	server, err := to.ListenPacket(timeout(tb), "udp", netip.AddrPortFrom(to.IPv4, 0).String())
	if err != nil {
		tb.Fatal(err)
	}
	defer server.Close()
	client, err := from.DialContext(timeout(tb), "udp", server.LocalAddr().String())
	if err != nil {
		tb.Fatal(err)
	}
	defer client.Close()
	arrived, seen := make(chan struct{}, 64), make([]int, n)
	go func() {
		for buf := make([]byte, 1500); ; {
			if _, _, err := server.ReadFrom(buf); err != nil {
				close(arrived)
				return
			}
			seen[binary.BigEndian.Uint64(buf)]++
			arrived <- struct{}{}
		}
	}()
	packet := make([]byte, 500)
	late := time.NewTimer(patience)
	for i := range n + cap(arrived)/2 {
		if i >= cap(arrived)/2 {
			select {
			case <-arrived:
			case <-late.C:
				tb.Errorf("only %d datagrams arrived", i-cap(arrived)/2)
				i = n
			}
		}
		if i < n {
			binary.BigEndian.PutUint64(packet, uint64(i))
			if _, err := client.Write(packet); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := server.Close(); err != nil {
		tb.Fatal(err)
	}
	for range arrived {
	}
	return seen
}

func TestPath_MovesLoseNothing(t *testing.T) {
	a, b := sides(t)
	a.to(a.relayed)
	b.to(b.relayed)
	ping(t, a.Node, b.Node)
	stop := wander(a, b)
	for i, times := range flood(t, a.Node, b.Node, 20_000) {
		if times != 1 {
			t.Fatalf("datagram %d arrived %d times", i, times)
		}
	}
	checkMoved(t, stop(), a)
}

// A Set leaves a peer on its path, whatever it says about the peer's endpoint.
func TestPath_OutlivesSet(t *testing.T) {
	a, b := sides(t)
	a.to(a.relayed)
	b.to(b.relayed)
	client, server := connect(t, a.Node, b.Node, b.IPv4)
	stop, done := wander(a, b), make(chan struct{})
	var sets sync.WaitGroup
	for i, s := range []*side{a, b} {
		other := []*side{b, a}[i]
		sets.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond):
				}
				p := other.Peer()
				p.Endpoint = fmt.Sprint("127.0.0.1:", 1+n%3)
				p.Keepalive = time.Duration(n%2) * time.Hour
				c := s.Config
				c.Peers = append([]wg.Peer{p}, crowd(n%3)...)
				if err := s.Set(timeout(t), c); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	transfer(t, client, server, 8<<20)
	transfer(t, server, client, 8<<20)
	close(done)
	sets.Wait()
	checkMoved(t, stop(), a, b)
	for i, s := range []*side{a, b} {
		if got := s.LibraryEndpoint(t, []*side{b, a}[i].Key()); !strings.HasPrefix(got, "path:") {
			t.Errorf("the peer is at %q, not at its path", got)
		}
	}
}

func TestPath_OutlivesAChangeOfThePort(t *testing.T) {
	a, b := sides(t)
	a.to(a.direct)
	b.to(b.direct)
	client, server := connect(t, a.Node, b.Node, b.IPv4)
	transfer(t, client, server, 1<<16)
	a.Config.ListenPort = freePort(t)
	a.Apply()
	b.direct.To = loopback(a.Node)
	b.to(b.direct)
	if err := b.path.Accept([]wg.Route{b.relayed, b.direct}); err != nil {
		t.Fatal(err)
	}
	transfer(t, server, client, 1<<16)
	ping(t, a.Node, b.Node)
}

func TestPath_OverIPv6(t *testing.T) {
	a, b := sides(t)
	for i, s := range []*side{a, b} {
		s.direct.To = netip.AddrPortFrom(netip.IPv6Loopback(), []*side{b, a}[i].ListenPort())
		if err := s.path.Accept([]wg.Route{s.direct}); err != nil {
			t.Fatal(err)
		}
		s.to(s.direct)
	}
	ping(t, a.Node, b.Node)
	if got := a.path.Activity(); got.From != a.direct || got.Heard.IsZero() || got.Sent.IsZero() {
		t.Errorf("activity %v, want it over %v", got, a.direct)
	}
}

// What a peer sends from elsewhere is WireGuard's as ever, but does not keep the
// peer from its path.
func TestPath_LeadsBackAPeerThatRoamed(t *testing.T) {
	a, b := sides(t)
	a.to(a.relayed)
	b.to(b.relayed)
	ping(t, a.Node, b.Node)
	if err := a.path.Accept([]wg.Route{a.relayed}); err != nil {
		t.Fatal(err)
	}
	b.to(b.direct)
	eventually(t, "the peer to be where it called from", func() bool {
		send := connectUDP(t, b.Node, a.IPv4)
		return send() == nil && a.LibraryEndpoint(t, b.Key()) == a.direct.To.String()
	})
	eventually(t, "the peer to be at its path", func() bool {
		return strings.HasPrefix(a.LibraryEndpoint(t, b.Key()), "path:")
	})
	// One that leads nowhere lets the peer go.
	a.path.Route(0, netip.AddrPort{})
	eventually(t, "the peer to be where it called from", func() bool {
		send := connectUDP(t, b.Node, a.IPv4)
		return send() == nil && a.LibraryEndpoint(t, b.Key()) == a.direct.To.String()
	})
	ping(t, a.Node, b.Node)
}

// A node in the place of another one, where that one's path is still led, is heard
// and answered on its own path.
func TestPath_TakesTheRouteOfAnother(t *testing.T) {
	a, b := sides(t)
	a.to(a.direct)
	b.to(b.direct)
	ping(t, a.Node, b.Node)
	port := b.ListenPort()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c := wgtest.New(t, 3, wg.Options{})
	c.Config.ListenPort = port
	c.SetPeers(a.Peer())
	a.SetPeers(withoutEndpoint(b.Peer()), withoutEndpoint(c.Peer()))
	own, err := a.OpenPath(c.Key())
	if err != nil {
		t.Fatal(err)
	}
	own.Route(a.direct.Socket, a.direct.To)
	if err := own.Accept([]wg.Route{a.direct}); err != nil {
		t.Fatal(err)
	}
	before := a.path.Activity()
	ping(t, c, a.Node)
	ping(t, a.Node, c)
	if got := own.Activity(); got.From != a.direct || got.Heard.IsZero() {
		t.Errorf("the path that has the route now: %+v", got)
	}
	if got := a.path.Activity(); before.From == a.direct || got.Heard != before.Heard {
		t.Errorf("the path that had the route: from %+v to %+v", before, got)
	}
	if err := a.path.Accept([]wg.Route{a.relayed}); err != nil {
		t.Fatal(err)
	}
	ping(t, a.Node, c) // the other one gives back what it lost: nothing
	a.path.Close()
	ping(t, c, a.Node)
	disguised := wg.Route{To: netip.AddrPortFrom(netip.AddrFrom16(a.direct.To.Addr().As16()), port)}
	if a.path, err = a.OpenPath(b.Key()); err != nil {
		t.Fatal(err)
	}
	if err := a.path.Accept([]wg.Route{disguised, a.direct}); err != nil {
		t.Fatal(err)
	}
	if got := own.Activity(); !got.Heard.IsZero() {
		t.Errorf("the route in disguise is still the other path's: %+v", got)
	}
}

// connectUDP returns a function that sends a datagram to nobody at an address.
func connectUDP(tb testing.TB, n *wgtest.Node, to netip.Addr) func() error {
	tb.Helper()
	c, err := n.DialContext(timeout(tb), "udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		tb.Fatal(err)
	}
	return func() error {
		_, err := c.Write([]byte("x"))
		return errors.Join(err, c.Close())
	}
}

// A path begins where the peer was configured to be, so that nothing is lost
// when one is opened, and its end gives the peer back to there.
func TestPath_BeginsAndEndsAtTheConfiguredEndpoint(t *testing.T) {
	a, b := wgtest.Pair(t)
	client, server := connect(t, a, b, b.IPv4)
	p, err := a.OpenPath(b.Key())
	if err != nil {
		t.Fatal(err)
	}
	transfer(t, client, server, 1<<16)
	if got, want := p.Routed(), (wg.Route{To: loopback(b)}); got != want {
		t.Errorf("the path leads to %v, want %v", got, want)
	}
	if got := p.Activity(); got.Sent.IsZero() || got.Heard.IsZero() || got.From != p.Routed() {
		t.Errorf("activity is %v after a transfer", got)
	}
	if got := only(t, a).Endpoint; got != b.Peer().Endpoint {
		t.Errorf("endpoint %q, want that of the route", got)
	}
	p.Route(7, loopback(b)) // no such socket
	if got := only(t, a).Endpoint; got != "" || p.Routed() != (wg.Route{}) {
		t.Errorf("endpoint %q of a path that leads nowhere", got)
	}
	p.Close()
	p.Close()
	transfer(t, server, client, 1<<16)
	ping(t, b, a)
	a.Straggle(b.Key(), p)
	if got := only(t, a).Endpoint; got != b.Peer().Endpoint || !p.Closed() {
		t.Errorf("endpoint %q after the path is closed, want %q", got, b.Peer().Endpoint)
	}
	if got := p.Routed(); got.To != loopback(b) {
		t.Errorf("what is left of the path leads to %v, want the configured endpoint", got)
	}
	ping(t, a, b)
	a.Straggle(b.Key(), p)
	a.Apply()
	if got := a.LibraryEndpoint(t, b.Key()); got != b.Peer().Endpoint {
		t.Errorf("the peer is at %q after a Set, want %q", got, b.Peer().Endpoint)
	}
	ping(t, a, b)
	if err := p.Accept(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept of a closed path = %v, want ErrClosed", err)
	}
	p.Route(0, loopback(b)) // no more than a closed door
	if p, err = a.OpenPath(b.Key()); err != nil {
		t.Errorf("a second path: %v", err)
	} else {
		p.Close()
	}
}

// A peer that leaves the configuration takes its path along.
func TestPath_OfARemovedPeer(t *testing.T) {
	a, b := sides(t)
	a.to(a.relayed)
	b.to(b.relayed)
	ping(t, a.Node, b.Node)
	a.SetPeers()
	if !a.path.Closed() {
		t.Error("the path is still open")
	}
	a.to(a.direct)
	a.path.Close()
	<-time.After(2 * device.HandshakeInitationRate) // b takes one more initiation
	a.SetPeers(b.Peer())
	if err := b.path.Accept([]wg.Route{b.direct}); err != nil {
		t.Fatal(err)
	}
	b.to(b.direct)
	ping(t, a.Node, b.Node)
	if got := only(t, a.Node).Endpoint; got != b.Peer().Endpoint {
		t.Errorf("endpoint %q, want the configured one", got)
	}
	a.open(t, &side{Node: b.Node, relay: b.relay})
}

// While a path is open, connections of AttachPeer wait for its end.
func TestPath_GoesBeforeAttachedConnections(t *testing.T) {
	a, b := sides(t)
	a.to(a.direct)
	b.to(b.direct)
	ping(t, a.Node, b.Node)
	x, y := wgtest.Pipe()
	if _, err := a.AttachPeer(b.Key(), x); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(y); err != nil {
		t.Fatal(err)
	}
	if got := a.LibraryEndpoint(t, b.Key()); !strings.HasPrefix(got, "path:") {
		t.Errorf("the peer is at %q, not at its path", got)
	}
	b.path.Close()
	a.path.Close()
	if got := a.LibraryEndpoint(t, b.Key()); !strings.HasPrefix(got, "attached:") {
		t.Errorf("the peer is at %q, not at its connection", got)
	}
	ping(t, a.Node, b.Node)
}

// Whatever ends first, the rest ends, too, and in between nothing waits.
func TestPath_EndsInEveryOrder(t *testing.T) {
	ends := map[string]func(*side){
		"path":   func(s *side) { s.path.Close() },
		"socket": func(s *side) { s.remove() },
		"relay":  func(s *side) { _ = s.relay.Close() },
		"peer":   func(s *side) { _ = s.Set(context.Background(), wg.Config{PrivateKey: s.Config.PrivateKey}) },
		"device": func(s *side) { _ = s.Close() },
	}
	var orders func(done []string)
	orders = func(done []string) {
		if len(done) < 3 {
			for name := range ends {
				if !strings.Contains(strings.Join(done, " "), name) {
					orders(append(done[:len(done):len(done)], name))
				}
			}
			return
		}
		t.Run(strings.Join(done, " "), func(t *testing.T) {
			a, b := sides(t)
			a.to(a.relayed)
			b.to(b.relayed)
			ping(t, a.Node, b.Node)
			stop := wander(a, b)
			for _, name := range done {
				ends[name](a)
				runtime.Gosched()
			}
			stop()
			for _, end := range []string{"path", "socket", "device"} {
				ends[end](a)
			}
			if _, _, err := a.AddSocket(b.relay); !errors.Is(err, net.ErrClosed) {
				t.Errorf("AddSocket after all = %v, want ErrClosed", err)
			}
			if _, err := a.OpenPath(b.Key()); err == nil {
				t.Error("OpenPath after all gave a path")
			}
		})
	}
	orders(nil)
}

func TestPath_RefusesWhatIsNoRoute(t *testing.T) {
	a, b := sides(t)
	c := wgtest.New(t, 3, wg.Options{})
	a.SetPeers(withoutEndpoint(b.Peer()), withoutEndpoint(c.Peer()))
	other, err := a.OpenPath(c.Key())
	if err != nil {
		t.Fatal(err)
	}
	many := make([]wg.Route, wg.MaxRoutes+1)
	for i := range many {
		many[i] = wg.Route{To: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 9}), uint16(i+1))}
	}
	for _, bad := range []struct {
		name   string
		routes []wg.Route
		want   error
		text   string
	}{
		{"no address", []wg.Route{many[0], {Socket: 3}}, mesh.ErrInvalid, "socket 3: not an address"},
		{"no port", []wg.Route{{To: netip.MustParseAddrPort("192.0.2.1:0")}}, mesh.ErrInvalid, "192.0.2.1:0 on socket 0"},
		{"too many", many, mesh.ErrInvalid, "33 routes, more than 32"},
	} {
		err := other.Accept(bad.routes)
		if !errors.Is(err, bad.want) || !strings.Contains(err.Error(), bad.text) || !strings.Contains(err.Error(), c.Key().String()) {
			t.Errorf("%s: Accept = %v, want %q of the peer", bad.name, err, bad.text)
		}
	}
	if err := other.Accept(many[:wg.MaxRoutes]); err != nil {
		t.Errorf("as many as may be: %v", err)
	}
	a.path.Close()
	if err := other.Accept([]wg.Route{a.relayed, a.direct}); err != nil {
		t.Errorf("what another path had: %v", err)
	}
	for key, want := range map[mesh.WireGuardKey]error{c.Key(): mesh.ErrExists, {7}: mesh.ErrNotFound} {
		if _, err := a.OpenPath(key); !errors.Is(err, want) {
			t.Errorf("OpenPath = %v, want %v", err, want)
		}
	}
}

// An idle peer becomes ready with its path, and stays that as long as it is open.
func TestPath_KeepsAPeerReady(t *testing.T) {
	hub, _ := lazyHub(t)
	n := wgtest.New(t, 2, wg.Options{})
	hub.SetPeers(append(crowd(3), withoutEndpoint(n.Peer()))...)
	n.SetPeers(hub.Peer())
	if hub.Active(n.Key()) {
		t.Fatal("the peer is ready at once")
	}
	p, err := hub.OpenPath(n.Key())
	if err != nil {
		t.Fatal(err)
	}
	p.Route(0, loopback(n))
	evict(hub)
	if !hub.Active(n.Key()) {
		t.Fatal("the peer has left its path")
	}
	ping(t, hub, n)
	p.Close()
	evict(hub)
	if hub.Active(n.Key()) {
		t.Error("the peer is still ready without its path")
	}
	n.Handshake(hub.Key())
	ping(t, n, hub)
}
