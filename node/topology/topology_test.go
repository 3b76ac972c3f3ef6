// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/topology"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// builder makes snapshots for tests.
type builder struct{ *mesh.Snapshot }

// newMesh returns a mesh of nodes that run Meshgate and forward. The n-th holds
// 172.16.0.n and fd00:0:0:n::/112, and everything is accepted.
func newMesh(ids ...mesh.NodeID) builder {
	b := builder{&mesh.Snapshot{
		IPv4: netip.MustParsePrefix("172.16.0.0/12"),
		IPv6: netip.MustParsePrefix("fd00::/32"),
		ACLs: []mesh.ACL{{Name: "default-accept", Accept: true}},
	}}
	for i, id := range ids {
		n := i + 1
		v6 := netip.MustParseAddr("fd00::").As16()
		v6[6], v6[7] = byte(n>>8), byte(n)
		b.Nodes = b.Nodes.With(&mesh.Node{
			ID:        id,
			PublicKey: mesh.PublicKey{1, byte(n), byte(n >> 8)},
			IPv4:      netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(n >> 8), byte(n)}), 32),
			IPv6:      netip.PrefixFrom(netip.AddrFrom16(v6), 112),
			Features:  []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_ICE_NEGOTIATION, Port: 8443}},
		})
	}
	return b
}

// ids returns the ids of all nodes, in order.
func (b builder) ids() []mesh.NodeID {
	var ids []mesh.NodeID
	for id := range b.Nodes.All() {
		ids = append(ids, id)
	}
	return ids
}

// link adds an edge of a weight, with attributes such as "ICE".
func (b builder) link(x, y mesh.NodeID, weight int32, attributes ...string) builder {
	e := mesh.Edge{Source: min(x, y), Target: max(x, y), Weight: weight}
	for _, a := range attributes {
		if e.Attributes == nil {
			e.Attributes = make(map[string]string)
		}
		e.Attributes["EDGE_ATTRIBUTE_"+a] = "true"
	}
	b.Edges = b.Edges.With(e)
	return b
}

// change edits a node.
func (b builder) change(id mesh.NodeID, f func(*mesh.Node)) builder {
	n := *b.Node(id)
	f(&n)
	b.Nodes = b.Nodes.With(&n)
	return b
}

// plain makes nodes of those that nobody believes to be a gateway.
func (b builder) plain(ids ...mesh.NodeID) builder {
	for _, id := range ids {
		b.change(id, func(n *mesh.Node) { n.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}} })
	}
	return b
}

// stock makes nodes plain WireGuard peers.
func (b builder) stock(ids ...mesh.NodeID) builder {
	for _, id := range ids {
		b.change(id, func(n *mesh.Node) { n.Features = nil })
	}
	return b
}

// endpoints gives a node a primary endpoint and WireGuard endpoints.
func (b builder) endpoints(id mesh.NodeID, primary string, wireguard ...string) builder {
	return b.change(id, func(n *mesh.Node) {
		n.PrimaryEndpoint = primary
		for _, e := range wireguard {
			n.WireGuardEndpoints = append(n.WireGuardEndpoints, netip.MustParseAddrPort(e))
		}
	})
}

// route adds a route of node, a node id or "group:NAME".
func (b builder) route(name, node string, networks ...string) builder {
	b.Routes = append(b.Routes, mesh.Route{Name: name, Node: node, Destinations: prefixes(networks...)})
	return b
}

// acls replaces the ACLs.
func (b builder) acls(list ...mesh.ACL) builder {
	b.ACLs = list
	return b
}

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// between is an ACL that accepts or denies traffic from one node to another.
func between(accept bool, src, dst string, cidrs ...string) mesh.ACL {
	return mesh.ACL{
		Accept: accept, SourceNodes: []string{src}, DestinationNodes: []string{dst}, DestinationCIDRs: prefixes(cidrs...),
	}
}

func group(name string, nodes ...string) mesh.Group {
	g := mesh.Group{Name: name}
	for _, n := range nodes {
		g.Subjects = append(g.Subjects, mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: n})
	}
	return g
}

// scenarios are the meshes of the golden files.
func scenarios() map[string]builder {
	exits := newMesh("hub", "leaf", "exit1", "exit2").
		link("hub", "leaf", 1).link("hub", "exit1", 5).link("hub", "exit2", 1).
		route("exit", "group:exits", "10.0.0.0/8", "11.0.0.0/8")
	exits.Groups = []mesh.Group{group("exits", "exit1", "exit2", "gone")}

	nextHop := newMesh("hub", "leaf", "site", "router").
		link("hub", "leaf", 1).link("hub", "site", 1).link("hub", "router", 1)
	nextHop.Routes = []mesh.Route{{
		Name: "site", Node: "site", NextHop: "router", Destinations: prefixes("10.7.0.0/16"),
	}}

	duplicates := newMesh("hub", "near", "relay", "far").
		link("hub", "near", 1).link("hub", "relay", 1).link("relay", "far", 1)
	duplicates.change("far", func(n *mesh.Node) {
		n.IPv4, n.IPv6 = duplicates.Node("near").IPv4, duplicates.Node("hub").IPv6
	})

	denied := newMesh("hub", "leaf", "exit1", "exit2").
		link("hub", "leaf", 1).link("hub", "exit1", 5).link("hub", "exit2", 1).
		route("exit", "group:exits", "10.0.0.0/8", "11.0.0.0/8").
		acls(between(false, "leaf", "exit2", "10.0.0.0/8"), between(false, "leaf", "exit2", "172.16.0.4/32"), between(true, "*", "*"))
	denied.Groups = exits.Groups

	gone := newMesh("hub", "leaf", "exit1").link("hub", "leaf", 1).link("hub", "exit1", 5).link("hub", "exit2", 1).
		route("exit", "group:exits", "10.0.0.0/8", "11.0.0.0/8")
	gone.Groups = exits.Groups

	return map[string]builder{
		"alone": newMesh("a"),
		"route of a group, the nearest denied in part": denied,
		"route of a group, the nearest gone":           gone,
		"protocols": newMesh("a", "both", "ice", "libp2p", "native", "none").
			link("a", "both", 1, "LIBP2P", "ICE", "NATIVE").link("a", "ice", 1, "ICE").link("a", "libp2p", 1, "NATIVE", "LIBP2P").
			link("a", "native", 1, "NATIVE").link("a", "none", 1),
		"IPv6 only": newMesh("a", "b", "c").link("a", "b", 1).link("b", "c", 1).
			change("a", func(n *mesh.Node) { n.IPv4 = netip.Prefix{} }).
			change("b", func(n *mesh.Node) { n.IPv4 = netip.Prefix{} }).
			change("c", func(n *mesh.Node) { n.IPv4 = netip.Prefix{} }).
			endpoints("b", "2001:db8::1", "[2001:db8::1]:7"),
		"ACL on the other family": newMesh("a", "b").link("a", "b", 1).
			acls(between(true, "a", "b", "fd00::/32")),
		"extreme weights": newMesh("a", "high", "low", "zero", "z").
			link("a", "high", math.MaxInt32).link("a", "low", math.MinInt32).link("a", "zero", 0).
			link("high", "z", math.MaxInt32).link("low", "z", math.MinInt32).link("zero", "z", 0).link("high", "low", -1),
		"star": newMesh("hub", "b", "c", "d").
			link("hub", "b", 1).link("hub", "c", 1, "ICE").link("hub", "d", 1, "LIBP2P", "ICE").
			endpoints("hub", "192.0.2.1", "10.9.9.9:51820", "192.0.2.1:51821"),
		"chain": newMesh("a", "b", "c", "d", "island").
			link("a", "b", 1).link("b", "c", 1).link("c", "d", 1),
		"weights": newMesh("a", "heavy", "light", "z").
			link("a", "heavy", 1).link("a", "light", 1).link("heavy", "z", 99).link("light", "z", 1),
		"a direct edge beats any path": newMesh("a", "b", "hub").
			link("a", "b", 99).link("a", "hub", 0).link("b", "hub", 0),
		"nodes without a role forward nothing": newMesh("carol", "eve", "gw1", "gw2").
			plain("carol", "eve").link("carol", "gw2", 1).link("carol", "eve", 1).link("eve", "gw1", 1).link("gw1", "gw2", 1),
		"stock peers forward nothing": newMesh("a", "stock", "behind").
			stock("stock").link("a", "stock", 1).link("stock", "behind", 1),
		"placeholders are no peers": newMesh("a", "b", "c").
			change("b", func(n *mesh.Node) { n.PublicKey = mesh.PublicKey{} }).
			link("a", "b", 1).link("b", "c", 1).link("a", "gone", 1),
		"no ACL": newMesh("a", "b").link("a", "b", 1).acls(),
		"ACL between leaves": newMesh("hub", "b", "c", "d").
			link("hub", "b", 1).link("hub", "c", 1).link("hub", "d", 1).
			acls(between(false, "b", "d"), between(true, "*", "*")),
		"ACL on one family": newMesh("a", "b").link("a", "b", 1).
			acls(between(true, "a", "b", "172.16.0.0/12")),
		"ACL within the network of a node": newMesh("a", "b").link("a", "b", 1).
			acls(between(false, "*", "b", "fd00:0:0:2::8000/113"), between(true, "*", "*")),
		"relay that may not": newMesh("a", "relay", "c").
			link("a", "relay", 1).link("relay", "c", 1).
			acls(between(true, "a", "relay"), between(true, "a", "c")),
		"routes": newMesh("hub", "leaf", "router").
			link("hub", "leaf", 1).link("hub", "router", 1).
			route("router-auto", "router", "10.0.0.0/8", "2001:db8::/32", "172.16.5.0/24", "169.254.169.254/32").
			route("leaf-auto", "leaf", "10.0.0.0/8", "10.1.0.0/16"),
		"ACL on routes": newMesh("leaf", "router").link("leaf", "router", 1).
			route("router-auto", "router", "10.0.0.0/8", "192.168.0.0/16").
			acls(between(false, "leaf", "router", "192.168.0.0/16"), between(false, "leaf", "router", "10.64.0.0/10"),
				between(true, "*", "*")),
		"route of a group":    exits,
		"route by next hop":   nextHop,
		"duplicate addresses": duplicates,
		"one family": newMesh("a", "b", "c").link("a", "b", 1).link("b", "c", 1).
			change("a", func(n *mesh.Node) { n.IPv4 = netip.Prefix{} }).
			change("c", func(n *mesh.Node) { n.IPv6 = netip.Prefix{} }).
			route("c-auto", "c", "10.0.0.0/8"),
	}
}

// render writes a plan for people.
func render(p mesh.Plan) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s\n", p.Self.ID)
	for peer := range p.Peers.All() {
		fmt.Fprintf(&out, "  peer %s %s endpoint %q\n", peer.Node.ID,
			strings.ToLower(strings.TrimPrefix(peer.Protocol.String(), "CONNECT_")), peer.Endpoint)
		for _, allowed := range peer.AllowedIPs {
			fmt.Fprintf(&out, "    %s\n", allowed)
		}
	}
	for _, r := range p.Routes {
		fmt.Fprintf(&out, "  route %s\n", r)
	}
	return out.String()
}

func TestFor_Golden(t *testing.T) {
	for name, b := range scenarios() {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			for _, id := range b.ids() {
				plan, err := topology.For(b.Snapshot, id)
				if err != nil {
					t.Fatal(err)
				}
				got.WriteString(render(plan))
			}
			file := filepath.Join("testdata", strings.ReplaceAll(strings.ReplaceAll(name, ",", ""), " ", "-")+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFor_UnknownNode(t *testing.T) {
	_, err := topology.For(newMesh("a").Snapshot, "b")
	if !errors.Is(err, mesh.ErrNotFound) || !strings.Contains(err.Error(), `"b"`) {
		t.Errorf("error %v, want one that wraps ErrNotFound and names b", err)
	}
}

func TestFor_ChoosesEndpoints(t *testing.T) {
	type side struct {
		zone, primary string
		wireguard     []string
	}
	cases := []struct {
		name       string
		self, peer side
		want       string
	}{
		{name: "none"},
		{name: "primary without a port", peer: side{primary: "192.0.2.1"}, want: "192.0.2.1:51820"},
		{
			name: "primary among the WireGuard endpoints",
			peer: side{primary: "192.0.2.1", wireguard: []string{"10.0.0.1:1", "192.0.2.1:2"}}, want: "192.0.2.1:2",
		},
		{
			name: "a longer address with the same beginning",
			peer: side{primary: "192.0.2.1", wireguard: []string{"192.0.2.12:1", "192.0.2.1:2"}}, want: "192.0.2.1:2",
		},
		{
			name: "primary before a NAT",
			peer: side{primary: "192.0.2.1", wireguard: []string{"10.0.0.1:7"}}, want: "192.0.2.1:7",
		},
		{
			name: "primary by name",
			peer: side{primary: "gate.example.com", wireguard: []string{"10.0.0.1:7"}}, want: "gate.example.com:7",
		},
		{name: "IPv6 primary", peer: side{primary: "2001:db8::1"}, want: "[2001:db8::1]:51820"},
		{
			name: "public endpoint without primary",
			peer: side{wireguard: []string{"10.0.0.1:1", "fd12::1:1", "[2001:db8::1]:2"}[:1]}, want: "",
		},
		{
			name: "first public endpoint without primary",
			peer: side{wireguard: []string{"10.0.0.1:1", "[fe80::1]:1", "[2001:db8::1]:2", "192.0.2.1:3"}},
			want: "[2001:db8::1]:2",
		},
		{
			name: "same zone, same link",
			self: side{zone: "z", wireguard: []string{"10.0.1.9:1"}},
			peer: side{zone: "z", primary: "192.0.2.1", wireguard: []string{"192.0.2.1:1", "10.0.0.5:1", "10.0.1.5:1"}},
			want: "10.0.1.5:1",
		},
		{
			name: "same zone, same IPv6 link",
			self: side{zone: "z", wireguard: []string{"[2001:db8:0:1::1]:1"}},
			peer: side{zone: "z", primary: "192.0.2.1", wireguard: []string{"10.0.0.5:1", "[2001:db8:0:1::2]:1"}},
			want: "[2001:db8:0:1::2]:1",
		},
		{
			name: "same zone, private endpoint",
			self: side{zone: "z"},
			peer: side{zone: "z", primary: "192.0.2.1", wireguard: []string{"192.0.2.1:1", "10.0.0.5:1"}},
			want: "10.0.0.5:1",
		},
		{
			name: "same zone, nothing local",
			self: side{zone: "z", wireguard: []string{"10.0.1.9:1"}},
			peer: side{zone: "z", primary: "192.0.2.1", wireguard: []string{"192.0.2.1:1"}},
			want: "192.0.2.1:1",
		},
		{
			name: "other zone",
			self: side{zone: "y", wireguard: []string{"10.0.1.9:1"}},
			peer: side{zone: "z", primary: "192.0.2.1", wireguard: []string{"10.0.1.5:1", "192.0.2.1:2"}},
			want: "192.0.2.1:2",
		},
		{
			name: "no zone is no common zone",
			self: side{wireguard: []string{"10.0.1.9:1"}},
			peer: side{primary: "192.0.2.1", wireguard: []string{"10.0.1.5:1", "192.0.2.1:2"}},
			want: "192.0.2.1:2",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newMesh("a", "b").link("a", "b", 1).
				endpoints("a", c.self.primary, c.self.wireguard...).
				endpoints("b", c.peer.primary, c.peer.wireguard...)
			b.change("a", func(n *mesh.Node) { n.Zone = c.self.zone }).change("b", func(n *mesh.Node) { n.Zone = c.peer.zone })
			plan, err := topology.For(b.Snapshot, "a")
			if err != nil {
				t.Fatal(err)
			}
			if got := first(t, plan).Endpoint; got != c.want {
				t.Errorf("endpoint %q, want %q", got, c.want)
			}
		})
	}
}

// star is a hub with n leaves behind it.
func star(n int) builder {
	ids := []mesh.NodeID{"hub"}
	for i := range n {
		ids = append(ids, mesh.NodeID(fmt.Sprintf("leaf%04d", i)))
	}
	b := newMesh(ids...)
	for _, id := range ids[1:] {
		b.link("hub", id, 1)
	}
	return b
}

func BenchmarkFor(b *testing.B) {
	big := star(1000)
	var members []string
	for i := range 1000 {
		members = append(members, fmt.Sprintf("leaf%04d", i))
	}
	grouped := star(1000).acls(
		between(false, "leaf0001", "leaf0002"), between(true, "group:team", "group:team"), between(true, "*", "hub"))
	grouped.Groups = []mesh.Group{group("team", members...)}
	full := newMesh()
	for i := range 100 {
		id := mesh.NodeID(fmt.Sprintf("n%03d", i))
		n := *newMesh("x").Node("x")
		n.ID = id
		full.Nodes = full.Nodes.With(&n)
		for other := range full.Nodes.All() {
			if other != id {
				full.link(id, other, 99)
			}
		}
	}
	for name, c := range map[string]struct {
		b    builder
		self mesh.NodeID
	}{
		"star of 1000, hub": {big, "hub"}, "star of 1000, leaf": {big, "leaf0007"},
		"star of 1000, leaf, groups": {grouped, "leaf0007"}, "full mesh of 100": {full, "n050"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := topology.For(c.b.Snapshot, c.self); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A state of before may have a node stand for everything: nobody's plan does.
func TestFor_NobodyStandsForEverything(t *testing.T) {
	b := newMesh("hub", "leaf", "mallory").link("hub", "leaf", 1).link("hub", "mallory", 1)
	b.Groups = []mesh.Group{group("g", "mallory")}
	for i := range 40 {
		b.route(fmt.Sprint("r", i), "group:g", fmt.Sprintf("%d.0.0.0/8", 20+i))
	}
	b.route("all", "mallory", "0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0").route("small", "mallory", "192.168.7.0/24")
	for _, id := range []mesh.NodeID{"hub", "leaf"} {
		plan, err := topology.For(b.Snapshot, id)
		if err != nil {
			t.Fatal(err)
		}
		wide := 0
		for _, p := range plan.Routes {
			if mesh.TooWide(p) {
				t.Errorf("%s: a route to %v", id, p)
			}
			if p.Bits() == 8 {
				wide++
			}
		}
		if wide != 15 || !slices.Contains(plan.Routes, netip.MustParsePrefix("192.168.7.0/24")) {
			t.Errorf("%s: %d networks of /8 and routes %v, want 15 and the small one", id, wide, plan.Routes)
		}
	}
}
