// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/topology"
)

// randomMesh is a mesh of n nodes, each with some six edges, so that paths are
// several hops long and many of them tie.
func randomMesh(n int) builder {
	ids := make([]mesh.NodeID, n)
	for i := range ids {
		ids[i] = mesh.NodeID(fmt.Sprintf("n%04d", i))
	}
	b := newMesh(ids...)
	random := rand.New(rand.NewPCG(1, 2))
	for i, id := range ids[1:] {
		for _, other := range []mesh.NodeID{ids[random.IntN(i+1)], ids[random.IntN(n)], ids[random.IntN(n)]} {
			b.link(id, other, int32(random.IntN(3)))
		}
	}
	return b
}

// A step makes the i-th next snapshot.
type step func(s *mesh.Snapshot, i int) *mesh.Snapshot

// joins lets a node join at another one and leave again with the next step.
func joins(at mesh.NodeID) step {
	return func(s *mesh.Snapshot, i int) *mesh.Snapshot {
		next := *s
		if i%2 == 1 {
			next.Nodes, next.Edges = s.Nodes.Without("guest"), s.Edges.Without(at, "guest")
			return &next
		}
		n := *newMesh("guest").Node("guest")
		n.IPv4, n.IPv6 = netip.MustParsePrefix("172.31.0.1/32"), netip.MustParsePrefix("fd00:0:0:ffff::/112")
		next.Nodes = s.Nodes.With(&n)
		next.Edges = s.Edges.With(mesh.Edge{Source: at, Target: "guest", Weight: 1})
		return &next
	}
}

// moves changes the endpoint of a node.
func moves(id mesh.NodeID) step {
	return func(s *mesh.Snapshot, i int) *mesh.Snapshot {
		next := *s
		n := *s.Node(id)
		n.WireGuardEndpoints = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1000+i%1000))}
		next.Nodes = s.Nodes.With(&n)
		return &next
	}
}

// weighs changes the weight of the first edge of a node.
func weighs(id mesh.NodeID) step {
	return func(s *mesh.Snapshot, i int) *mesh.Snapshot {
		next := *s
		for e := range s.Edges.Of(id) {
			e.Weight = int32(i % 2)
			next.Edges = s.Edges.With(e)
			break
		}
		return &next
	}
}

// BenchmarkPlan plans again after each change: on from the planner before, and
// from scratch.
func BenchmarkPlan(b *testing.B) {
	spokes, random := star(10_000), randomMesh(300)
	strict := star(10_000).acls(between(false, "leaf0001", "leaf0002"), between(true, "*", "*"))
	for _, c := range []struct {
		name  string
		mesh  builder
		next  step
		plans []mesh.NodeID
	}{
		{"spokes/hub, a join", spokes, joins("hub"), []mesh.NodeID{"hub"}},
		{"spokes/hub, a leaf moves", spokes, moves("leaf0500"), []mesh.NodeID{"hub"}},
		{"spokes/leaf, a join elsewhere", spokes, joins("hub"), []mesh.NodeID{"leaf0007"}},
		{"spokes/leaf with all addresses, a join elsewhere", strict, joins("hub"), []mesh.NodeID{"leaf0001"}},
		{"random/one, a join elsewhere", random, joins("n0200"), []mesh.NodeID{"n0100"}},
		{"random/one, a node moves", random, moves("n0200"), []mesh.NodeID{"n0100"}},
		{"random/one, an edge changes", random, weighs("n0200"), []mesh.NodeID{"n0100"}},
		{"random/all, a join", random, joins("n0200"), random.ids()},
		{"random/all, an edge changes", random, weighs("n0200"), random.ids()},
	} {
		for _, scratch := range []bool{false, true} {
			name := c.name
			if scratch {
				name += ", from scratch"
			}
			b.Run(name, func(b *testing.B) {
				p := topology.New(c.mesh.Snapshot, nil)
				planAll(b, p, c.plans)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					before := p
					if scratch {
						before = nil
					}
					p = topology.New(c.next(p.Snapshot(), i), before)
					planAll(b, p, c.plans)
				}
			})
		}
	}
}

// BenchmarkPair asks for a pair after each change: of two leaves, and of one that
// a network is routed to.
func BenchmarkPair(b *testing.B) {
	spokes := star(10_000).paths("leaf0001", "leaf0002", "leaf0003").route("r", "leaf0003", "10.0.0.0/8")
	for name, to := range map[string]mesh.NodeID{"leaves": "leaf0002", "router": "leaf0003"} {
		b.Run(name, func(b *testing.B) {
			s, change := spokes.Snapshot, joins("hub")
			planner := topology.New(s, nil)
			if _, err := planner.Pair("leaf0001", to); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				s = change(s, i)
				b.StartTimer()
				planner = topology.New(s, planner)
				if _, err := planner.Pair("leaf0001", to); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func planAll(b *testing.B, p *topology.Planner, ids []mesh.NodeID) {
	b.Helper()
	for _, id := range ids {
		if _, err := p.Plan(id); err != nil {
			b.Fatal(err)
		}
	}
}
