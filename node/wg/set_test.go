// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"
)

// only returns the statistics of a node's only peer.
func only(tb testing.TB, n *wgtest.Node) mesh.PeerStats {
	tb.Helper()
	s, err := n.Stats()
	if err != nil || len(s.Peers) != 1 {
		tb.Fatalf("%d peers, %v, want one", len(s.Peers), err)
	}
	return s.Peers[0]
}

// ping sends a byte from a to b and back.
func ping(tb testing.TB, a, b *wgtest.Node) {
	tb.Helper()
	client, server := connect(tb, a, b, b.IPv4)
	defer client.Close()
	defer server.Close()
	transfer(tb, client, server, 1)
	transfer(tb, server, client, 1)
}

func TestSet_KeepsARunningStream(t *testing.T) {
	a, b := wgtest.Pair(t)
	client, server := connect(t, a, b, b.IPv4)
	before := only(t, a).LastHandshake
	var setting sync.WaitGroup
	setting.Go(func() {
		for extra := byte(100); extra < 150; extra++ {
			// The same once more; then with another address and another peer.
			a.Apply()
			a.Config.Addresses = append(a.Config.Addresses[:2], netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 1, extra}), 32))
			a.Config.Peers = append(a.Config.Peers[:1], wg.Peer{Key: mesh.WireGuardKey{1, extra}, Keepalive: time.Minute})
			a.Apply()
		}
	})
	transfer(t, client, server, 8<<20)
	transfer(t, server, client, 1<<20)
	setting.Wait()
	a.SetPeers(b.Peer())
	if after := only(t, a).LastHandshake; !after.Equal(before) {
		t.Errorf("last handshake moved from %v to %v: the session was lost", before, after)
	}
}

func TestSet_KeepsALearnedEndpoint(t *testing.T) {
	a, b := wgtest.Pair(t)
	nowhere := b.Peer()
	nowhere.Endpoint = "127.0.0.1:1"
	a.SetPeers(nowhere)
	ping(t, b, a)
	learned := only(t, a).Endpoint
	if learned != b.Peer().Endpoint {
		t.Fatalf("endpoint %q, want %q as learned", learned, b.Peer().Endpoint)
	}
	nowhere.Keepalive = 25 * time.Second
	nowhere.AllowedIPs = append(nowhere.AllowedIPs, netip.MustParsePrefix("192.0.2.0/24"))
	a.SetPeers(nowhere)
	if got := only(t, a); got.Endpoint != learned || got.Keepalive != 25*time.Second || len(got.AllowedIPs) != 3 {
		t.Errorf("after another change of the peer: %+v", got)
	}
	// What the peer sends from now on would be learned from again.
	b.SetPeers()
	settled(t, a)
	nowhere.Endpoint = "127.0.0.1:2"
	a.SetPeers(nowhere)
	if got := only(t, a).Endpoint; got != "127.0.0.1:2" {
		t.Errorf("endpoint %q, want the one that was configured anew", got)
	}
	nowhere.Endpoint = ""
	a.SetPeers(nowhere)
	if got := only(t, a).Endpoint; got != "127.0.0.1:2" {
		t.Errorf("endpoint %q, want the last one when none is configured", got)
	}
}

// settled waits until nothing of its only peer is on the way to a node any more.
func settled(tb testing.TB, n *wgtest.Node) {
	tb.Helper()
	for last := uint64(0); ; {
		now := only(tb, n).ReceiveBytes
		if now == last {
			return
		}
		last = now
		<-time.After(100 * time.Millisecond)
	}
}

func TestSet_FollowsTheConfiguration(t *testing.T) {
	reg := prometheus.NewRegistry()
	n := wgtest.New(t, 1, wg.Options{Registerer: reg, InterfaceName: "mesh7"})
	peer := func(id byte, keepalive time.Duration, allowed ...string) wg.Peer {
		p := wg.Peer{Key: mesh.WireGuardKey{id}, Keepalive: keepalive}
		for _, a := range allowed {
			p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(a))
		}
		return p
	}
	for _, peers := range [][]wg.Peer{
		{peer(1, 0, "10.1.0.0/16"), peer(2, time.Second, "10.2.0.0/16", "fd00::/64")},
		{peer(1, 0, "10.2.0.0/16"), peer(2, 0, "10.1.0.0/16", "fd00::/64")}, // networks change hands
		{peer(2, 0), peer(3, 90*time.Second+5, "10.1.0.0/16", "10.1.2.0/24")},
		{peer(3, 90*time.Second, "10.1.0.0/16", "10.1.2.0/24"), peer(4, 0, "10.1.2.3/32")},
		{},
		{peer(1, 65535*time.Second, "0.0.0.0/0", "::/0")},
	} {
		n.SetPeers(peers...)
		s, err := n.Stats()
		if err != nil {
			t.Fatal(err)
		}
		want := []mesh.PeerStats{}
		for _, p := range peers {
			want = append(want, mesh.PeerStats{PublicKey: p.Key, Keepalive: p.Keepalive.Truncate(time.Second), AllowedIPs: p.AllowedIPs})
		}
		if diff := cmp.Diff(want, s.Peers, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("peers (-want +got):\n%s", diff)
		}
		if s.Name != "mesh7" || s.Type != "netstack" || s.PublicKey != n.Key() || s.ListenPort != n.ListenPort() || s.ListenPort == 0 || len(s.Addresses) != 2 {
			t.Errorf("interface: %+v", s)
		}
		if got := metric(t, reg, "meshgate_wg_peers", ""); int(got) != len(peers) {
			t.Errorf("%v peers counted, want %d", got, len(peers))
		}
	}
}

func TestSet_MovesThePort(t *testing.T) {
	a, b := wgtest.Pair(t)
	ping(t, a, b)
	first := b.ListenPort()
	b.Config.ListenPort = freePort(t)
	b.Apply()
	if got := b.ListenPort(); got != b.Config.ListenPort || got == first {
		t.Fatalf("port %d, want %d", got, b.Config.ListenPort)
	}
	a.SetPeers(b.Peer())
	ping(t, a, b)
	b.Config.ListenPort = 0
	b.Apply()
	if got, want := b.Peer().Endpoint, a.Config.Peers[0].Endpoint; got != want {
		t.Errorf("port 0 moved the device to %s", got)
	}
	taken, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b.Config.ListenPort = taken.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if err := b.Set(timeout(t), b.Config); err == nil {
		t.Error("Set to a port that is taken succeeded")
	}
	ping(t, a, b)
}

func TestSet_ComesUpWhenThePortIsFree(t *testing.T) {
	taken, err := net.ListenPacket("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), freePort(t)).String())
	if err != nil {
		t.Fatal(err)
	}
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	d, err := wg.New(wg.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := wg.Config{PrivateKey: key.WireGuard(), ListenPort: taken.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
	if err := d.Set(timeout(t), c); err == nil {
		t.Error("Set with a port that is taken succeeded")
	}
	taken.Close()
	if err := d.Set(timeout(t), c); err != nil || d.ListenPort() != c.ListenPort {
		t.Errorf("Set = %v, port %d, want %d", err, d.ListenPort(), c.ListenPort)
	}
}

// freePort returns a UDP port that nobody has. It is one that the host gives to
// nobody who does not ask for it, so that it stays free.
func freePort(tb testing.TB) uint16 {
	tb.Helper()
	for port := uint16(28000); port < 32000; port++ {
		c, err := net.ListenPacket("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
		if err != nil {
			continue
		}
		c.Close()
		return port
	}
	tb.Fatal("no free port")
	return 0
}

func TestSet_ChangesTheKey(t *testing.T) {
	a, b := wgtest.Pair(t)
	ping(t, a, b)
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	b.Config.PrivateKey = key.WireGuard()
	b.Apply()
	a.SetPeers(b.Peer())
	ping(t, a, b)
}

func TestSet_RemovedPeerLosesAccess(t *testing.T) {
	a, b := wgtest.Pair(t)
	client, server := connect(t, a, b, b.IPv4)
	transfer(t, server, client, 1)
	b.SetPeers()
	if _, err := client.Write([]byte("still there?")); err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(make([]byte, 100)); err == nil {
		t.Errorf("read %d bytes of a peer that was removed", n)
	}
	if _, err := b.DialContext(timeout(t), "tcp", netip.AddrPortFrom(a.IPv4, 80).String()); !errors.Is(err, wg.ErrNoRoute) {
		t.Errorf("dial = %v, want ErrNoRoute", err)
	}
}

func TestSet_Refuses(t *testing.T) {
	n := wgtest.New(t, 1, wg.Options{})
	p := func(edit func(*wg.Peer)) func(*wg.Config) {
		return func(c *wg.Config) {
			peer := wg.Peer{Key: mesh.WireGuardKey{2}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}
			edit(&peer)
			c.Peers = append(c.Peers, wg.Peer{Key: mesh.WireGuardKey{1}, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, peer)
		}
	}
	for name, edit := range map[string]func(*wg.Config){
		"no key":           func(c *wg.Config) { c.PrivateKey = mesh.WireGuardPrivateKey{} },
		"invalid address":  func(c *wg.Config) { c.Addresses = append(c.Addresses, netip.Prefix{}) },
		"loopback address": func(c *wg.Config) { c.Addresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")} },
		"mapped address": func(c *wg.Config) {
			c.Addresses = []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.1"), 128)}
		},
		"peer without key":   p(func(p *wg.Peer) { p.Key = mesh.WireGuardKey{} }),
		"peer twice":         p(func(p *wg.Peer) { p.Key = mesh.WireGuardKey{1} }),
		"ourselves as peer":  p(func(p *wg.Peer) { p.Key = n.Key() }),
		"prefix twice":       p(func(p *wg.Peer) { p.AllowedIPs = append(p.AllowedIPs, p.AllowedIPs[0]) }),
		"prefix of another":  p(func(p *wg.Peer) { p.AllowedIPs[0] = netip.MustParsePrefix("10.1.0.0/16") }),
		"unmasked prefix":    p(func(p *wg.Peer) { p.AllowedIPs[0] = netip.MustParsePrefix("10.2.0.1/16") }),
		"invalid prefix":     p(func(p *wg.Peer) { p.AllowedIPs[0] = netip.Prefix{} }),
		"mapped prefix":      p(func(p *wg.Peer) { p.AllowedIPs[0] = netip.MustParsePrefix("::ffff:0:0/96") }),
		"negative keepalive": p(func(p *wg.Peer) { p.Keepalive = -1 }),
		"long keepalive":     p(func(p *wg.Peer) { p.Keepalive = 65536 * time.Second }),
		"no port":            p(func(p *wg.Peer) { p.Endpoint = "192.0.2.1" }),
		"port 0":             p(func(p *wg.Peer) { p.Endpoint = "192.0.2.1:0" }),
		"port by name":       p(func(p *wg.Peer) { p.Endpoint = "192.0.2.1:wireguard" }),
		"no host":            p(func(p *wg.Peer) { p.Endpoint = ":51820" }),
		"line break":         p(func(p *wg.Peer) { p.Endpoint = "192.0.2.1:51820\npublic_key=00" }),
	} {
		t.Run(name, func(t *testing.T) {
			c := n.Config
			edit(&c)
			if err := n.Set(timeout(t), c); !errors.Is(err, mesh.ErrInvalid) {
				t.Errorf("Set = %v, want ErrInvalid", err)
			}
			if s, err := n.Stats(); err != nil || len(s.Peers) != 0 {
				t.Errorf("%d peers, %v, want no change", len(s.Peers), err)
			}
		})
	}
}

func TestNew_Refuses(t *testing.T) {
	for name, o := range map[string]wg.Options{
		"small mtu": {MTU: 1279}, "lean tun": {Mode: wg.ModeTUN, Lean: true}, "large mtu": {MTU: 65500}, "negative mtu": {MTU: -1},
		"address": {Addresses: []netip.Prefix{netip.MustParsePrefix("224.0.0.1/32")}},
	} {
		if d, err := wg.New(o); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%s: New = %v, %v, want ErrInvalid", name, d, err)
		}
	}
	reg := prometheus.NewRegistry()
	d, err := wg.New(wg.Options{Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wg.New(wg.Options{Registerer: reg}); err == nil {
		t.Error("a second device registered the same metrics")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = wg.New(wg.Options{Registerer: reg, MTU: 9000}); err != nil {
		t.Fatalf("New after Close = %v", err)
	}
	d.Close()
}

func TestSet_AddressesChange(t *testing.T) {
	a, b := wgtest.Pair(t)
	client, server := connect(t, a, b, b.IPv4)
	second := netip.MustParsePrefix("10.99.1.2/32")
	first := b.Config.Addresses
	b.Config.Addresses = append([]netip.Prefix{second}, first...)
	b.Apply()
	a.SetPeers(b.Peer())
	c2, s2 := connect(t, a, b, second.Addr())
	transfer(t, c2, s2, 1<<16)
	b.Config.Addresses = first
	b.Apply()
	if _, err := b.Listen(timeout(t), "tcp", netip.AddrPortFrom(second.Addr(), 0).String()); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("Listen on an address that was taken away = %v, want ErrInvalid", err)
	}
	transfer(t, client, server, 1<<16)
}

// fakeDNS makes the process's resolver know what answer says, which is asked
// for names without the last dot.
func fakeDNS(tb testing.TB, answer func(name string) (netip.Addr, bool)) {
	tb.Helper()
	old := net.DefaultResolver
	tb.Cleanup(func() { net.DefaultResolver = old })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go serveDNS(server, answer)
		return client, nil
	}}
}

// serveDNS answers one query over a stream.
func serveDNS(c net.Conn, answer func(name string) (netip.Addr, bool)) {
	defer c.Close()
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	buf := make([]byte, int(size[0])<<8|int(size[1]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return
	}
	var query dnsmessage.Message
	if err := query.Unpack(buf); err != nil {
		return
	}
	q := query.Questions[0]
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, RCode: dnsmessage.RCodeNameError},
		Questions: query.Questions,
	}
	if addr, ok := answer(strings.TrimSuffix(q.Name.String(), ".")); ok {
		reply.RCode = dnsmessage.RCodeSuccess
		if q.Type == dnsmessage.TypeA {
			reply.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: addr.As4()},
			}}
		}
	}
	packed, err := reply.Pack()
	if err != nil {
		return
	}
	_, _ = c.Write(append([]byte{byte(len(packed) >> 8), byte(len(packed))}, packed...)) // the client may be gone
}

func TestSet_ResolvesNames(t *testing.T) {
	var known atomic.Bool
	var asked atomic.Int64
	fakeDNS(t, func(name string) (netip.Addr, bool) {
		asked.Add(1)
		return netip.AddrFrom4([4]byte{192, 0, 2, 7}), name == "gateway.example.com" && known.Load()
	})
	var log bytes.Buffer
	n := wgtest.New(t, 1, wg.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	peer := wg.Peer{Key: mesh.WireGuardKey{1}, Endpoint: "gateway.example.com:51820"}
	n.SetPeers(peer)
	if got := only(t, n).Endpoint; got != "" {
		t.Errorf("endpoint %q of a name that does not resolve", got)
	}
	if !strings.Contains(log.String(), "gateway.example.com") {
		t.Errorf("log %q does not name the endpoint", log.String())
	}
	known.Store(true)
	n.SetPeers(peer)
	if got := only(t, n).Endpoint; got != "192.0.2.7:51820" {
		t.Errorf("endpoint %q after the name resolved", got)
	}
	before := asked.Load()
	n.SetPeers(peer)
	if asked.Load() != before {
		t.Error("a name that had resolved was looked up again")
	}
}

// A list that was there before is looked at again as long as a name of its peers
// does not resolve.
func TestSet_ResolvesNamesOfLists(t *testing.T) {
	var known atomic.Bool
	fakeDNS(t, func(string) (netip.Addr, bool) { return netip.AddrFrom4([4]byte{192, 0, 2, 7}), known.Load() })
	n := wgtest.New(t, 1, wg.Options{})
	n.Config.Lists = [][]wg.Peer{{{Key: mesh.WireGuardKey{1}, Endpoint: "gateway.example.com:51820"}}}
	for range 2 {
		n.Apply()
		if got := only(t, n).Endpoint; got != "" {
			t.Errorf("endpoint %q of a name that does not resolve", got)
		}
	}
	known.Store(true)
	n.Apply()
	if got := only(t, n).Endpoint; got != "192.0.2.7:51820" {
		t.Errorf("endpoint %q after the name resolved", got)
	}
}

// What is in a list as before may be there once more, or be our own key by now.
func TestSet_RefusesKeysOfListsThatStay(t *testing.T) {
	n, other := wgtest.New(t, 1, wg.Options{}), wgtest.New(t, 2, wg.Options{})
	n.Config.Lists = [][]wg.Peer{{other.Peer()}}
	n.Apply()
	twice := n.Config
	twice.Lists = [][]wg.Peer{n.Config.Lists[0], n.Config.Lists[0]}
	if err := n.Set(t.Context(), twice); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("Set of a list that is there twice = %v, want ErrInvalid", err)
	}
	n.Config.PrivateKey = other.Config.PrivateKey
	if err := n.Set(t.Context(), n.Config); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("Set = %v, want ErrInvalid", err)
	}
}

func TestSet_EndsWithItsContext(t *testing.T) {
	asked := make(chan struct{}, 100)
	release := make(chan struct{})
	fakeDNS(t, func(string) (netip.Addr, bool) {
		asked <- struct{}{}
		<-release
		return netip.Addr{}, false
	})
	defer close(release)
	n := wgtest.New(t, 1, wg.Options{})
	c := n.Config
	c.Peers = []wg.Peer{{Key: mesh.WireGuardKey{1}, Endpoint: "slow.example.com:51820"}}
	ctx, cancel := context.WithCancel(context.Background())
	first, second := make(chan error), make(chan error)
	go func() { first <- n.Set(ctx, c) }()
	<-asked
	ended, end := context.WithCancel(context.Background())
	end()
	go func() { second <- n.Set(ended, c) }()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting Set = %v, want Canceled", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("resolving Set = %v, want Canceled", err)
	}
}
