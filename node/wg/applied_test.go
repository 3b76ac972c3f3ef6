// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
)

// drawPeers draws peers of which some share a prefix, which no device could do.
func drawPeers(t *rapid.T) []Peer {
	pool := prefixes("10.1.0.0/16", "10.1.1.0/24", "10.2.0.0/16", "10.2.0.7/32", "fd00::1:0/112", "fd00::2:0/112", "::/0")
	var peers []Peer
	for _, id := range rapid.SliceOfNDistinct(rapid.ByteRange(1, 6), 0, 6, rapid.ID).Draw(t, "peers") {
		p := Peer{Key: mesh.WireGuardKey{id}, Name: rapid.SampledFrom([]string{"", "phone", "nas"}).Draw(t, "name")}
		p.Endpoint = rapid.SampledFrom([]string{"", "192.0.2.1:1", "192.0.2.2:2"}).Draw(t, "endpoint")
		p.Keepalive = rapid.SampledFrom([]time.Duration{0, time.Second, 25*time.Second + 5}).Draw(t, "keepalive")
		for range min(len(pool), rapid.IntRange(0, 2).Draw(t, "prefixes")) {
			i := rapid.IntRange(0, len(pool)-1).Draw(t, "prefix")
			p.AllowedIPs = append(p.AllowedIPs, pool[i])
			if rapid.IntRange(0, 9).Draw(t, "shared") > 0 {
				pool = slices.Delete(pool, i, i+1)
			}
		}
		peers = append(peers, p)
	}
	return peers
}

// drawConfig draws a configuration with some of the lists that were there before,
// which may hold a peer once more, and new peers in lists and beside them.
func drawConfig(t *rapid.T, before [][]Peer) Config {
	c := Config{PrivateKey: mesh.WireGuardPrivateKey{1}}
	taken := make(map[mesh.WireGuardKey]bool)
	for _, list := range before {
		if rapid.IntRange(0, 3).Draw(t, "list goes") == 0 {
			continue
		}
		c.Lists = append(c.Lists, list)
		for _, p := range list {
			taken[p.Key] = true
		}
	}
	twice := rapid.IntRange(0, 9).Draw(t, "twice") == 0
	fresh := slices.DeleteFunc(drawPeers(t), func(p Peer) bool { return taken[p.Key] && !twice })
	for len(fresh) > 0 && rapid.Bool().Draw(t, "in a list") {
		n := rapid.IntRange(1, len(fresh)).Draw(t, "list")
		c.Lists = slices.Insert(c.Lists, rapid.IntRange(0, len(c.Lists)).Draw(t, "at"), slices.Clone(fresh[:n]))
		fresh = fresh[n:]
	}
	c.Peers = fresh
	return c
}

// valid reports whether no peer and no prefix is there twice.
func valid(peers []Peer) bool {
	seen, keys := make(map[netip.Prefix]bool), make(map[mesh.WireGuardKey]bool)
	for _, p := range peers {
		if keys[p.Key] {
			return false
		}
		keys[p.Key] = true
		for _, prefix := range p.AllowedIPs {
			if seen[prefix] {
				return false
			}
			seen[prefix] = true
		}
	}
	return true
}

// check compares what the device and the filter do with a configuration.
func check(t *rapid.T, d *Device, peers []Peer, endpoints map[mesh.WireGuardKey]string) {
	checkLibrary(t, d, peers)
	s, err := d.wholeState()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.peers) != len(peers) {
		t.Fatalf("%d peers, want %d", len(s.peers), len(peers))
	}
	routes := make(map[netip.Prefix]bool)
	for _, p := range peers {
		is := s.peers[p.Key]
		if is == nil || is.Keepalive != p.Keepalive.Truncate(time.Second) || is.Endpoint != endpoints[p.Key] ||
			!slices.Equal(sorted(is.AllowedIPs), sorted(p.AllowedIPs)) {
			t.Fatalf("peer %+v of the library, want %+v at %q", is, p, endpoints[p.Key])
		}
		if name := d.peerLog.names[libraryName(p.Key)]; name != p.label() {
			t.Fatalf("the log calls %s %q", p.label(), name)
		}
		for _, prefix := range p.AllowedIPs {
			routes[prefix] = true
		}
	}
	if len(d.peerLog.names) != len(peers) {
		t.Fatalf("the log knows %d names of %d peers", len(d.peerLog.names), len(peers))
	}
	for _, p := range prefixes("10.1.0.0/16", "10.1.1.0/24", "10.2.0.0/16", "10.2.0.7/32", "fd00::1:0/112", "fd00::2:0/112", "::/0") {
		if got := d.filter.load().routes.to(p) != nil; got != routes[p] {
			t.Fatalf("the filter has %v: %v", p, got)
		}
	}
}

// checkLibrary compares what the library has with which peers are active.
func checkLibrary(t *rapid.T, d *Device, peers []Peer) {
	s, err := d.state()
	if err != nil {
		t.Fatal(err)
	}
	var unclaimed []netip.Prefix
	for _, p := range peers {
		c := d.roster.find(p.Key)
		if c.resident() != (s.peers[p.Key] != nil) || !c.resident() && len(peers) <= d.resident {
			t.Fatalf("%d peers, peer %v: active %t, in the library %t", len(peers), p.Key, c.resident(), s.peers[p.Key] != nil)
		}
		if !c.resident() {
			unclaimed = append(unclaimed, p.AllowedIPs...)
		}
		delete(s.peers, p.Key)
	}
	if len(s.peers) > 0 || !slices.Equal(sorted(unclaimed), sorted(s.unclaimed)) {
		t.Fatalf("the library has %d peers too many, and nobody has %v, want %v", len(s.peers), s.unclaimed, unclaimed)
	}
	if len(d.roster.contacts) != len(peers) {
		t.Fatalf("the doorman knows %d of %d peers", len(d.roster.contacts), len(peers))
	}
}

// live lets some peers call, and some time pass.
func live(t *rapid.T, d *Device, peers []Peer, now time.Time) time.Time {
	for _, p := range peers {
		if rapid.IntRange(0, 2).Draw(t, "calls") == 0 {
			if !d.letIn(d.roster.find(p.Key)) {
				t.Fatal("a configured peer was not let in")
			}
		}
	}
	for range rapid.IntRange(0, 4).Draw(t, "sweeps") {
		now = now.Add(quietTime)
		d.sweep(now)
	}
	return now
}

// roam opens, moves and closes the paths of some peers, and notes where these are
// to be.
func roam(t *rapid.T, d *Device, peers []Peer, paths map[mesh.WireGuardKey]*Path, endpoints map[mesh.WireGuardKey]string) {
	for _, p := range peers {
		what := rapid.IntRange(0, 5).Draw(t, "what the path does")
		switch path := paths[p.Key]; {
		case path == nil && what == 0:
			path, err := d.OpenPath(p.Key)
			if err != nil {
				t.Fatal(err)
			}
			paths[p.Key], endpoints[p.Key] = path, p.Endpoint
		case path == nil:
		case what == 1:
			path.Close()
			delete(paths, p.Key)
			endpoints[p.Key] = p.Endpoint
		case what == 2:
			path.Route(NativeSocket, netip.AddrPort{})
			endpoints[p.Key] = ""
		case what == 3:
			to := host(rapid.IntRange(0, 9).Draw(t, "to"))
			path.Route(NativeSocket, to)
			endpoints[p.Key] = to.String()
		}
	}
}

// Whatever is set after what, with errors in between, peers that call, peers that
// leave and paths that move: the device is what the last valid configuration
// says, and peers with a path are there.
func TestSet_AnySequenceEndsWithTheLastConfiguration(t *testing.T) {
	taken, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := uint16(taken.LocalAddr().(*net.UDPAddr).Port)
	rapid.Check(t, func(t *rapid.T) {
		d, err := New(Options{Resident: rapid.SampledFrom([]int{-1, 0, 2}).Draw(t, "resident")})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}()
		now, ctx := time.Now(), context.Background()
		if err := d.Set(ctx, Config{PrivateKey: mesh.WireGuardPrivateKey{1}}); err != nil {
			t.Fatal(err) // up, so that a port which is taken stops a Set half-way
		}
		endpoints, paths := make(map[mesh.WireGuardKey]string), make(map[mesh.WireGuardKey]*Path)
		var lists [][]Peer
		for range rapid.IntRange(1, 12).Draw(t, "sets") {
			c := drawConfig(t, lists)
			lists = c.Lists
			all := slices.Concat(c.lists()...)
			broken := rapid.IntRange(0, 4).Draw(t, "port is taken") == 0
			if broken {
				c.ListenPort = port
			}
			switch err := d.Set(ctx, c); {
			case !valid(all):
				if !errors.Is(err, mesh.ErrInvalid) {
					t.Fatalf("Set = %v, want ErrInvalid", err)
				}
				continue
			case broken:
				if err == nil {
					t.Fatal("Set with a port that is taken succeeded")
				}
				continue // half of it is in force; the next one mends that
			case err != nil:
				t.Fatal(err)
			}
			next := make(map[mesh.WireGuardKey]string)
			for _, p := range all {
				next[p.Key] = endpoints[p.Key] // stays when none is configured
				if p.Endpoint != "" && paths[p.Key] == nil {
					next[p.Key] = p.Endpoint
				}
			}
			endpoints = next
			for key, path := range paths {
				if d.applied.peers[key] != nil {
					continue
				}
				if !path.Closed() {
					t.Fatal("a path has outlived its peer")
				}
				delete(paths, key)
			}
			check(t, d, all, endpoints)
			roam(t, d, all, paths, endpoints)
			check(t, d, all, endpoints)
			now = live(t, d, all, now)
			check(t, d, all, endpoints)
			// The caller's memory is the caller's.
			for i := range c.Peers {
				if rapid.IntRange(0, 9).Draw(t, "scribbles") == 0 && len(c.Peers[i].AllowedIPs) > 0 {
					c.Peers[i].AllowedIPs[0] = netip.Prefix{}
				}
			}
		}
	})
}

// A peer that does not change keeps its prefixes from one that does.
func TestSet_RefusesAPrefixOfAPeerThatStays(t *testing.T) {
	d, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	stays := Peer{Key: mesh.WireGuardKey{1}, AllowedIPs: prefixes("10.1.0.0/16")}
	c := Config{PrivateKey: mesh.WireGuardPrivateKey{1}, Peers: []Peer{stays}}
	if err := d.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.Peers = []Peer{stays, {Key: mesh.WireGuardKey{2}, AllowedIPs: prefixes("10.1.0.0/16")}}
	if err := d.Set(t.Context(), c); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), stays.Key.String()) {
		t.Errorf("Set = %v, want ErrInvalid that names the peer that has it", err)
	}
	// Once that one is gone, or has another, the prefix is free.
	c.Peers[0].AllowedIPs = prefixes("10.2.0.0/16")
	if err := d.Set(t.Context(), c); err != nil {
		t.Error(err)
	}
	c.Peers = []Peer{{Key: mesh.WireGuardKey{3}, AllowedIPs: prefixes("10.1.0.0/16", "10.2.0.0/16")}}
	if err := d.Set(t.Context(), c); err != nil {
		t.Error(err)
	}
}

func TestPrefixSet_WithIsANewSet(t *testing.T) {
	pool := prefixes("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "fd00::/8")
	for i := range 512 {
		pool = append(pool, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255)))
	}
	rapid.Check(t, func(t *rapid.T) {
		var s *prefixSet
		in := make(map[netip.Prefix]*contact)
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			first := rapid.IntRange(0, len(pool)-1).Draw(t, "first")
			some := pool[first:min(len(pool), first+rapid.IntRange(0, 300).Draw(t, "count"))]
			before := maps.Clone(in)
			was := s
			if rapid.Bool().Draw(t, "add") {
				to := new(contact)
				s = s.with(routesTo(to, some...), nil)
				for _, p := range some {
					in[p] = to
				}
			} else {
				s = s.with(nil, some)
				for _, p := range some {
					delete(in, p)
				}
			}
			for at, used := range [][]length{s.used4, s.used6} {
				count := make(map[int]int)
				for p := range in {
					if p.Addr().Is4() == (at == 0) {
						count[p.Bits()]++
					}
				}
				for _, l := range used {
					if count[l.bits] != l.count {
						t.Fatalf("%d prefixes of %d bits, want %d", l.count, l.bits, count[l.bits])
					}
					delete(count, l.bits)
				}
				if len(count) > 0 {
					t.Fatalf("lengths %v are not in use: %v", count, used)
				}
			}
			var routes []route
			for p, to := range in {
				routes = append(routes, route{p, to})
			}
			naive := newPrefixSet(routes)
			for _, p := range pool {
				if s.to(p) != in[p] || was != nil && was.to(p) != before[p] {
					t.Fatalf("%v: %p, want %p; before %p", p, s.to(p), in[p], before[p])
				}
				got, to := s.find(p.Addr())
				want, owner := naive.find(p.Addr())
				if got != want || to != owner {
					t.Fatalf("find %v: %d, want %d", p.Addr(), got, want)
				}
			}
		}
	})
}
