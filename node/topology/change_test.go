// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/topology"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// changeMesh makes the next snapshot: one change of any kind.
func changeMesh(t *rapid.T, s *mesh.Snapshot, names []mesh.NodeID) *mesh.Snapshot {
	next := *s
	next.Version++
	b := builder{&next}
	name := func(label string) mesh.NodeID { return rapid.SampledFrom(names).Draw(t, label) }
	switch kind := rapid.SampledFrom([]string{
		"join", "join", "leave", "record", "record", "record", "edge", "edge", "edge", "no edge", "no edge",
		"route", "route", "no route", "silence", "silence", "ACLs", "groups", "networks",
	}).Draw(t, "kind"); kind {
	case "join":
		id := name("joins")
		next.Nodes = next.Nodes.With(newMesh(names...).Node(id))
		if other := name("at"); other != id {
			b.link(id, other, 1)
		}
	case "leave":
		next.Nodes = next.Nodes.Without(name("leaves"))
	case "record":
		if id := name("changes"); b.Node(id) != nil {
			b.change(id, func(n *mesh.Node) { changeRecord(t, n) })
		}
	case "edge":
		if x, y := name("source"), name("target"); x != y {
			attribute := rapid.SampledFrom([]string{"NATIVE", "ICE", "LIBP2P"}).Draw(t, "attribute")
			b.link(x, y, rapid.SampledFrom([]int32{-1 << 31, -1, 0, 1, 99, 1<<31 - 1}).Draw(t, "weight"), attribute)
		}
	case "no edge":
		if edges := slices.Collect(next.Edges.All()); len(edges) > 0 {
			e := rapid.SampledFrom(edges).Draw(t, "edge")
			next.Edges = next.Edges.Without(e.Source, e.Target)
		}
	case "route":
		next.Routes = append(slices.Clone(next.Routes), mesh.Route{
			Name:    fmt.Sprint("r", next.Version),
			Node:    rapid.SampledFrom([]string{string(name("router")), "group:g"}).Draw(t, "of"),
			NextHop: mesh.NodeID(rapid.SampledFrom([]string{"", "", string(name("hop"))}).Draw(t, "next hop")),
			Destinations: prefixes(rapid.SampledFrom([]string{
				"10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "2001:db8::/32", "192.0.2.9/32",
			}).Draw(t, "network")),
		})
	case "no route":
		if n := len(next.Routes); n > 0 {
			i := rapid.IntRange(0, n-1).Draw(t, "route")
			next.Routes = slices.Delete(slices.Clone(next.Routes), i, i+1)
		}
	case "silence":
		id := name("silent")
		next.Silent = maps.Clone(next.Silent)
		if _, noted := next.Silent[id]; noted {
			delete(next.Silent, id)
			break
		}
		if next.Silent == nil {
			next.Silent = map[mesh.NodeID]time.Time{}
		}
		next.Silent[id] = time.Unix(1, 0)
	case "ACLs":
		next.ACLs = append(drawACLs(t, b), between(true, "*", "*"))
	case "groups":
		next.Groups = []mesh.Group{group("g", string(name("member")), string(name("member")))}
	case "networks":
		next.IPv4 = rapid.SampledFrom(prefixes("172.16.0.0/12", "172.16.0.0/16", "10.1.0.0/16")).Draw(t, "IPv4")
	}
	return &next
}

// changeRecord changes something about a node.
func changeRecord(t *rapid.T, n *mesh.Node) {
	switch rapid.SampledFrom([]string{"key", "role", "IPv4", "IPv6", "endpoint", "zone", "wireguard", "paths"}).Draw(t, "what") {
	case "key":
		n.PublicKey = mesh.PublicKey{byte(rapid.IntRange(0, 1).Draw(t, "key"))}
	case "role":
		n.Features = rapid.SampledFrom([][]mesh.Feature{
			nil, {{Kind: v1.Feature_NODES}}, {{Kind: v1.Feature_NODES}, {Kind: v1.Feature_MEMBERSHIP}},
		}).Draw(t, "features")
	case "IPv4":
		n.IPv4 = rapid.SampledFrom([]netip.Prefix{
			{}, netip.MustParsePrefix("172.16.0.2/32"), netip.MustParsePrefix("172.16.9.9/32"), netip.MustParsePrefix("192.0.2.9/32"),
		}).Draw(t, "IPv4")
	case "IPv6":
		n.IPv6 = rapid.SampledFrom([]netip.Prefix{
			{}, netip.MustParsePrefix("fd00:0:0:2::/112"), netip.MustParsePrefix("fd00:0:0:9::/112"),
		}).Draw(t, "IPv6")
	case "endpoint":
		n.PrimaryEndpoint = rapid.SampledFrom([]string{"", "192.0.2.1", "gate.example.com"}).Draw(t, "endpoint")
	case "paths":
		n.Paths = !n.Paths
	case "zone":
		n.Zone = rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "zone")
	case "wireguard":
		n.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort(
			rapid.SampledFrom([]string{"10.0.0.1:1", "10.0.1.1:2", "192.0.2.7:3"}).Draw(t, "wireguard"))}
	}
}

// checkPlans compares what a planner says of some nodes with plans from nothing.
func checkPlans(t *rapid.T, p *topology.Planner, ids []mesh.NodeID) {
	for _, id := range ids {
		if p.Snapshot().Node(id) == nil {
			continue
		}
		got, err := p.Plan(id)
		if err != nil {
			t.Fatal(err)
		}
		want, err := topology.For(p.Snapshot(), id)
		if err != nil {
			t.Fatal(err)
		}
		if !equalPlans(want, got) {
			t.Fatalf("plan of %s at version %d (-from nothing +from before):\n%s",
				id, p.Snapshot().Version, cmp.Diff(want, got, samePlan))
		}
	}
	if !p.Measured() {
		t.Fatal("a view does not know its farthest paths")
	}
	if err := p.Seated(); err != nil {
		t.Fatal(err)
	}
}

// Whatever changes, in whatever order, and whoever is asked when, for the last
// snapshot or one before: what is shared with plans before leaves no trace.
func TestPlanner_ChangesLeaveNoTrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		if rapid.Bool().Draw(t, "pairs") {
			b.paths(b.ids()...)
		}
		for _, id := range b.ids() {
			if b.Node(id).RunsMeshgate() && rapid.IntRange(0, 2).Draw(t, "forwards") == 0 {
				b.plain(id)
			}
		}
		b.acls(append(drawACLs(t, b), between(true, "*", "*"))...)
		names := append(b.ids(), "x1", "x2", "x3")
		planners := []*topology.Planner{topology.New(b.Snapshot, nil)}
		for range rapid.IntRange(1, 25).Draw(t, "changes") {
			last := planners[len(planners)-1]
			next := topology.New(changeMesh(t, last.Snapshot(), names), last)
			planners = append(planners, next)
			if rapid.Bool().Draw(t, "keeps up") {
				next.KeepUp()
			}
			checkPlans(t, next, rapid.SliceOfN(rapid.SampledFrom(names), 0, 4).Draw(t, "asked"))
			if rapid.IntRange(0, 4).Draw(t, "lags") == 0 {
				late := rapid.SampledFrom(planners).Draw(t, "planner")
				late.KeepUp() // moves nothing back
				checkPlans(t, late, []mesh.NodeID{rapid.SampledFrom(names).Draw(t, "late")})
			}
		}
		checkPlans(t, planners[len(planners)-1], names)
	})
}

// KeepUp moves what planners share ahead, before anybody asks for a plan, and never
// back.
func TestPlanner_KeepsUp(t *testing.T) {
	first := topology.New(star(3).Snapshot, nil)
	first.KeepUp() // there is nothing yet
	if _, err := first.Plan("hub"); err != nil {
		t.Fatal(err)
	}
	later := *first.Snapshot()
	later.Version++
	later.Nodes = later.Nodes.Without("leaf0001")
	next := topology.New(&later, first)
	if next.At() != first.Snapshot() {
		t.Error("moved before anybody asked")
	}
	if next.KeepUp(); next.At() != next.Snapshot() {
		t.Error("does not keep up")
	}
	if first.KeepUp(); next.At() != next.Snapshot() {
		t.Error("one that lags behind moved it back")
	}
}

// The same for a mesh that is about as large as those of which leaves get a
// summary.
func TestPlanner_ChangesOfALargeMeshLeaveNoTrace(t *testing.T) {
	large := star(topology.SummarizeFrom-1).route("site", "leaf0009", "10.7.0.0/16", "192.0.2.9/32")
	names := []mesh.NodeID{"hub", "leaf0001", "leaf0009", "leaf0030", "x1", "x2"}
	rapid.Check(t, func(t *rapid.T) {
		p := topology.New(large.Snapshot, nil)
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			p = topology.New(changeMesh(t, p.Snapshot(), names), p)
			checkPlans(t, p, rapid.SliceOfN(rapid.SampledFrom(names), 0, 1).Draw(t, "asked"))
		}
		checkPlans(t, p, names[:2])
	})
}

// A mesh with more public nodes than each is linked to.
func TestPlanner_ChangesOfARingLeaveNoTrace(t *testing.T) {
	ring := publicMesh(140)
	names := []mesh.NodeID{"n0000", "n0001", "n0070", "n0139", "x1", "x2"}
	rapid.Check(t, func(t *rapid.T) {
		p := topology.New(ring.Snapshot, nil)
		if _, err := p.Plan(names[0]); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			p = topology.New(changeMesh(t, p.Snapshot(), names), p)
		}
		checkPlans(t, p, []mesh.NodeID{names[0], rapid.SampledFrom(names).Draw(t, "asked")})
	})
}

// publicGateway is the gateway of publicMesh.
const publicGateway mesh.NodeID = "n0070"

// publicMesh is a mesh of n public nodes, a third of them in a zone, of which
// one is a gateway.
func publicMesh(n int) builder {
	ids := make([]mesh.NodeID, n)
	for i := range ids {
		ids[i] = mesh.NodeID(fmt.Sprintf("n%04d", i))
	}
	b := newMesh(ids...)
	for i, id := range ids {
		b.change(id, func(n *mesh.Node) {
			n.PrimaryEndpoint = "192.0.2.1"
			if i%3 == 0 {
				n.Zone = "z"
			}
			if id == publicGateway {
				n.Features = append(slices.Clone(n.Features), mesh.Feature{Kind: v1.Feature_MEMBERSHIP})
			}
		})
	}
	return b
}

// A node with whom nobody may speak changes no plan.
func TestPlanner_UnrelatedChangesKeepThePlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		b.acls(append([]mesh.ACL{between(false, "*", "stranger")}, drawACLs(t, b)...)...)
		before := topology.New(b.Snapshot, nil)
		next := *b.Snapshot
		c := builder{&next}
		stranger := *newMesh("stranger").Node("stranger")
		stranger.IPv4, stranger.IPv6 = netip.MustParsePrefix("172.16.99.1/32"), netip.MustParsePrefix("fd00:0:0:99::/112")
		next.Nodes = next.Nodes.With(&stranger)
		c.link("stranger", rapid.SampledFrom(b.ids()).Draw(t, "at"), 0)
		after := topology.New(&next, before)
		for _, id := range b.ids() {
			was, err := before.Plan(id)
			if err != nil {
				t.Fatal(err)
			}
			is, err := after.Plan(id)
			if err != nil {
				t.Fatal(err)
			}
			if !equalPlans(was, is) {
				t.Fatalf("plan of %s (-before +after):\n%s", id, cmp.Diff(was, is, samePlan))
			}
		}
	})
}

// planned is the plan of a node.
func planned(t *testing.T, p *topology.Planner, id mesh.NodeID) mesh.Plan {
	t.Helper()
	plan, err := p.Plan(id)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// Where a node itself is decides to which endpoints of others it sends.
func TestPlanner_OwnMoveChangesEndpoints(t *testing.T) {
	b := newMesh("a", "b", "c").link("a", "b", 1).link("a", "c", 1).
		endpoints("a", "", "10.0.1.9:1").endpoints("b", "192.0.2.1", "192.0.2.1:1", "10.0.0.5:1", "10.0.1.5:1")
	b.change("a", func(n *mesh.Node) { n.Zone = "z" }).change("b", func(n *mesh.Node) { n.Zone = "z" })
	p := topology.New(b.Snapshot, nil)
	if got := first(t, planned(t, p, "a")).Endpoint; got != "10.0.1.5:1" {
		t.Errorf("endpoint %q beside the peer", got)
	}
	moved := *b.Snapshot
	builder{&moved}.change("a", func(n *mesh.Node) { n.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:1")} })
	p = topology.New(&moved, p)
	if got := first(t, planned(t, p, "a")).Endpoint; got != "10.0.0.5:1" {
		t.Errorf("endpoint %q after the move", got)
	}
	gone := moved
	builder{&gone}.change("a", func(n *mesh.Node) { n.Zone = "" })
	p = topology.New(&gone, p)
	if got := first(t, planned(t, p, "a")).Endpoint; got != "192.0.2.1:1" {
		t.Errorf("endpoint %q outside of the zone", got)
	}
}

// A leaf has a summary only as long as no node has an address that it may not
// reach.
func TestPlanner_SummaryEndsWithTheFirstForbiddenAddress(t *testing.T) {
	large := star(topology.SummarizeFrom).acls(
		mesh.ACL{DestinationCIDRs: prefixes("172.31.0.0/16"), SourceNodes: []string{"leaf0001"}}, between(true, "*", "*"))
	p := topology.New(large.Snapshot, nil)
	before := first(t, planned(t, p, "leaf0001")).AllowedIPs
	p = topology.New(joins("hub")(large.Snapshot, 0), p) // with 172.31.0.1
	during := first(t, planned(t, p, "leaf0001")).AllowedIPs
	p = topology.New(joins("hub")(p.Snapshot(), 1), p)
	after := first(t, planned(t, p, "leaf0001")).AllowedIPs
	if len(before) != 2 || len(during) <= topology.SummarizeFrom || len(after) != 2 {
		t.Errorf("%d, %d and %d prefixes", len(before), len(during), len(after))
	}
	if slices.Contains(during, netip.MustParsePrefix("172.31.0.1/32")) {
		t.Error("the leaf has the address that it may not reach")
	}
}

// What is kept is bounded, and nothing is kept of nodes that left.
func TestPlanner_KeepsABoundedNumberOfViews(t *testing.T) {
	b := randomMesh(400)
	p := topology.New(b.Snapshot, nil)
	for _, id := range b.ids() {
		planned(t, p, id)
	}
	notes, views := p.Kept()
	if notes > topology.MaxNotes || views < 300 {
		t.Errorf("%d notes in %d views are kept of 400 plans, at most %d notes may be", notes, views, topology.MaxNotes)
	}
	// The one that is asked for now has its place once the others were idle.
	for i := range 20 {
		p = topology.New(moves("n0001")(p.Snapshot(), i), p)
		planned(t, p, "n0399")
	}
	if _, views := p.Kept(); views >= 300 {
		t.Errorf("%d idle views are still kept", views)
	}
	left := *p.Snapshot()
	left.Nodes = left.Nodes.Without("n0399")
	p = topology.New(&left, p)
	planned(t, p, "n0000")
	if notes, views := p.Kept(); views != 1 || notes != 399 {
		t.Errorf("%d notes in %d views after the node left, want those of n0000", notes, views)
	}
}
