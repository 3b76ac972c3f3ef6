// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestJoin_Refuses(t *testing.T) {
	services := func(n int) []mesh.Service {
		var list []mesh.Service
		for i := range n {
			list = append(list, mesh.Service{Protocol: "tcp", Port: uint16(i + 1)})
		}
		return list
	}
	endpoints := func(list ...string) []netip.AddrPort {
		var out []netip.AddrPort
		for _, e := range list {
			out = append(out, netip.MustParseAddrPort(e))
		}
		return out
	}
	tests := []struct {
		name   string
		change func(r *mesh.JoinRequest)
		want   error
		field  string
	}{
		{"empty id", func(r *mesh.JoinRequest) { r.Node.ID = "" }, mesh.ErrInvalid, "id"},
		{"path as id", func(r *mesh.JoinRequest) { r.Node.ID = "../x" }, mesh.ErrInvalid, "id"},
		{"id that looks like another", func(r *mesh.JoinRequest) { r.Node.ID = "phone\u200b" }, mesh.ErrInvalid, "id"},
		{"reserved id", func(r *mesh.JoinRequest) { r.Node.ID = "leader" }, mesh.ErrInvalid, "id"},
		{"long id", func(r *mesh.JoinRequest) { r.Node.ID = mesh.NodeID(strings.Repeat("a", 254)) }, mesh.ErrInvalid, "id"},
		{"no key", func(r *mesh.JoinRequest) { r.Node.PublicKey = mesh.PublicKey{} }, mesh.ErrInvalid, "public_key"},
		{"key that is no point", func(r *mesh.JoinRequest) { r.Node.PublicKey = mesh.PublicKey{2} }, mesh.ErrInvalid, "public_key"},
		{"key of low order", func(r *mesh.JoinRequest) { r.Node.PublicKey = mesh.PublicKey{1} }, mesh.ErrInvalid, "public_key"},
		{"unspecified endpoint", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "0.0.0.0" }, mesh.ErrInvalid, "primary_endpoint"},
		{"loopback endpoint", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "127.0.0.1" }, mesh.ErrInvalid, "primary_endpoint"},
		{"link-local endpoint", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "fe80::1" }, mesh.ErrInvalid, "primary_endpoint"},
		{"mesh address as endpoint", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "172.16.0.1" }, mesh.ErrInvalid, "primary_endpoint"},
		{"endpoint that is no name", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "a b" }, mesh.ErrInvalid, "primary_endpoint"},
		{"name of the machine itself", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "localhost" }, mesh.ErrInvalid, "primary_endpoint"},
		{"name below it", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "a.LocalHost." }, mesh.ErrInvalid, "primary_endpoint"},
		{"name of a cloud's metadata", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "metadata.google.internal" }, mesh.ErrInvalid, "primary_endpoint"},
		{"name of a link", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "printer.local" }, mesh.ErrInvalid, "primary_endpoint"},
		{"name with a port", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "gw.example.com:18123" }, mesh.ErrInvalid, "without a port"},
		{"name with an empty label", func(r *mesh.JoinRequest) { r.Node.PrimaryEndpoint = "gw..example.com" }, mesh.ErrInvalid, "primary_endpoint"},
		{"multicast endpoint", func(r *mesh.JoinRequest) { r.Node.WireGuardEndpoints = endpoints("224.0.0.1:1") }, mesh.ErrInvalid, "wireguard_endpoints"},
		{"loopback WireGuard endpoint", func(r *mesh.JoinRequest) { r.Node.WireGuardEndpoints = endpoints("[::1]:1") }, mesh.ErrInvalid, "wireguard_endpoints"},
		{"endpoint without port", func(r *mesh.JoinRequest) { r.Node.WireGuardEndpoints = endpoints("192.0.2.1:0") }, mesh.ErrInvalid, "wireguard_endpoints"},
		{"invalid endpoint", func(r *mesh.JoinRequest) { r.Node.WireGuardEndpoints = make([]netip.AddrPort, 1) }, mesh.ErrInvalid, "wireguard_endpoints"},
		{"too many endpoints", func(r *mesh.JoinRequest) { r.Node.WireGuardEndpoints = make([]netip.AddrPort, 17) }, mesh.ErrInvalid, "wireguard_endpoints"},
		{"long zone", func(r *mesh.JoinRequest) { r.Node.Zone = strings.Repeat("z", 1<<20) }, mesh.ErrInvalid, "zone_awareness_id"},
		{"zone with control characters", func(r *mesh.JoinRequest) { r.Node.Zone = "\x1b[2J" }, mesh.ErrInvalid, "zone_awareness_id"},
		{"feature twice", func(r *mesh.JoinRequest) {
			r.Node.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: 1}, {Kind: v1.Feature_NODES, Port: 2}}
		}, mesh.ErrInvalid, "features"},
		{"too many features", func(r *mesh.JoinRequest) { r.Node.Features = make([]mesh.Feature, 65) }, mesh.ErrInvalid, "features"},
		{"service of no protocol", func(r *mesh.JoinRequest) { r.Node.Services = []mesh.Service{{Protocol: "sctp", Port: 1}} }, mesh.ErrInvalid, "services"},
		{"service on port 0", func(r *mesh.JoinRequest) { r.Node.Services = []mesh.Service{{Protocol: "tcp"}} }, mesh.ErrInvalid, "services"},
		{"service twice", func(r *mesh.JoinRequest) {
			r.Node.Services = []mesh.Service{{Protocol: "tcp", Port: 1, Kind: "a"}, {Protocol: "tcp", Port: 1, Kind: "b"}}
		}, mesh.ErrInvalid, "services"},
		{"too many services", func(r *mesh.JoinRequest) { r.Node.Services = services(257) }, mesh.ErrInvalid, "services"},
		{"too many multiaddrs", func(r *mesh.JoinRequest) { r.Node.Multiaddrs = make([]string, 65) }, mesh.ErrInvalid, "multiaddrs"},
		{"long multiaddr", func(r *mesh.JoinRequest) { r.Node.Multiaddrs = []string{strings.Repeat("a", 1025)} }, mesh.ErrInvalid, "multiaddrs"},
		{"itself as peer", func(r *mesh.JoinRequest) { r.DirectPeers = peers("new") }, mesh.ErrInvalid, "direct_peers"},
		{"unknown peer", func(r *mesh.JoinRequest) { r.DirectPeers = peers("nobody") }, mesh.ErrNotFound, `"nobody"`},
		{"unknown protocol", func(r *mesh.JoinRequest) { r.DirectPeers = map[mesh.NodeID]v1.ConnectProtocol{"gw": 9} }, mesh.ErrInvalid, "direct_peers"},
		{"too many peers", func(r *mesh.JoinRequest) {
			var ids []mesh.NodeID
			for i := range 257 {
				ids = append(ids, mesh.NodeID(fmt.Sprint(i)))
			}
			r.DirectPeers = peers(ids...)
		}, mesh.ErrInvalid, "direct_peers"},
		{"too many routes", func(r *mesh.JoinRequest) { r.Routes = make([]netip.Prefix, 257) }, mesh.ErrInvalid, "routes"},
	}
	f := newFixture(t)
	version := f.version()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := f
			f.t = t
			r := request(t, "new")
			tt.change(&r)
			_, err := f.Join(t.Context(), r)
			f.wantRefused(err, tt.want, tt.field)
			if f.version() != version {
				t.Error("it wrote something")
			}
		})
	}
	full := request(t, "full") // all lists at their limits
	full.Node.Services = services(256)
	for i := range 256 {
		full.Routes = append(full.Routes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16))
	}
	for i := range 16 {
		full.Node.WireGuardEndpoints = append(full.Node.WireGuardEndpoints, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1)))
	}
	f.join(full)
}

func peers(ids ...mesh.NodeID) map[mesh.NodeID]v1.ConnectProtocol {
	m := map[mesh.NodeID]v1.ConnectProtocol{}
	for _, id := range ids {
		m[id] = v1.ConnectProtocol_CONNECT_NATIVE
	}
	return m
}

// wide are n networks of /8.
func wide(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("%d.0.0.0/8", 20+i))
	}
	return strings.Join(list, " ")
}

// The routes of a join, and those that somebody puts for the node, are what it
// stands for.
func TestRoutes_CountTogether(t *testing.T) {
	f := newFixture(t)
	me := request(t, "me")
	me.Routes = prefixes(strings.Fields(wide(10))...)
	f.join(me)
	if _, err := f.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return tx.PutRoute(mesh.Route{Name: "more", Node: "me", Destinations: prefixes("50.0.0.0/8", "51.0.0.0/8")})
	}); err != nil {
		t.Fatal(err)
	}
	put := func(n int) error {
		return f.Update(t.Context(), mesh.UpdateRequest{ID: "me", Routes: prefixes(strings.Fields(wide(n))...)})
	}
	if err := put(14); err != nil {
		t.Errorf("sixteen altogether: %v", err)
	}
	f.wantRefused(put(15), mesh.ErrInvalid, "routes")
}

func TestRoutes(t *testing.T) {
	f := newFixtureOf(t, registry.Bootstrap{IPv6: netip.MustParsePrefix("fd9f:86d0:8188::/32")})
	other := request(t, "other")
	other.Routes = prefixes("10.5.0.0/16", "2001:db8:5::/48")
	f.join(other)
	f.join(request(t, "me"))
	tests := []struct {
		routes string
		want   error
	}{
		{"10.6.0.0/16", nil},
		{"192.168.1.0/24 192.168.2.0/24 2001:db8:6::/48", nil},
		{"192.0.2.1/32", nil},
		{"fd00::/48", nil}, // another ULA
		{"0.0.0.0/0", mesh.ErrInvalid},
		{"::/0", mesh.ErrInvalid},
		{"172.16.0.0/12", mesh.ErrInvalid},
		{"172.16.5.0/24", mesh.ErrInvalid}, // inside the mesh
		{"172.0.0.0/8", mesh.ErrInvalid},   // around the mesh
		{"0.0.0.0/1", mesh.ErrInvalid},     // half of everything
		{"128.0.0.0/1", mesh.ErrInvalid},
		{"2000::/3", mesh.ErrInvalid},
		{wide(16), nil},
		{wide(17), mesh.ErrInvalid},
		{"fd9f:86d0:8188::/48", mesh.ErrInvalid},
		{"fd9f:86d0:8188:1::/64", mesh.ErrInvalid},
		{"fc00::/7", mesh.ErrInvalid},
		{"127.0.0.0/8", mesh.ErrInvalid},
		{"169.254.0.0/16", mesh.ErrInvalid},
		{"224.0.0.0/4", mesh.ErrInvalid},
		{"::1/128", mesh.ErrInvalid},
		{"fe80::/64", mesh.ErrInvalid},
		{"ff00::/8", mesh.ErrInvalid},
		{"169.0.0.0/8", mesh.ErrInvalid}, // around link-local
		{"0.0.0.0/8", mesh.ErrInvalid},
		{"255.0.0.0/8", mesh.ErrInvalid},
		{"::/16", mesh.ErrInvalid},
		{"64:ff9b::/96", mesh.ErrInvalid}, // stands for IPv4
		{"2002::/16", mesh.ErrInvalid},
		{"10.6.0.1/16", mesh.ErrInvalid}, // host bits
		{"10.6.0.0/16 10.6.0.0/16", mesh.ErrInvalid},
		{"10.0.0.0/15 10.1.0.0/16", mesh.ErrInvalid},
		{"10.5.0.0/16", mesh.ErrExists}, // the same as other's
		{"10.5.1.0/24", mesh.ErrExists}, // more specific
		{"10.0.0.0/8", mesh.ErrExists},  // wider
		{"2001:db8::/32", mesh.ErrExists},
	}
	for _, tt := range tests {
		routes := prefixes(strings.Fields(tt.routes)...)
		join := request(t, "new")
		join.Routes = routes
		_, joined := f.Join(t.Context(), join)
		updated := f.Update(t.Context(), mesh.UpdateRequest{ID: "me", Routes: routes})
		if tt.want != nil {
			f.wantRefused(joined, tt.want, "routes")
			f.wantRefused(updated, tt.want, "routes")
			continue
		}
		if joined != nil {
			t.Errorf("join with %s: %v", tt.routes, joined)
		}
		f.wantRefused(updated, mesh.ErrExists, `"new"`) // has it now
		if err := f.Leave(t.Context(), "new"); err != nil {
			t.Fatal(err)
		}
		if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "me", Routes: routes}); err != nil {
			t.Errorf("update with %s: %v", tt.routes, err)
		}
	}
}

// TestRoutes_OfTheSameNode shows that a node may change its own routes.
func TestRoutes_OfTheSameNode(t *testing.T) {
	f := newFixture(t)
	r := request(t, "a")
	r.Routes = prefixes("10.5.0.0/16")
	f.join(r)
	r.Routes = prefixes("10.5.0.0/17", "10.6.0.0/16")
	if got := f.join(r).Routes[0].Destinations; len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

// A node that a route names, but for which another one forwards, has nothing of it.
func TestRoutes_OfTheNextHopAreNotTheNodes(t *testing.T) {
	f := newFixture(t)
	f.join(request(t, "a"))
	f.join(request(t, "b"))
	if _, err := f.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return tx.PutRoute(mesh.Route{Name: "office", Node: "a", NextHop: "b", Destinations: prefixes("10.5.0.0/16")})
	}); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"10.5.0.0/16", "10.5.1.0/24", "10.4.0.0/15"} {
		f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: "a", Routes: prefixes(network)}), mesh.ErrExists, `"a" offers`)
	}
	if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "b", Routes: prefixes("10.5.0.0/16")}); err != nil {
		t.Errorf("of the next hop: %v", err)
	}
	// A state of before, in which a offers it as well, and b does not.
	if _, err := f.registry.Update(t.Context(), func(tx *registry.Tx) error {
		tx.DeleteRoute(registry.AutoRoute("b"))
		return tx.PutRoute(mesh.Route{Name: registry.AutoRoute("a"), Node: "a", Destinations: prefixes("10.5.0.0/16")})
	}); err != nil {
		t.Fatal(err)
	}
	again := request(t, "a")
	again.Node.PublicKey, again.Routes = f.registry.Snapshot().Node("a").PublicKey, prefixes("10.5.0.0/16")
	f.join(again)
	f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: "a", Routes: prefixes("10.5.1.0/24")}), mesh.ErrExists, `"a" offers`)
}

// TestRoutes_NeverOverlap joins nodes with random routes: whatever is
// accepted, no two nodes have an address in common.
func TestRoutes_NeverOverlap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFixture(t)
		for i := range rapid.IntRange(1, 6).Draw(rt, "nodes") {
			r := request(t, mesh.NodeID(fmt.Sprint("n", i)))
			for range rapid.IntRange(0, 3).Draw(rt, "routes") {
				addr := netip.AddrFrom4([4]byte{
					rapid.SampledFrom([]byte{10, 11, 172}).Draw(rt, "a"), rapid.SampledFrom([]byte{0, 1, 16, 31}).Draw(rt, "b"),
				})
				r.Routes = append(r.Routes, netip.PrefixFrom(addr, rapid.IntRange(0, 17).Draw(rt, "bits")).Masked())
			}
			_, _ = f.Join(t.Context(), r)
		}
		s := f.registry.Snapshot()
		type owned struct {
			by     string
			prefix netip.Prefix
		}
		var all []owned
		for id, n := range s.Nodes.All() {
			for _, p := range n.Prefixes() {
				all = append(all, owned{string(id), p})
			}
		}
		for _, r := range s.Routes {
			for _, p := range r.Destinations {
				all = append(all, owned{r.Node, p})
			}
		}
		for i, a := range all {
			for _, b := range all[:i] {
				if a.by != b.by && a.prefix.Overlaps(b.prefix) {
					rt.Errorf("%s has %v and %s has %v", a.by, a.prefix, b.by, b.prefix)
				}
			}
		}
	})
}

// TestEndpoints_OnOneMachine shows when loopback is an address to be reached at.
func TestEndpoints_OnOneMachine(t *testing.T) {
	loopback := func(id mesh.NodeID) mesh.JoinRequest {
		r := request(t, id)
		r.Node.PrimaryEndpoint = "127.0.0.1"
		r.Node.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:51820")}
		return r
	}
	f := newFixture(t)
	if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "gw", PrimaryEndpoint: "127.0.0.1"}); err != nil {
		t.Fatalf("of the gateway itself: %v", err)
	}
	f.join(loopback("a"))
	if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "gw", PrimaryEndpoint: "192.0.2.1"}); err != nil {
		t.Fatal(err)
	}
	_, err := f.Join(t.Context(), loopback("b"))
	f.wantRefused(err, mesh.ErrInvalid, "primary_endpoint")
}

// TestUpdate_RefusesNamesOfEveryMachine shows that a member cannot send others
// to themselves later on either.
func TestUpdate_RefusesNamesOfEveryMachine(t *testing.T) {
	f := newFixture(t)
	f.join(request(t, "a"))
	for _, name := range []string{"localhost", "localhost:18123", "x.localhost", "metadata.google.internal", "internal"} {
		err := f.Update(t.Context(), mesh.UpdateRequest{ID: "a", PrimaryEndpoint: name})
		f.wantRefused(err, mesh.ErrInvalid, "primary_endpoint")
	}
	for _, name := range []string{"gw.example.com", "gw", "internal.example.com"} {
		if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "a", PrimaryEndpoint: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
