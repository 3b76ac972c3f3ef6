// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/topology"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// threeGateways is a mesh of gateways that all reach each other, with a node at
// each that takes part in pairs and that nobody can call.
func threeGateways() builder {
	b := newMesh("a", "b", "c", "gw1", "gw2", "gw3").paths("a", "b", "c").
		link("a", "gw1", 1).link("b", "gw2", 1).link("c", "gw3", 1)
	for i, id := range []mesh.NodeID{"gw1", "gw2", "gw3"} {
		b.endpoints(id, netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}).String())
		b.change(id, func(n *mesh.Node) {
			n.Features = append(n.Features, mesh.Feature{Kind: v1.Feature_MEMBERSHIP, Port: 8443})
		})
	}
	return b
}

func planOf(t testing.TB, b builder, id mesh.NodeID) mesh.Plan {
	t.Helper()
	plan, err := topology.For(b.Snapshot, id)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// An edge between two nodes that have to find a path first takes nothing from the
// gateways: not from these two, nor from anybody.
func TestFor_AnEdgeThatNobodyCanCallAlongIsOnlyAPair(t *testing.T) {
	for _, attributes := range [][]string{nil, {"ICE"}, {"LIBP2P"}} {
		for _, ends := range [][2]mesh.NodeID{{"a", "c"}, {"a", "b"}, {"b", "c"}} {
			for _, weight := range []int32{-9, 1, 1000} {
				plain, linked := threeGateways(), threeGateways().link(ends[0], ends[1], weight, attributes...)
				for _, id := range linked.ids() {
					want, got := planOf(t, plain, id), planOf(t, linked, id)
					var other mesh.NodeID
					switch id {
					case ends[0]:
						other = ends[1]
					case ends[1]:
						other = ends[0]
					}
					peer, ok := got.Peers.Get(other)
					if ok != (other != "") {
						t.Errorf("%v by %v: %s has %q for a peer: %v", ends, attributes, id, other, ok)
					}
					if ok && (peer.Endpoint != "" || peer.Protocol != v1.ConnectProtocol_CONNECT_ICE || !slices.Contains(peer.AllowedIPs, linked.Node(other).IPv4)) {
						t.Errorf("%v by %v: %s has %+v for a peer", ends, attributes, id, peer)
					}
					got.Peers = got.Peers.Without(other)
					if text := cmp.Diff(render(want), render(got)); text != "" {
						t.Errorf("%v by %v of weight %d changes the plan of %s:\n%s", ends, attributes, weight, id, text)
					}
				}
			}
		}
	}
}

// Where one of the two can be called, or does not take part in pairs, the edge is
// one as any other.
func TestFor_AnEdgeToOneThatCanBeCalledIsALink(t *testing.T) {
	inLAN := func(n *mesh.Node) {
		n.Zone = "lan"
		n.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("192.168.1.7:51820")}
	}
	for name, b := range map[string]builder{
		"a public one":       threeGateways().endpoints("c", "198.51.100.7"),
		"by name":            threeGateways().endpoints("a", "a.example.org"),
		"by its WireGuard":   threeGateways().endpoints("c", "", "198.51.100.7:51820"),
		"in one zone":        threeGateways().change("a", inLAN).change("c", inLAN),
		"one without pairs":  threeGateways().change("c", func(n *mesh.Node) { n.Paths = false }),
		"a gateway's":        threeGateways().stock("c").change("c", func(n *mesh.Node) { n.Paths = false }),
		"both without pairs": threeGateways().change("a", func(n *mesh.Node) { n.Paths = false }).change("c", func(n *mesh.Node) { n.Paths = false }),
	} {
		plan := planOf(t, b.link("a", "c", 1, "ICE"), "a")
		gate, _ := plan.Peers.Get("gw1")
		if peer, ok := plan.Peers.Get("c"); !ok || slices.Contains(gate.AllowedIPs, b.Node("c").IPv4) || !slices.Contains(peer.AllowedIPs, b.Node("c").IPv4) {
			t.Errorf("%s: %s", name, render(plan))
		}
	}
}

// An edge for which a path has to be found, to a stock WireGuard peer that finds
// none, takes nothing from the gateways either. One that can do without is a link,
// and so is one to a v1 node, which finds paths in its own way.
func TestFor_AnEdgeThatAStockPeerFindsNoPathForLeadsNowhere(t *testing.T) {
	atGateways := func() builder {
		b := threeGateways().plain("a", "b").stock("c").change("c", func(n *mesh.Node) { n.Paths = false })
		return b.link("c", "gw1", 1) // another way to it than the shortest
	}
	for _, attribute := range []string{"ICE", "LIBP2P"} {
		for name, end := range map[string]func(*mesh.Node){
			"to a node that looks for paths":  func(*mesh.Node) {},
			"to one that does not":            func(n *mesh.Node) { n.Paths = false },
			"to one with a private address":   func(n *mesh.Node) { n.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.7:51820")} },
			"to another stock WireGuard peer": func(n *mesh.Node) { n.Paths, n.Features = false, nil },
		} {
			plain, linked := atGateways().change("a", end), atGateways().change("a", end).link("a", "c", -9, attribute)
			for _, id := range linked.ids() {
				if text := cmp.Diff(render(planOf(t, plain, id)), render(planOf(t, linked, id))); text != "" {
					t.Errorf("%s by %s changes the plan of %s:\n%s", name, attribute, id, text)
				}
			}
		}
	}
	for name, b := range map[string]builder{
		"plain WireGuard":   atGateways().link("a", "c", 1),
		"NATIVE":            atGateways().link("a", "c", 1, "NATIVE"),
		"a public one":      atGateways().link("a", "c", 1, "ICE").endpoints("a", "198.51.100.7"),
		"a public peer":     atGateways().link("a", "c", 1, "ICE").endpoints("c", "", "198.51.100.7:51820"),
		"a node of v1":      atGateways().link("a", "c", 1, "ICE").plain("c"),
		"a peer with paths": atGateways().link("a", "c", 1, "ICE").change("c", func(n *mesh.Node) { n.Paths = true }).endpoints("a", "198.51.100.7"),
	} {
		if peer, ok := planOf(t, b, "a").Peers.Get("c"); !ok || !slices.Contains(peer.AllowedIPs, b.Node("c").IPv4) {
			t.Errorf("%s: %s", name, render(planOf(t, b, "a")))
		}
	}
}

// Whatever the mesh: what a standing edge adds is a peer at both of its ends, or at
// none, and all else is as without it.
func TestFor_StandingEdgesChangeNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plain := drawMesh(t)
		for _, id := range plain.ids() {
			if plain.Node(id).RunsMeshgate() && rapid.Bool().Draw(t, "pairs") {
				plain.paths(id)
			}
		}
		plain.acls(append(drawACLs(t, plain), between(rapid.Bool().Draw(t, "default"), "*", "*"))...)
		for e := range plain.Edges.All() {
			if plain.Node(e.Source).Paths && plain.Node(e.Target).Paths {
				plain.Edges = plain.Edges.Without(e.Source, e.Target)
			}
		}
		s := *plain.Snapshot
		linked := builder{&s}
		stands := make(map[[2]mesh.NodeID]bool)
		for _, a := range plain.ids() {
			for _, b := range plain.ids() {
				if a < b && plain.Node(a).Paths && plain.Node(b).Paths && rapid.Bool().Draw(t, "stands") {
					linked.link(a, b, rapid.SampledFrom([]int32{-1, 0, 1}).Draw(t, "weight"), "ICE")
					stands[[2]mesh.NodeID{a, b}] = true
				}
			}
		}
		before, after := plans(t, plain.Snapshot), plans(t, linked.Snapshot)
		for a, plan := range after {
			for b, other := range after {
				if !stands[[2]mesh.NodeID{min(a, b), max(a, b)}] {
					continue
				}
				_, has := plan.Peers.Get(b)
				if _, had := other.Peers.Get(a); had != has {
					t.Fatalf("%s has %s for a peer: %v; the other way %v", a, b, has, had)
				}
				if _, err := topology.New(linked.Snapshot, nil).Pair(a, b); has != (err == nil) {
					t.Fatalf("%s has %s for a peer: %v; as a pair: %v", a, b, has, err)
				}
				plan.Peers = plan.Peers.Without(b)
			}
			if !equalPlans(before[a], plan) {
				t.Fatalf("plan of %s (-without +with):\n%s", a, cmp.Diff(before[a], plan, samePlan))
			}
		}
	})
}
