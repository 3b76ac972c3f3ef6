// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.zx2c4.com/wireguard/device"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// lazyHub is a hub that keeps no peer ready that it need not, and its metrics.
func lazyHub(tb testing.TB) (*wgtest.Node, *prometheus.Registry) {
	tb.Helper()
	reg := prometheus.NewRegistry()
	return wgtest.New(tb, 1, wg.Options{Resident: -1, Registerer: reg}), reg
}

// dropped returns how many packets a hub dropped for a reason.
func dropped(tb testing.TB, reg *prometheus.Registry, reason string) float64 {
	tb.Helper()
	return metric(tb, reg, "meshgate_wg_dropped_packets_total", reason)
}

// leaf makes a node that knows the hub, and all of the mesh behind it.
func leaf(tb testing.TB, number byte, hub *wgtest.Node) *wgtest.Node {
	tb.Helper()
	n := wgtest.New(tb, number, wg.Options{})
	n.SetPeers(hub.Peer(netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd99::/32")))
	return n
}

// hours are those that have passed for hubs.
var hours atomic.Int64

// evict lets so much time pass for the hub that quiet peers leave. For others
// it is at least so long that they take another initiation.
func evict(hub *wgtest.Node) {
	<-time.After(2 * device.HandshakeInitationRate)
	now := time.Now().Add(time.Duration(hours.Add(1)) * time.Hour)
	for range 3 {
		now = now.Add(wg.QuietTime + time.Minute)
		hub.Sweep(now)
	}
}

// datagram sends one UDP datagram and waits until it arrives: nothing sends it
// again.
func datagram(tb testing.TB, a, b *wgtest.Node) {
	tb.Helper()
	server, err := b.ListenPacket(timeout(tb), "udp", netip.AddrPortFrom(b.IPv4, 0).String())
	if err != nil {
		tb.Fatal(err)
	}
	defer server.Close()
	client, err := a.DialContext(timeout(tb), "udp", server.LocalAddr().String())
	if err != nil {
		tb.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("only once")); err != nil {
		tb.Fatal(err)
	}
	arrives(tb, server)
}

// arrives waits for a datagram.
func arrives(tb testing.TB, c net.PacketConn) {
	tb.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, _, err := c.ReadFrom(buf); err != nil || string(buf[:n]) != "only once" {
		tb.Fatalf("received %q, %v", buf[:n], err)
	}
}

func TestLazy_IdlePeerCallsIn(t *testing.T) {
	hub, reg := lazyHub(t)
	a := leaf(t, 2, hub)
	hub.SetPeers(withoutEndpoint(a.Peer()), wg.Peer{Key: mesh.WireGuardKey{9}})
	if hub.Active(a.Key()) || metric(t, reg, "meshgate_wg_active_peers", "") != 0 || metric(t, reg, "meshgate_wg_peers", "") != 2 {
		t.Error("a peer is active without need")
	}
	datagram(t, a, hub)
	if !hub.Active(a.Key()) || metric(t, reg, "meshgate_wg_active_peers", "") != 1 {
		t.Error("the peer that called is not active")
	}
	hub.SetPeers()
	if metric(t, reg, "meshgate_wg_active_peers", "") != 0 {
		t.Error("a peer that was removed is active")
	}
}

// The first packets for several idle peers arrive, and each is sent once.
func TestLazy_FirstPacketsArrive(t *testing.T) {
	hub, _ := lazyHub(t)
	var leaves []*wgtest.Node
	var peers []wg.Peer
	var servers []net.PacketConn
	for number := byte(2); number < 6; number++ {
		n := leaf(t, number, hub)
		leaves, peers = append(leaves, n), append(peers, n.Peer())
		server, err := n.ListenPacket(timeout(t), "udp", netip.AddrPortFrom(n.IPv6, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		servers = append(servers, server)
	}
	hub.SetPeers(peers...)
	socket, err := hub.ListenPacket(timeout(t), "udp", netip.AddrPortFrom(hub.IPv6, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, n := range leaves {
		if _, err := socket.WriteTo([]byte("only once"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.IPv6, 7))); err != nil {
			t.Fatal(err)
		}
	}
	for _, server := range servers {
		arrives(t, server)
	}
}

func TestLazy_ForwardsFromOneIdlePeerToAnother(t *testing.T) {
	hub, _ := lazyHub(t)
	a, b := leaf(t, 2, hub), leaf(t, 3, hub)
	hub.SetPeers(withoutEndpoint(a.Peer()), b.Peer())
	datagram(t, a, b)
	evict(hub)
	if hub.Active(a.Key()) || hub.Active(b.Key()) {
		t.Fatal("quiet peers stay")
	}
	// Both leaves believe in sessions that the hub has forgotten. What b sends
	// there is lost until it tries a new one; the hub knows where a is.
	datagram(t, hub, a)
	datagram(t, a, b)
}

// Packets for a peer that has to call first are counted and wait for nothing.
func TestLazy_PeerWithoutEndpoint(t *testing.T) {
	hub, reg := lazyHub(t)
	gone := wg.Peer{Key: mesh.WireGuardKey{9}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.99.0.9/32")}}
	hub.SetPeers(gone)
	c, err := hub.DialContext(timeout(t), "udp", "10.99.0.9:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the packet to be dropped", func() bool { return dropped(t, reg, "no_endpoint") == 1 })
	if hub.Active(gone.Key) {
		t.Error("the peer is active")
	}
}

func TestLazy_EvictionKeepsWhatIsKnown(t *testing.T) {
	hub, _ := lazyHub(t)
	a := leaf(t, 2, hub)
	hub.SetPeers(withoutEndpoint(a.Peer(netip.MustParsePrefix("192.0.2.0/24"))))
	datagram(t, a, hub)
	var last mesh.PeerStats
	for round := range 3 {
		var before mesh.PeerStats
		eventually(t, "the traffic to be counted", func() bool {
			before = only(t, hub)
			return before.ReceiveBytes > last.ReceiveBytes && before.TransmitBytes > last.TransmitBytes && before.LastHandshake.After(last.LastHandshake)
		})
		evict(hub)
		if hub.Active(a.Key()) {
			t.Fatal("a quiet peer stays")
		}
		last = only(t, hub)
		// A keepalive may have come in before the peer left.
		if last.Endpoint != a.Peer().Endpoint || last.ReceiveBytes < before.ReceiveBytes || last.TransmitBytes < before.TransmitBytes ||
			last.LastHandshake.Before(before.LastHandshake) || len(last.AllowedIPs) != 3 {
			t.Errorf("round %d: %+v after eviction, was %+v", round, last, before)
		}
		hub.Apply() // which changes nothing
		if hub.Active(a.Key()) {
			t.Fatal("a Set made an idle peer active")
		}
		datagram(t, hub, a) // to where the peer was
	}
}

// A peer that sends something stays, as does one that is about to leave.
func TestLazy_TrafficKeepsAPeer(t *testing.T) {
	hub, _ := lazyHub(t)
	a := leaf(t, 2, hub)
	hub.SetPeers(a.Peer())
	now := time.Now()
	for range 3 {
		datagram(t, a, hub)
		now = now.Add(wg.QuietTime)
		hub.Sweep(now)
		now = now.Add(wg.QuietTime)
		hub.Sweep(now) // it is about to leave, unless a keepalive came in
		if !hub.Active(a.Key()) {
			t.Fatal("a peer was evicted at the first sight of its silence")
		}
		datagram(t, hub, a)
		now = now.Add(time.Minute)
		hub.Sweep(now)
		if !hub.Active(a.Key()) {
			t.Fatal("a peer was evicted that had just sent something")
		}
	}
}

func TestLazy_PinnedPeersStay(t *testing.T) {
	hub, _ := lazyHub(t)
	a, b := leaf(t, 2, hub), leaf(t, 3, hub)
	kept := a.Peer()
	kept.Keepalive = time.Hour
	hub.SetPeers(kept, withoutEndpoint(b.Peer()))
	if !hub.Active(a.Key()) || hub.Active(b.Key()) {
		t.Error("the peer to keep alive is not active, or the other one is")
	}
	x, y := wgtest.Pipe()
	detach, err := hub.AttachPeer(b.Key(), x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(y); err != nil {
		t.Fatal(err)
	}
	datagram(t, hub, b)
	evict(hub)
	if !hub.Active(a.Key()) || !hub.Active(b.Key()) {
		t.Error("a pinned peer was evicted")
	}
	detach()
	evict(hub)
	if hub.Active(b.Key()) {
		t.Error("a peer stays that is not attached any more")
	}
	kept.Keepalive = 0
	hub.SetPeers(kept, b.Peer())
	datagram(t, hub, b) // it is configured to be somewhere else now
	evict(hub)
	if hub.Active(a.Key()) || hub.Active(b.Key()) {
		t.Error("a peer stays that nothing keeps")
	}
}

// As long as there are few peers all of them are ready; a peer whose
// initiations nobody watched then stays until it has made another one.
func TestLazy_BeginsAndEndsWithTheNumberOfPeers(t *testing.T) {
	hub := wgtest.New(t, 1, wg.Options{Resident: 2})
	a, b := leaf(t, 2, hub), leaf(t, 3, hub)
	third := wg.Peer{Key: mesh.WireGuardKey{9}, Endpoint: "127.0.0.1:9", AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.99.0.9/32")}}
	hub.SetPeers(a.Peer(), b.Peer())
	datagram(t, a, hub)
	hub.SetPeers(a.Peer(), b.Peer(), third)
	if !hub.Active(a.Key()) || !hub.Active(b.Key()) || hub.Active(third.Key) {
		t.Error("three peers: want the two that were there active")
	}
	evict(hub)
	if !hub.Active(a.Key()) {
		t.Error("a peer left whose initiations nobody watched")
	}
	before := only2(t, hub, a.Key()).LastHandshake
	a.Handshake(hub.Key())
	eventually(t, "a new session", func() bool { return only2(t, hub, a.Key()).LastHandshake.After(before) })
	evict(hub)
	if hub.Active(a.Key()) {
		t.Error("a quiet peer stays whose last initiation was seen")
	}
	hub.SetPeers(a.Peer(), third)
	if !hub.Active(a.Key()) || !hub.Active(third.Key) {
		t.Error("two peers: not all of them are active")
	}
	datagram(t, hub, a)
	s, err := hub.Stats()
	if err != nil || len(s.Peers) != 2 {
		t.Errorf("%d peers, %v, want 2", len(s.Peers), err)
	}
}

// only2 returns the statistics of one of the peers.
func only2(tb testing.TB, n *wgtest.Node, key mesh.WireGuardKey) mesh.PeerStats {
	tb.Helper()
	s, err := n.Stats()
	if err != nil {
		tb.Fatal(err)
	}
	for _, p := range s.Peers {
		if p.PublicKey == key {
			return p
		}
	}
	tb.Fatalf("no peer %v", key)
	return mesh.PeerStats{}
}

// A peer with a network around it cannot speak for an idle one.
func TestLazy_NobodySpeaksForAnIdlePeer(t *testing.T) {
	hub, _ := lazyHub(t)
	a := leaf(t, 2, hub)
	victim := netip.MustParseAddr("10.99.0.9")
	a.Config.Addresses = append(a.Config.Addresses, netip.PrefixFrom(victim, 32))
	a.Apply()
	wide := a.Peer(netip.MustParsePrefix("10.99.0.0/16"))
	wide.AllowedIPs = append(wide.AllowedIPs[:2], wide.AllowedIPs[3:]...)
	idle := wg.Peer{Key: mesh.WireGuardKey{9}, AllowedIPs: []netip.Prefix{netip.PrefixFrom(victim, 32)}}
	hub.SetPeers(wide, idle)
	server, err := hub.ListenPacket(timeout(t), "udp", netip.AddrPortFrom(hub.IPv4, 7).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(hub.IPv4, 7))
	for _, from := range []netip.Addr{victim, a.IPv4} { // in this order
		c, err := a.ListenPacket(timeout(t), "udp", netip.AddrPortFrom(from, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.WriteTo([]byte("only once"), to); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, from, err := server.ReadFrom(make([]byte, 100))
	if err != nil || from.(*net.UDPAddr).AddrPort().Addr() != a.IPv4 {
		t.Errorf("received from %v, %v, want what the peer may send and nothing else", from, err)
	}
}

// A peer that is removed while it is made active does not come back, and one
// that stays is not lost.
func TestLazy_SetWhilePeersWake(t *testing.T) {
	hub, _ := lazyHub(t)
	a, b := leaf(t, 2, hub), leaf(t, 3, hub)
	stays, comes := withoutEndpoint(a.Peer()), b.Peer()
	socket, err := hub.ListenPacket(timeout(t), "udp", netip.AddrPortFrom(hub.IPv4, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var work sync.WaitGroup
	done := make(chan struct{})
	for _, wake := range []func(){
		func() {
			_, _ = socket.WriteTo([]byte("wake up"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.IPv4, 7)))
		},
		func() { b.Handshake(hub.Key()) },
		func() { evict(hub) },
		func() { hub.Handshake(b.Key()) },
	} {
		work.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					wake()
				}
			}
		})
	}
	for range 50 {
		hub.SetPeers(stays, comes)
		hub.SetPeers(stays)
		if hub.Active(b.Key()) {
			t.Fatal("a peer that was removed came back")
		}
		only(t, hub)
	}
	close(done)
	work.Wait()
	if hub.Active(b.Key()) {
		t.Error("a peer that was removed came back")
	}
	hub.SetPeers(stays, comes)
	datagram(t, a, hub)
	ping(t, b, hub)
}

// Close ends a device while packets wait for idle peers, peers call, and Set
// changes them.
func TestLazy_CloseAtAnyTime(t *testing.T) {
	for round := range 20 {
		n := wgtest.New(t, 1, wg.Options{Resident: -1})
		caller := wg.NewInitiator(t, n.Key())
		peers := []wg.Peer{{Key: caller.Claims, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.99.1.0/24")}}}
		for i := range byte(20) {
			peers = append(peers, wg.Peer{
				Key: mesh.WireGuardKey{1, i}, Endpoint: "127.0.0.1:9",
				AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 2, i}), 32)},
			})
		}
		n.SetPeers(peers...)
		socket, err := n.ListenPacket(timeout(t), "udp", netip.AddrPortFrom(n.IPv4, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		work.Go(func() {
			for i := range byte(20) {
				_, _ = socket.WriteTo([]byte("wake up"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, 2, i}), 7)))
			}
		})
		c := dialHub(t, n)
		work.Go(func() {
			for i := range 20 {
				_, _ = c.Write(caller.Initiation(t, time.Now().Add(time.Duration(i)*time.Second)))
			}
		})
		work.Go(func() {
			config := n.Config
			for i := range 20 {
				config.Peers = peers[:1+i]
				if err := n.Set(context.Background(), config); errors.Is(err, mesh.ErrInvalid) {
					t.Error(err)
				}
			}
		})
		work.Go(func() { evict(n) })
		for range round {
			_, _ = n.Stats()
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		work.Wait()
	}
}

// dialHub opens a UDP socket that is connected to a node's WireGuard port.
func dialHub(tb testing.TB, n *wgtest.Node) net.Conn {
	tb.Helper()
	c, err := net.Dial("udp", fmt.Sprint("127.0.0.1:", n.ListenPort()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}
