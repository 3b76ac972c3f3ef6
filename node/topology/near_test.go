// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"flag"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/topology"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// sameWays reports to which node's addresses two plans lead another way. Of an
// address that several nodes hold it asks nothing: the registry lets none be.
func sameWays(t *rapid.T, s *mesh.Snapshot, want, got mesh.Plan) {
	held := map[netip.Prefix]int{} // by how many nodes
	for _, n := range s.Nodes.All() {
		for _, own := range n.Prefixes() {
			held[own.Masked()]++
		}
	}
	for id, n := range s.Nodes.All() {
		if id == want.Self.ID {
			continue
		}
		for _, own := range n.Prefixes() {
			addr := own.Addr()
			if held[own.Masked()] > 1 {
				continue
			}
			if slices.ContainsFunc(want.Self.Prefixes(), func(o netip.Prefix) bool { return o.Contains(addr) }) {
				continue
			}
			if w, g := behind(want, addr), behind(got, addr); w != g && w != "" {
				t.Fatalf("%s sends to %s of %s through %q, want %q", want.Self.ID, addr, id, g, w)
			}
		}
	}
	if !slices.Equal(want.Routes, got.Routes) {
		t.Fatalf("routes %v, want %v", got.Routes, want.Routes)
	}
	for _, network := range want.Routes {
		if s.Routable(network) && behind(want, network.Addr()) != behind(got, network.Addr()) {
			t.Fatalf("%s sends to %s through %q, want %q", want.Self.ID, network, behind(got, network.Addr()), behind(want, network.Addr()))
		}
	}
}

// atMost bounds the checks of a property of large meshes, each of which is long.
func atMost(t *testing.T, checks int) {
	t.Helper()
	f := flag.Lookup("rapid.checks")
	usual := f.Value.String()
	if n, err := strconv.Atoi(usual); err != nil || n != 100 {
		return // somebody wants another number
	}
	if err := f.Value.Set(strconv.Itoa(checks)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Value.Set(usual); err != nil {
			t.Error(err)
		}
	})
}

// nearMesh is larger than the meshes of which nodes get a summary and has a
// second gateway, zones, nodes behind nodes, and routes.
func nearMesh() (builder, []mesh.NodeID) {
	b := publicMesh(topology.NearFrom+20).link("n0070", "n0001", 1).link("n0140", "n0200", 1)
	b.change("n0140", func(n *mesh.Node) { n.Features = b.Node(publicGateway).Features })
	for _, id := range []mesh.NodeID{"n0210", "n0211", "n0212"} {
		b.change(id, func(n *mesh.Node) { n.PrimaryEndpoint = "" })
	}
	b.link("n0210", "n0100", 1).link("n0211", "n0210", 1).link("n0212", publicGateway, 1)
	b.route("far", "n0211", "10.7.0.0/16").route("site", "n0002", "10.8.0.0/16")
	return b, []mesh.NodeID{"n0000", "n0001", publicGateway, "n0140", "n0100", "n0210", "n0211", "x1", "x2"}
}

// What a node is told of a large mesh leads every packet where the shortest
// paths of all do, and is the same on from plans before as from nothing.
func TestPlanner_NearPlansLeadWherePathsDo(t *testing.T) {
	atMost(t, 20)
	b, names := nearMesh()
	rapid.Check(t, func(t *rapid.T) {
		p := topology.New(b.Snapshot, nil)
		asked := []mesh.NodeID{"n0000", rapid.SampledFrom(b.ids()).Draw(t, "asked")}
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			checkPlans(t, p, asked)
			p = topology.New(changeMesh(t, p.Snapshot(), names), p)
		}
		checkPlans(t, p, asked)
		for _, id := range asked {
			n := p.Snapshot().Node(id)
			if n == nil || n.PublicKey.IsZero() {
				continue
			}
			plan, err := p.Plan(id)
			if err != nil {
				t.Fatal(err)
			}
			if p.Near(id) {
				sameWays(t, p.Snapshot(), topology.ByPaths(p.Snapshot(), id), plan)
			}
		}
	})
}

// A public node of a large mesh is told of few addresses.
func TestPlanner_NearPlansAreShort(t *testing.T) {
	b := publicJoined(1000)
	p := topology.New(b.Snapshot, nil)
	plan := planned(t, p, "n0007")
	total := 0
	for peer := range plan.Peers.All() {
		total += len(peer.AllowedIPs)
	}
	if !p.Near("n0007") || plan.Peers.Len() != 129 || total != 2*128+2 {
		t.Errorf("%d peers with %d prefixes, want 128 with 2 each and the gateway with the networks; near: %v", plan.Peers.Len(), total, p.Near("n0007"))
	}
	if planned(t, p, publicGateway); p.Near(publicGateway) {
		t.Error("the gateway has a near plan")
	}
}

// ACLs that make no difference leave all plans the same memory; those that do
// change them.
func TestPlanner_ACLsWithoutEffectKeepPlans(t *testing.T) {
	for name, b := range map[string]builder{"near": publicJoined(topology.NearFrom), "full": randomMesh(30)} {
		id := b.ids()[1]
		p := topology.New(b.Snapshot, nil)
		before := planned(t, p, id)
		for i, acls := range [][]mesh.ACL{
			{between(true, "*", "*")},
			{between(false, "nobody", "*"), between(true, "*", "*")},
			{between(true, "nobody", "*"), between(true, "*", "*"), between(false, "*", "*")},
		} {
			next := *p.Snapshot()
			next.ACLs = acls
			p = topology.New(&next, p)
			if after := planned(t, p, id); !after.Peers.Same(before.Peers) {
				t.Errorf("%s: the ACLs of case %d make the plan anew", name, i)
			}
		}
		next := *p.Snapshot()
		next.ACLs = []mesh.ACL{between(false, string(id), "*"), between(true, "*", "*")}
		p = topology.New(&next, p)
		if after := planned(t, p, id); after.Peers.Len() != 0 {
			t.Errorf("%s: %s has %d peers, and may speak with nobody", name, id, after.Peers.Len())
		}
	}
}

// Routes may be those of a group: who becomes a member while it is away offers
// them when it is back.
func TestPlanner_GroupsThatOfferRoutes(t *testing.T) {
	b := randomMesh(30)
	b.ACLs = []mesh.ACL{between(true, "*", "*")}
	b.route("site", "group:routers", "10.9.0.0/16")
	self, router := b.ids()[1], b.Node(b.ids()[2])
	network := netip.MustParsePrefix("10.9.0.0/16")

	away := *b.Snapshot
	away.Nodes = away.Nodes.Without(router.ID)
	p := topology.New(&away, nil)
	planned(t, p, self)
	member := away
	member.Groups = []mesh.Group{{Name: "routers", Subjects: []mesh.Subject{{Name: string(router.ID), Type: v1.SubjectType_SUBJECT_NODE}}}}
	p = topology.New(&member, p)
	planned(t, p, self)
	back := member
	back.Nodes = member.Nodes.With(router)
	p = topology.New(&back, p)
	if got := planned(t, p, self); !slices.Contains(got.Routes, network) || behind(got, network.Addr()) == "" {
		t.Errorf("routes %v, want that of the group", got.Routes)
	}
}

// A near plan is kept as long as nothing changes that it looks at. These changes
// are far from it, and make a difference all the same.
func TestPlanner_NearPlansNoticeWhatChangesFarAway(t *testing.T) {
	const root, beside, x, y, alone mesh.NodeID = "n0000", "n0100", "n0210", "n0211", "n0212"
	network := netip.MustParsePrefix("10.7.0.0/16")
	inX := func(s *mesh.Snapshot) netip.Addr { return s.Node(x).IPv4.Addr() }
	inNetwork := func(*mesh.Snapshot) netip.Addr { return network.Addr() }
	tests := []struct {
		name       string
		plain      bool // the root is a plain WireGuard peer
		change     func(b builder)
		to         func(s *mesh.Snapshot) netip.Addr
		was, wants mesh.NodeID // behind whom the address is
	}{
		{"the way behind home gets longer", false, func(b builder) { b.link(x, publicGateway, 5000) }, inX, publicGateway, beside},
		{"the way behind home goes", false, func(b builder) { b.Edges = b.Edges.Without(publicGateway, x) }, inX, publicGateway, beside},
		{"the way behind home stays the better one", false, func(b builder) { b.link(x, publicGateway, 100) }, inX, publicGateway, publicGateway},
		{"a network moves here from there", false, func(b builder) { b.Routes[0].Node = string(beside) }, inNetwork, publicGateway, beside},
		{"a network moves to whom only the root has", true, func(b builder) { b.Routes[0].Node = string(alone) }, inNetwork, publicGateway, alone},
		{"a network comes to whom only the root has", true, func(b builder) { b.route("new", string(alone), "10.9.0.0/16") },
			func(*mesh.Snapshot) netip.Addr { return netip.MustParseAddr("10.9.0.1") }, "", alone},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := publicMesh(topology.NearFrom+20).link(root, beside, 1).link(beside, x, 200).link(x, publicGateway, 1)
			b.link(y, publicGateway, 1).link(alone, root, 1).route("far", string(y), network.String())
			for _, id := range []mesh.NodeID{x, y, alone} {
				b.change(id, func(n *mesh.Node) { n.PrimaryEndpoint = "" })
			}
			if tt.plain {
				b.stock(root).link(root, publicGateway, 1)
			}
			p := topology.New(b.Snapshot, nil)
			if got := behind(planned(t, p, root), tt.to(b.Snapshot)); got != tt.was || !p.Near(root) {
				t.Fatalf("at first it is behind %q, want %q; near: %v", got, tt.was, p.Near(root))
			}
			next := *b.Snapshot
			next.Version++
			next.Routes = slices.Clone(next.Routes)
			tt.change(builder{&next})
			p = topology.New(&next, p)
			plan := planned(t, p, root)
			if got := behind(plan, tt.to(&next)); got != tt.wants || !p.Near(root) {
				t.Errorf("it is behind %q, want %q; near: %v", got, tt.wants, p.Near(root))
			}
			if want := topology.ByPaths(&next, root).Routes; !slices.Equal(want, plan.Routes) {
				t.Errorf("routes %v, want %v", plan.Routes, want)
			}
		})
	}
}
