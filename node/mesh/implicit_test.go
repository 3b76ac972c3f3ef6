// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// publicNode is one that others can dial and that runs Meshgate.
func publicNode(i int, zone string, features ...v1.Feature) *mesh.Node {
	n := &mesh.Node{
		ID: mesh.NodeID(fmt.Sprintf("n%04d", i)), PublicKey: mesh.PublicKey{1, byte(i), byte(i >> 8)},
		PrimaryEndpoint: "192.0.2.1", Zone: zone, Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}},
	}
	for _, f := range features {
		n.Features = append(n.Features, mesh.Feature{Kind: f, Port: 8443})
	}
	return n
}

func neighbours(s *mesh.Snapshot, id mesh.NodeID) map[mesh.NodeID]int32 {
	found := map[mesh.NodeID]int32{}
	for e := range s.EdgesOf(id) {
		other := e.Source
		if other == id {
			other = e.Target
		}
		if _, twice := found[other]; twice || other == id {
			panic(fmt.Sprintf("%s has the edge to %s twice", id, other))
		}
		found[other] = e.Weight
	}
	return found
}

func TestEdgesOf_SmallMeshesAreFull(t *testing.T) {
	for _, size := range []int{1, 2, 3, 91, 129} {
		s := &mesh.Snapshot{}
		for i := range size {
			s.Nodes = s.Nodes.With(publicNode(i, ""))
		}
		for id := range s.Nodes.All() {
			if got := neighbours(s, id); len(got) != size-1 {
				t.Fatalf("of %d public nodes %s has an edge to %d", size, id, len(got))
			}
		}
		all := s.AllEdges()
		if len(all) != size*(size-1)/2 || s.Edges.Len() != 0 {
			t.Errorf("%d public nodes: %d edges, %d of them stored", size, len(all), s.Edges.Len())
		}
	}
}

func TestEdgesOf_LargeMeshesAreSparse(t *testing.T) {
	s := &mesh.Snapshot{}
	const size, gateways = 600, 3
	for i := range size {
		n := publicNode(i, "")
		if i < gateways {
			n = publicNode(i, "", v1.Feature_MEMBERSHIP)
		}
		s.Nodes = s.Nodes.With(n)
	}
	for id := range s.Nodes.All() {
		got := neighbours(s, id)
		if id < "n0003" {
			if len(got) != size-1 {
				t.Fatalf("gateway %s has %d neighbours", id, len(got))
			}
			continue
		}
		if len(got) < 128 || len(got) > 128+gateways || got["n0000"] != 99 || got["n0001"] != 99 || got["n0002"] != 99 {
			t.Fatalf("%s has %d neighbours", id, len(got))
		}
	}
	if got := len(s.AllEdges()); got != 0 {
		t.Errorf("a mesh of %d public nodes shows %d edges", size, got)
	}
	changed := 0
	next := &mesh.Snapshot{Nodes: s.Nodes.With(publicNode(size, ""))}
	for id := range s.Nodes.All() {
		if id >= "n0003" && !sameKeys(neighbours(next, id), neighbours(s, id)) {
			changed++
		}
	}
	if changed > 128 || changed < 64 {
		t.Errorf("one more node changed the neighbours of %d", changed)
	}
}

func sameKeys(a, b map[mesh.NodeID]int32) bool {
	if len(a) != len(b) {
		return false
	}
	for id := range a {
		if _, ok := b[id]; !ok {
			return false
		}
	}
	return true
}

func TestEdgesOf_Rules(t *testing.T) {
	stock := publicNode(5, "east")
	stock.Features = nil
	private := publicNode(6, "east")
	private.PrimaryEndpoint = ""
	keyless := publicNode(7, "east")
	keyless.PublicKey = mesh.PublicKey{}
	s := &mesh.Snapshot{
		Nodes: mesh.NodesOf(publicNode(0, "east"), publicNode(1, "east"), publicNode(2, "west"), publicNode(3, ""), stock, private, keyless),
		Edges: mesh.EdgesOf(mesh.Edge{Source: "n0000", Target: "n0003", Weight: 7}, mesh.Edge{Source: "n0000", Target: "n0006", Weight: 1}),
	}
	want := map[mesh.NodeID]int32{"n0001": 1, "n0002": 99, "n0003": 7, "n0006": 1}
	if got := neighbours(s, "n0000"); !sameKeys(got, want) || got["n0001"] != 1 || got["n0002"] != 99 || got["n0003"] != 7 {
		t.Errorf("got %v, want %v", got, want)
	}
	for id, want := range map[mesh.NodeID]int{"n0005": 0, "n0006": 1, "n0007": 0, "nobody": 0} {
		if got := neighbours(s, id); len(got) != want {
			t.Errorf("%s has %v", id, got)
		}
	}
}

// Each edge is there from both of its ends alike, and all of them together are
// the edges of the mesh.
func TestEdgesOf_AgreeFromBothEnds(t *testing.T) {
	few := keys(20)
	rapid.Check(t, func(t *rapid.T) {
		s := &mesh.Snapshot{}
		for range rapid.IntRange(0, 30).Draw(t, "nodes") {
			s.Nodes = s.Nodes.With(drawNode(t, few))
		}
		for i := range rapid.SampledFrom([]int{0, 5, 140}).Draw(t, "crowd") {
			zone := rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone")
			s.Nodes = s.Nodes.With(publicNode(i, zone))
		}
		for range rapid.IntRange(0, 10).Draw(t, "edges") {
			end := func() mesh.NodeID { return mesh.NodeID(fmt.Sprint("n", rapid.IntRange(0, 30).Draw(t, "end"))) }
			s.Edges = s.Edges.With(mesh.Edge{Source: end(), Target: end(), Weight: 3})
		}
		total, of := 0, map[mesh.NodeID]map[mesh.NodeID]int32{}
		for id := range s.Nodes.All() {
			of[id] = neighbours(s, id)
		}
		for id := range s.Nodes.All() {
			for other, weight := range of[id] {
				if s.Node(other) == nil {
					continue // a stored edge to nobody
				}
				total++
				if back, ok := of[other][id]; !ok || back != weight {
					t.Fatalf("%s has an edge of %d to %s, which has one of %d: %v", id, weight, other, back, ok)
				}
			}
		}
		all := s.AllEdges()
		inOrder := slices.IsSortedFunc(all, func(a, b mesh.Edge) int {
			return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Target, b.Target))
		})
		dangling := 0
		for _, e := range all {
			if s.Node(e.Source) == nil || s.Node(e.Target) == nil {
				dangling++
			}
		}
		if !inOrder || 2*(len(all)-dangling) != total {
			t.Fatalf("%d edges, want %d; in order: %v", len(all), total/2, inOrder)
		}
	})
}

func TestNodes_PublicInZone(t *testing.T) {
	var s mesh.Nodes
	for i := range 300 {
		s = s.With(publicNode(i, []string{"east", "west", ""}[i%3]))
	}
	firsts := map[mesh.NodeID]bool{}
	for i := range 50 {
		seen := map[mesh.NodeID]bool{}
		first := mesh.NodeID("")
		for n := range s.PublicInZone("east", mesh.NodeID(fmt.Sprint("private", i))) {
			first = cmp.Or(first, n.ID)
			if n.Zone != "east" || seen[n.ID] {
				t.Fatalf("%s of zone %q comes for zone east; twice: %v", n.ID, n.Zone, seen[n.ID])
			}
			seen[n.ID] = true
		}
		if len(seen) != 100 {
			t.Fatalf("%d nodes of the zone", len(seen))
		}
		firsts[first] = true
	}
	if len(firsts) < 25 {
		t.Errorf("50 nodes begin at %d places only", len(firsts))
	}
	for range s.PublicInZone("", "x") {
		t.Fatal("no zone has nodes")
	}
}

// Whatever changes about the nodes: each edge that is another afterwards is
// among those that Relinked tells, and EdgeBetween has it.
func TestRelinked_TellsEveryEdgeThatDiffers(t *testing.T) {
	const size = 150
	// Few gateways, to which all are linked, and more than one is linked to.
	starts := make(map[int]*mesh.Snapshot)
	for gateways, every := range map[int]int{8: 20, 75: 2} {
		s := new(mesh.Snapshot)
		for i := range size {
			n := publicNode(i, []string{"", "", "z"}[i%3])
			if i%every == 1 {
				n.Features = append(n.Features, mesh.Feature{Kind: v1.Feature_MEMBERSHIP, Port: 8443})
			}
			s.Nodes = s.Nodes.With(n)
		}
		starts[gateways] = s
	}
	implicit := func(s *mesh.Snapshot) map[[2]mesh.NodeID]int32 {
		edges := make(map[[2]mesh.NodeID]int32)
		for _, e := range s.AllEdges() {
			edges[[2]mesh.NodeID{e.Source, e.Target}] = e.Weight
		}
		return edges
	}
	linked := map[int]map[[2]mesh.NodeID]int32{8: implicit(starts[8]), 75: implicit(starts[75])}
	rapid.Check(t, func(t *rapid.T) {
		gateways := rapid.SampledFrom([]int{8, 75}).Draw(t, "gateways")
		before, was := starts[gateways], linked[gateways]
		after := *before
		// Enough to come from more gateways than one is linked to to fewer.
		for i := range rapid.SampledFrom([]int{0, 0, 11, 20}).Draw(t, "gateways less") {
			after.Nodes = after.Nodes.With(publicNode(2*i+1, ""))
		}
		for range rapid.SampledFrom([]int{1, 2, 3, 4, 30, 140}).Draw(t, "changes") {
			i := rapid.IntRange(0, size+3).Draw(t, "node")
			n := publicNode(i, rapid.SampledFrom([]string{"", "y", "z"}).Draw(t, "zone"))
			switch rapid.SampledFrom([]string{"gone", "public", "gateway", "private", "keyless"}).Draw(t, "is") {
			case "gone":
				after.Nodes = after.Nodes.Without(n.ID)
				continue
			case "gateway":
				n.Features = append(n.Features, mesh.Feature{Kind: v1.Feature_MEMBERSHIP, Port: 8443})
			case "private":
				n.PrimaryEndpoint = ""
			case "keyless":
				n.PublicKey = mesh.PublicKey{}
			}
			after.Nodes = after.Nodes.With(n)
		}
		told := make(map[[2]mesh.NodeID]bool)
		for a, b := range after.Relinked(before) {
			if told[[2]mesh.NodeID{a, b}] {
				t.Fatalf("%s and %s are told twice", a, b)
			}
			told[[2]mesh.NodeID{a, b}] = true
		}
		is := implicit(&after)
		for _, edges := range []map[[2]mesh.NodeID]int32{was, is} {
			for ends := range edges {
				old, existed := was[ends]
				weight, exists := is[ends]
				if (existed != exists || old != weight) && !told[ends] {
					t.Fatalf("the edge of %v differs, and is not told", ends)
				}
				a, b := after.Node(ends[0]), after.Node(ends[1])
				if a == nil || b == nil {
					continue
				}
				if e, ok := after.EdgeBetween(b, a); ok != exists || ok && (e.Weight != weight || e.Source != ends[0] || e.Target != ends[1]) {
					t.Fatalf("the edge of %v is %v, %v by itself, of weight %d among all: %v", ends, e, ok, weight, exists)
				}
			}
		}
	})
}

// What makes no edges relinks nobody, and one node more or less those around it
// and the pairs that it keeps apart.
func TestRelinked_IsBounded(t *testing.T) {
	var s mesh.Snapshot
	for i := range 1000 {
		s.Nodes = s.Nodes.With(publicNode(i, ""))
	}
	moved := s
	n := *s.Node("n0007")
	n.PrimaryEndpoint = "192.0.2.99"
	moved.Nodes = s.Nodes.With(&n)
	if got := maps.Collect(moved.Relinked(&s)); len(got) != 0 {
		t.Errorf("an endpoint relinks %v", got)
	}
	more := s
	more.Nodes = s.Nodes.With(publicNode(1000, ""))
	for _, ways := range [][2]*mesh.Snapshot{{&s, &more}, {&more, &s}} {
		n := 0
		for range ways[1].Relinked(ways[0]) {
			n++
		}
		if n != 128+64 {
			t.Errorf("a node more or less relinks %d pairs, want 128 with it and 64 around it", n)
		}
	}
}

// Many that come and go at once relink those around them, and of all others the
// pairs that differ.
func TestRelinked_OfManyIsWhatDiffers(t *testing.T) {
	var before mesh.Snapshot
	for i := range 400 {
		before.Nodes = before.Nodes.With(publicNode(i, ""))
	}
	after := before
	for i := range 25 {
		after.Nodes = after.Nodes.Without(publicNode(7*i, "").ID).With(publicNode(400+i, ""))
	}
	edges := func(s *mesh.Snapshot) map[[2]mesh.NodeID]bool {
		all := make(map[[2]mesh.NodeID]bool)
		for _, e := range s.AllEdges() {
			all[[2]mesh.NodeID{e.Source, e.Target}] = true
		}
		return all
	}
	was, is := edges(&before), edges(&after)
	told := 0
	for a, b := range after.Relinked(&before) {
		told++
		if was[[2]mesh.NodeID{a, b}] == is[[2]mesh.NodeID{a, b}] {
			t.Errorf("%s and %s are told, whose edge is as before", a, b)
		}
	}
	if told < 50*64 {
		t.Errorf("only %d pairs are told", told)
	}
}
