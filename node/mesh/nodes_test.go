// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// keys are the same few keys for every test.
func keys(n int) []mesh.PublicKey {
	list := make([]mesh.PublicKey, n)
	for i := range list {
		seed := make([]byte, 32)
		seed[0], seed[1] = byte(i), byte(i>>8)
		list[i] = mesh.KeyFromSeed(seed).Public()
	}
	return list
}

// drawNode draws a node that may have the key or the addresses of another one.
func drawNode(t *rapid.T, few []mesh.PublicKey) *mesh.Node {
	n := &mesh.Node{ID: mesh.NodeID(fmt.Sprint("n", rapid.IntRange(0, 30).Draw(t, "id")))}
	if i := rapid.IntRange(-1, len(few)-1).Draw(t, "key"); i >= 0 {
		n.PublicKey = few[i]
	}
	if i := rapid.IntRange(-1, 20).Draw(t, "IPv4"); i >= 0 {
		n.IPv4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32)
	}
	if i := rapid.IntRange(-1, 20).Draw(t, "IPv6"); i >= 0 {
		raw := netip.MustParseAddr("fd00::").As16()
		raw[13], raw[15] = byte(i/4), byte(i%4)
		n.IPv6 = netip.PrefixFrom(netip.AddrFrom16(raw), rapid.SampledFrom([]int{112, 127, 128}).Draw(t, "bits"))
	}
	if rapid.Bool().Draw(t, "public") {
		n.PrimaryEndpoint = "192.0.2.1"
	}
	n.Zone = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone")
	for _, f := range []v1.Feature{v1.Feature_NODES, v1.Feature_MEMBERSHIP} {
		if rapid.Bool().Draw(t, f.String()) {
			n.Features = append(n.Features, mesh.Feature{Kind: f})
		}
	}
	return n
}

// Whatever comes and goes, a set finds what a look at every node finds.
func TestNodes_FindWhatALookAtAllFinds(t *testing.T) {
	few := keys(20)
	rapid.Check(t, func(t *rapid.T) {
		var nodes mesh.Nodes
		naive := map[mesh.NodeID]*mesh.Node{}
		for range rapid.IntRange(0, 60).Draw(t, "changes") {
			n := drawNode(t, few)
			if rapid.IntRange(0, 3).Draw(t, "kind") == 0 {
				nodes = nodes.Without(n.ID)
				delete(naive, n.ID)
			} else {
				nodes = nodes.With(n)
				naive[n.ID] = n
			}
		}
		if got := maps.Collect(nodes.All()); !maps.Equal(got, naive) || nodes.Len() != len(naive) {
			t.Fatalf("%d nodes, want %d", nodes.Len(), len(naive))
		}
		s := &mesh.Snapshot{Nodes: nodes}
		for _, key := range few {
			is := func(n *mesh.Node) bool { return n.PublicKey == key }
			checkFound(t, naive, key, is)(s.NodeByKey(key.WireGuard()))
		}
		for i := range 24 {
			v4 := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			v6 := netip.MustParseAddr(fmt.Sprintf("fd00::%x:%x", i/4, i%4))
			mapped := netip.AddrFrom16(v4.As16())
			holds := func(addr netip.Addr) func(*mesh.Node) bool {
				return func(n *mesh.Node) bool { return n.IPv4.Contains(addr) || n.IPv6.Contains(addr) }
			}
			checkFound(t, naive, v4, holds(v4))(s.NodeByAddr(v4))
			checkFound(t, naive, mapped, holds(v4))(s.NodeByAddr(mapped))
			checkFound(t, naive, v6, holds(v6))(s.NodeByAddr(v6))
			for _, addr := range []netip.Addr{v4, mapped, v6, v6.WithZone("eth0"), {}} {
				checkHolders(t, naive, nodes, addr)
			}
			if n, ok := s.NodeByAddr(v6.WithZone("eth0")); ok {
				t.Fatalf("an address with a zone belongs to %v", n)
			}
			for _, p := range []netip.Prefix{
				netip.PrefixFrom(v4, 27+i%6), netip.PrefixFrom(v6, 108+i%21), netip.PrefixFrom(v6, 0), netip.PrefixFrom(v4, 0),
			} {
				touches := func(n *mesh.Node) bool { return n.IPv4.Overlaps(p) || n.IPv6.Overlaps(p) }
				checkFound(t, naive, p, touches)(nodes.Overlapping(p))
			}
			free := v4
			for _, ok := nodes.ByAddr(free); ok; _, ok = nodes.ByAddr(free) {
				free = free.Next()
			}
			if got := nodes.NextFreeIPv4(v4); got != free {
				t.Fatalf("next free from %v is %v, want %v", v4, got, free)
			}
		}
	})
}

// checkFound checks that a node was found exactly when one of all matches, and
// that it is one of those.
func checkFound(t *rapid.T, all map[mesh.NodeID]*mesh.Node, what any, is func(*mesh.Node) bool) func(*mesh.Node, bool) {
	return func(got *mesh.Node, ok bool) {
		want := slices.ContainsFunc(slices.Collect(maps.Values(all)), is)
		if ok != want || (ok && !is(all[got.ID])) {
			t.Fatalf("%v: got %v, %v, want %v", what, got, ok, want)
		}
	}
}

// checkHolders checks that all nodes with an address are found, by their ids.
func checkHolders(t *rapid.T, all map[mesh.NodeID]*mesh.Node, nodes mesh.Nodes, addr netip.Addr) {
	var want, got []string
	for _, n := range all {
		for _, own := range n.Prefixes() {
			if own.Contains(addr.Unmap()) {
				want = append(want, fmt.Sprint(n.ID, " ", own))
			}
		}
	}
	slices.Sort(want)
	for n, own := range nodes.Holders(addr) {
		got = append(got, fmt.Sprint(n.ID, " ", own))
	}
	if !slices.Equal(want, got) {
		t.Fatalf("holders of %v: %q, want %q", addr, got, want)
	}
}

// The key that a set keeps for a node is that of the node, also of one that is
// not, or no longer, in the set.
func TestNodes_WireGuardKey(t *testing.T) {
	k := keys(3)
	nodes := mesh.NodesOf(&mesh.Node{ID: "a", PublicKey: k[0]}, &mesh.Node{ID: "stock"})
	for _, n := range []*mesh.Node{
		{ID: "a", PublicKey: k[0]}, {ID: "a", PublicKey: k[1]}, {ID: "b", PublicKey: k[2]}, {ID: "stock"}, {ID: "a"},
	} {
		if got, want := nodes.WireGuardKey(n), n.PublicKey.WireGuard(); got != want {
			t.Errorf("%s with key %s: %s, want %s", n.ID, n.PublicKey, got, want)
		}
	}
}

func TestNodes_Changes(t *testing.T) {
	a, b, c := &mesh.Node{ID: "a"}, &mesh.Node{ID: "b"}, &mesh.Node{ID: "c"}
	old := mesh.NodesOf(a, b)
	b2 := &mesh.Node{ID: "b", Zone: "z"}
	var got []string
	for before, after := range old.With(b2).With(c).Without("a").Changes(old) {
		got = append(got, fmt.Sprint(before == a && after == nil, before == b && after == b2, before == nil && after == c))
	}
	if want := []string{"true false false", "false true false", "false false true"}; !slices.Equal(got, want) {
		t.Errorf("changes %v", got)
	}
	for range old.Changes(old) {
		t.Error("a set differs from itself")
	}
}

func TestEdges(t *testing.T) {
	s := mesh.EdgesOf(mesh.Edge{Source: "b", Target: "a", Weight: 1}, mesh.Edge{Source: "b", Target: "c", Weight: 2})
	if e, ok := s.Get("b", "a"); !ok || e.Source != "a" || e.Target != "b" || e.Weight != 1 {
		t.Errorf("edge of a and b: %v, %v", e, ok)
	}
	changed := s.With(mesh.Edge{Source: "a", Target: "b", Weight: 9}).Without("c", "b").With(mesh.Edge{Source: "a", Target: "a"})
	weights := func(s mesh.Edges, id mesh.NodeID) (list []int32) {
		for e := range s.Of(id) {
			list = append(list, e.Weight)
		}
		return list
	}
	if got := weights(changed, "b"); !slices.Equal(got, []int32{9}) || changed.Len() != 1 || len(slices.Collect(changed.All())) != 1 {
		t.Errorf("after the change b has %v of %d edges", got, changed.Len())
	}
	if got := weights(s, "b"); !slices.Equal(got, []int32{1, 2}) || s.Len() != 2 {
		t.Errorf("before the change b had %v of %d edges", got, s.Len())
	}
	var got []string
	for was, is := range changed.Changes(s) {
		got = append(got, fmt.Sprint(was.Weight, is != nil))
	}
	if want := []string{"1 true", "2 false"}; !slices.Equal(got, want) {
		t.Errorf("changes %v, want %v", got, want)
	}
}

// An address of nobody is nobody's, also next to one that somebody holds.
func TestNodes_ByAddrOfNobody(t *testing.T) {
	nodes := mesh.NodesOf(
		&mesh.Node{ID: "a", IPv4: netip.MustParsePrefix("10.0.0.5/32"), IPv6: netip.MustParsePrefix("fd00:0:1:5::/112")},
		&mesh.Node{ID: "b", IPv4: netip.MustParsePrefix("10.0.0.9/32"), IPv6: netip.MustParsePrefix("fd00:0:1:9::/112")},
	)
	for _, addr := range []string{"10.0.0.4", "10.0.0.6", "10.0.0.10", "8.8.8.8", "255.255.255.255", "fd00:0:1:4::", "fd00:0:1:6::", "fd00:0:1:10::", "::1"} {
		if n, ok := nodes.ByAddr(netip.MustParseAddr(addr)); n != nil || ok {
			t.Errorf("%s: %v, %v", addr, n.ID, ok)
		}
	}
}
