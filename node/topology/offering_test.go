// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/topology"
)

// Of two routers to one network the nearest has it, until it is silent while the
// other one is not; one that is silent keeps what nobody else offers.
func TestPlanner_RoutersStandInForEachOther(t *testing.T) {
	b := newMesh("hub", "leaf", "near", "far").link("hub", "leaf", 1).link("hub", "near", 1).link("hub", "far", 9).
		route("a", "near", "10.0.0.0/8", "11.0.0.0/8").route("b", "far", "10.0.0.0/8", "12.0.0.0/8")
	shared, own := netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("11.1.1.1")
	var last *topology.Planner
	for _, tt := range []struct {
		name       string
		silent     []mesh.NodeID
		gone       mesh.NodeID
		has, alone mesh.NodeID // the shared network, and that of near alone
	}{
		{"both are heard", nil, "", "near", "near"},
		{"the nearest is silent", []mesh.NodeID{"near"}, "", "far", "near"},
		{"both are silent", []mesh.NodeID{"near", "far"}, "", "near", "near"},
		{"the nearest again", []mesh.NodeID{"near"}, "", "far", "near"},
		{"and the other one has left", []mesh.NodeID{"near"}, "far", "near", "near"},
		{"and is back", []mesh.NodeID{"near"}, "", "far", "near"},
		{"the nearest has left", nil, "near", "far", ""},
		{"both are back", nil, "", "near", "near"},
		{"the other is silent", []mesh.NodeID{"far"}, "", "near", "near"},
	} {
		s := *b.Snapshot
		if last != nil {
			s.Version = last.Snapshot().Version + 1
		}
		s.Nodes = s.Nodes.Without(tt.gone)
		s.Silent = map[mesh.NodeID]time.Time{}
		for _, id := range tt.silent {
			s.Silent[id] = time.Unix(1, 0)
		}
		last = topology.New(&s, last)
		plan, err := last.Plan("hub")
		if err != nil {
			t.Fatal(err)
		}
		if has, alone := behind(plan, shared), behind(plan, own); has != tt.has || alone != tt.alone {
			t.Errorf("%s: %q has the shared network and %q its own, want %q and %q", tt.name, has, alone, tt.has, tt.alone)
		}
		leaf, err := last.Plan("leaf")
		if err != nil {
			t.Fatal(err)
		}
		if behind(leaf, shared) != "hub" || !slices.Contains(leaf.Routes, netip.MustParsePrefix("10.0.0.0/8")) {
			t.Errorf("%s: the leaf has no way there", tt.name)
		}
		if tt.gone == "near" {
			continue
		}
		// Who offers a network has it by itself, heard or not.
		self, err := last.Plan("near")
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(self.Routes, netip.MustParsePrefix("10.0.0.0/8")) {
			t.Errorf("%s: the router sends packets for its own network into the mesh", tt.name)
		}
	}
}

// Of a group with a next hop, it forwards, and nobody stands in for it but whom
// another route names.
func TestPlanner_NextHopStandsAsideToo(t *testing.T) {
	b := newMesh("hub", "site", "hop", "spare").link("hub", "site", 1).link("hub", "hop", 1).link("hub", "spare", 9).
		route("b", "spare", "10.0.0.0/8")
	b.Routes = append(b.Routes, mesh.Route{Name: "a", Node: "site", NextHop: "hop", Destinations: prefixes("10.0.0.0/8")})
	for silent, want := range map[mesh.NodeID]mesh.NodeID{"": "hop", "site": "hop", "hop": "spare", "spare": "hop"} {
		s := *b.Snapshot
		s.Silent = map[mesh.NodeID]time.Time{silent: time.Unix(1, 0)}
		plan, err := topology.For(&s, "hub")
		if err != nil {
			t.Fatal(err)
		}
		if got := behind(plan, netip.MustParseAddr("10.1.1.1")); got != want {
			t.Errorf("%q is silent: %q has the network, want %q", silent, got, want)
		}
	}
}
