// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/topology"
)

// samePlan compares plans of one snapshot: they share its nodes.
var samePlan = cmp.Options{
	cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b *mesh.Node) bool { return a == b }),
	listed,
}

// listed compares lists of peers.
var listed = cmp.Transformer("All", func(p mesh.Peers) []mesh.Peer { return slices.Collect(p.All()) })

// first is the first peer of a plan.
func first(t testing.TB, plan mesh.Plan) mesh.Peer {
	t.Helper()
	for peer := range plan.Peers.All() {
		return peer
	}
	t.Fatal("no peers")
	return mesh.Peer{}
}

// equalPlans reports what cmp.Equal with samePlan does, much faster.
func equalPlans(a, b mesh.Plan) bool {
	return a.Self == b.Self && slices.Equal(a.Routes, b.Routes) && samePeers(a.Peers, b.Peers)
}

func samePeers(a, b mesh.Peers) bool {
	return slices.EqualFunc(slices.Collect(a.All()), slices.Collect(b.All()), func(a, b mesh.Peer) bool {
		return a.Node == b.Node && a.Endpoint == b.Endpoint && a.Protocol == b.Protocol && slices.Equal(a.AllowedIPs, b.AllowedIPs)
	})
}

// What leaves share gives each of them the plan that it would have alone, and a
// planner that goes on from another one gives the plans of a new one.
func TestPlanner_SharesWithoutATrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		b.acls(drawACLs(t, b)...)
		before := topology.New(b.Snapshot, nil)
		if _, err := before.Plan(rapid.SampledFrom(b.ids()).Draw(t, "before")); err != nil {
			t.Fatal(err)
		}
		after := *b.Snapshot
		c := builder{&after}
		id := rapid.SampledFrom(b.ids()).Draw(t, "changed")
		if rapid.Bool().Draw(t, "gone") {
			after.Nodes = after.Nodes.Without(id)
		} else {
			c.change(id, func(n *mesh.Node) {
				n.IPv4, n.Zone = netip.MustParsePrefix("172.16.9.9/32"), "elsewhere"
				n.PrimaryEndpoint = rapid.SampledFrom([]string{"", "192.0.2.1"}).Draw(t, "endpoint")
			})
		}
		if rapid.Bool().Draw(t, "new ACLs") {
			c.acls(drawACLs(t, c)...)
		}
		for _, s := range []*mesh.Snapshot{b.Snapshot, &after} {
			p := topology.New(s, before)
			for _, id := range (builder{s}).ids() {
				got, err := p.Plan(id)
				if err != nil {
					t.Fatal(err)
				}
				if want := topology.ByPaths(s, id); !equalPlans(want, got) {
					t.Fatalf("plan of %s (-alone +shared):\n%s", id, cmp.Diff(want, got, samePlan))
				}
			}
		}
	})
}

func TestPlanner_SummarizesForLeaves(t *testing.T) {
	allowed := func(b builder) []string {
		t.Helper()
		plan, err := topology.For(b.Snapshot, "leaf0007")
		if err != nil || plan.Peers.Len() != 1 {
			t.Fatalf("%d peers, %v", plan.Peers.Len(), err)
		}
		var list []string
		for _, p := range first(t, plan).AllowedIPs {
			list = append(list, p.String())
		}
		return list
	}
	networks := []string{"172.16.0.0/12", "fd00::/48"}
	if got := allowed(star(topology.SummarizeFrom)); !slices.Equal(got, networks) {
		t.Errorf("a large mesh: %d prefixes", len(got))
	}
	routed := star(topology.SummarizeFrom).route("site", "leaf0009", "10.7.0.0/16")
	if got := allowed(routed); !slices.Equal(got, append([]string{"10.7.0.0/16"}, networks...)) {
		t.Errorf("with a route: %d prefixes", len(got))
	}
	small := topology.SummarizeFrom - 2
	if got := allowed(star(small)); len(got) != 2*small {
		t.Errorf("a small mesh: %d prefixes", len(got))
	}
	// One node that may not be reached, and every address is told.
	one := star(topology.SummarizeFrom).acls(between(false, "*", "leaf0010"), between(true, "*", "*"))
	if got := allowed(one); len(got) != 2*(topology.SummarizeFrom-1) || slices.Contains(got, "172.16.0.12/32") {
		t.Errorf("with a node that is denied: %d prefixes", len(got))
	}
	part := star(topology.SummarizeFrom).acls(between(false, "*", "leaf0010", "fd00:0:0:c::/113"), between(true, "*", "*"))
	if got := allowed(part); len(got) != 2*topology.SummarizeFrom || slices.Contains(got, "fd00:0:0:c::/112") {
		t.Errorf("with a network that is denied in part: %d prefixes", len(got))
	}
	outside := star(topology.SummarizeFrom).change("leaf0010", func(n *mesh.Node) { n.IPv4 = netip.MustParsePrefix("192.0.2.9/32") })
	if got := allowed(outside); !slices.Equal(got, append(slices.Clone(networks[:1]), "192.0.2.9/32", networks[1])) {
		t.Errorf("with an address outside of the mesh: %v", got)
	}
}

func TestPlanner_ManyAtATime(t *testing.T) {
	b := star(100).acls(between(true, "*", "hub"), between(true, "leaf0001", "leaf0002"))
	p := topology.New(b.Snapshot, nil)
	var wg sync.WaitGroup
	for _, id := range b.ids() {
		wg.Go(func() {
			got, err := p.Plan(id)
			if err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(topology.ByPaths(b.Snapshot, id), got, samePlan); diff != "" {
				t.Errorf("plan of %s (-alone +shared):\n%s", id, diff)
			}
		})
	}
	wg.Wait()
}

// BenchmarkPlanner plans for a thousand leaves of a mesh of ten thousand nodes
// after one more has joined.
func BenchmarkPlanner(b *testing.B) {
	big := star(10_000)
	for name, acls := range map[string][]mesh.ACL{
		"leaves meet":         {between(true, "*", "*")},
		"leaves meet the hub": {between(true, "*", "hub")},
	} {
		b.Run(name, func(b *testing.B) {
			s := *big.Snapshot
			s.ACLs = acls
			p := topology.New(&s, nil)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				next := *p.Snapshot()
				id := mesh.NodeID(fmt.Sprint("new", i))
				n := *newMesh(id).Node(id)
				next.Nodes = next.Nodes.With(&n)
				next.Edges = next.Edges.With(mesh.Edge{Source: "hub", Target: id, Weight: 1})
				p = topology.New(&next, p)
				for leaf := range 1000 {
					if _, err := p.Plan(mesh.NodeID(fmt.Sprintf("leaf%04d", leaf))); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// A node that a leaf may not have is no way to those behind it.
func TestPlanner_LeafGoesThroughNobodyWhomItMayNotHave(t *testing.T) {
	b := newMesh("far", "gate", "leaf", "near").
		link("leaf", "gate", 1).link("gate", "near", 1).link("near", "far", 1).
		acls(between(false, "leaf", "near"), between(true, "*", "*"))
	plan, err := topology.For(b.Snapshot, "leaf")
	if err != nil || plan.Peers.Len() != 1 {
		t.Fatalf("%d peers, %v", plan.Peers.Len(), err)
	}
	want := prefixes("172.16.0.2/32", "fd00:0:0:2::/112") // of gate
	if diff := cmp.Diff(want, first(t, plan).AllowedIPs, samePlan); diff != "" {
		t.Errorf("AllowedIPs (-want +got):\n%s", diff)
	}
}
