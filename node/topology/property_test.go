// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/topology"
)

// drawMesh draws a mesh of up to nine nodes, some of them stock WireGuard
// peers, with edges of few different weights, so that paths tie.
func drawMesh(t *rapid.T) builder {
	ids := make([]mesh.NodeID, rapid.IntRange(1, 9).Draw(t, "nodes"))
	for i := range ids {
		ids[i] = mesh.NodeID(fmt.Sprintf("n%d", i))
	}
	b := newMesh(ids...)
	for i, id := range ids {
		if rapid.IntRange(0, 4).Draw(t, "stock") == 0 {
			b.stock(id)
		}
		for _, other := range ids[:i] {
			if rapid.IntRange(0, 2).Draw(t, "edge") == 0 {
				b.link(other, id, rapid.SampledFrom([]int32{0, 1, 99}).Draw(t, "weight"))
			}
		}
		if rapid.IntRange(0, 2).Draw(t, "offers") == 0 {
			b.route(string(id)+"-auto", string(id),
				rapid.SampledFrom([]string{"10.0.0.0/8", "10.1.0.0/16", "172.16.0.0/24", "2001:db8::/32"}).Draw(t, "network"))
		}
	}
	return b
}

// drawACLs draws ACLs between nodes, with and without networks.
func drawACLs(t *rapid.T, b builder) []mesh.ACL {
	ids := append(b.ids(), "*")
	name := func(label string) string { return string(rapid.SampledFrom(ids).Draw(t, label)) }
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) mesh.ACL {
		acl := between(rapid.Bool().Draw(t, "accept"), name("source"), name("destination"))
		if rapid.Bool().Draw(t, "narrow") {
			acl.DestinationCIDRs = prefixes(rapid.SampledFrom([]string{
				"172.16.0.0/12", "172.16.0.2/32", "fd00::/48", "fd00:0:0:2::/112", "fd00:0:0:2::/113", "10.1.0.0/16", "11.0.0.0/8",
			}).Draw(t, "cidr"))
		}
		return acl
	}), 0, 8).Draw(t, "acls")
}

// plans makes the plan of every node.
func plans(t *rapid.T, s *mesh.Snapshot) map[mesh.NodeID]mesh.Plan {
	all := make(map[mesh.NodeID]mesh.Plan)
	for id := range s.Nodes.All() {
		plan, err := topology.For(s, id)
		if err != nil {
			t.Fatal(err)
		}
		all[id] = plan
	}
	return all
}

// behind returns the peer of a plan to which WireGuard sends packets for addr.
func behind(plan mesh.Plan, addr netip.Addr) mesh.NodeID {
	var peer mesh.NodeID
	longest := -1
	for p := range plan.Peers.All() {
		for _, allowed := range p.AllowedIPs {
			if allowed.Contains(addr) && allowed.Bits() > longest {
				peer, longest = p.Node.ID, allowed.Bits()
			}
		}
	}
	return peer
}

// distance is the length of a path.
type distance struct {
	hops   int
	weight int64
}

// less orders distances.
func (d distance) less(e distance) bool {
	return d.hops < e.hops || (d.hops == e.hops && d.weight < e.weight)
}

// distances finds all shortest paths by trying ever longer ones (Bellman-Ford).
// Only nodes that run Meshgate forward.
func distances(s *mesh.Snapshot, from mesh.NodeID) map[mesh.NodeID]distance {
	known := map[mesh.NodeID]distance{from: {}}
	for range s.Nodes.Len() {
		for _, e := range s.AllEdges() {
			for _, ends := range [][2]mesh.NodeID{{e.Source, e.Target}, {e.Target, e.Source}} {
				d, ok := known[ends[0]]
				if !ok || (ends[0] != from && !s.Node(ends[0]).RunsMeshgate()) {
					continue
				}
				d.hops++
				d.weight += int64(e.Weight)
				if best, ok := known[ends[1]]; !ok || d.less(best) {
					known[ends[1]] = d
				}
			}
		}
	}
	delete(known, from)
	return known
}

func TestFor_NoPrefixIsTwiceInAPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		b.acls(drawACLs(t, b)...)
		for id, plan := range plans(t, b.Snapshot) {
			seen := make(map[netip.Prefix]mesh.NodeID)
			for _, own := range plan.Self.Prefixes() {
				seen[own] = id
			}
			for peer := range plan.Peers.All() {
				if peer.Node.ID == id || len(peer.AllowedIPs) == 0 {
					t.Fatalf("%s has %s for a peer, with %v", id, peer.Node.ID, peer.AllowedIPs)
				}
				for _, allowed := range peer.AllowedIPs {
					if other, ok := seen[allowed]; ok || allowed != allowed.Masked() {
						t.Fatalf("%s: %v is behind %s and %s", id, allowed, other, peer.Node.ID)
					}
					seen[allowed] = peer.Node.ID
				}
			}
		}
	})
}

// With everything accepted, a plan holds exactly the nodes that a path leads
// to, each with all its addresses behind a neighbour on a shortest path.
func TestFor_EveryReachableNodeIsBehindOnePeer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		for id, plan := range plans(t, b.Snapshot) {
			reachable := distances(b.Snapshot, id)
			for other, n := range b.Nodes.All() {
				want, ok := reachable[other]
				for _, addr := range n.Addrs() {
					first := behind(plan, addr)
					if !ok && first != "" {
						t.Fatalf("%s has %s behind %s, and no path leads there", id, other, first)
					}
					if !ok {
						continue
					}
					edge, adjacent := distances(b.Snapshot, id)[first], first != ""
					if !adjacent || edge.hops != 1 {
						t.Fatalf("%s has %v of %s behind %q", id, addr, other, first)
					}
					if first == other && want.hops == 1 {
						continue
					}
					rest := distances(b.Snapshot, first)[other]
					if got := (distance{edge.hops + rest.hops, edge.weight + rest.weight}); got != want {
						t.Fatalf("%s reaches %s through %s at %v, the shortest path is %v", id, other, first, got, want)
					}
				}
			}
		}
	})
}

// A packet that follows the plans hop by hop arrives, and on every hop comes
// from the peer that WireGuard expects its source address behind.
func TestFor_PacketsArriveAndPassTheSourceCheck(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		all := plans(t, b.Snapshot)
		for from := range b.Nodes.All() {
			for to := range distances(b.Snapshot, from) {
				src, dst := b.Node(from).IPv4.Addr(), b.Node(to).IPv4.Addr()
				at := from
				for hop := 0; at != to; hop++ {
					next := behind(all[at], dst)
					if next == "" || hop > b.Nodes.Len() {
						t.Fatalf("a packet from %s to %s is lost at %s", from, to, at)
					}
					if expected := behind(all[next], src); expected != at {
						t.Fatalf("a packet from %s to %s comes to %s from %s, expected from %s", from, to, next, at, expected)
					}
					at = next
				}
			}
		}
	})
}

// Whatever the ACLs: a node has in its AllowedIPs only what they grant it.
func TestFor_HoldsOnlyWhatACLsGrant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		b.acls(drawACLs(t, b)...)
		network := policy.Compile(b.Snapshot)
		for id, plan := range plans(t, b.Snapshot) {
			for peer := range plan.Peers.All() {
				for _, allowed := range peer.AllowedIPs {
					from := policy.Endpoint{Node: string(id), Network: b.Node(id).IPv4}
					if allowed.Addr().Is6() {
						from.Network = netip.PrefixFrom(b.Node(id).IPv6.Addr(), 128)
					}
					grants := func(n mesh.NodeID) bool {
						return network.Connects(from, policy.Endpoint{Node: string(n), Network: allowed})
					}
					if !slices.ContainsFunc(holders(b.Snapshot, allowed), grants) {
						t.Fatalf("%s may send to %v through %s, and nobody granted it", id, allowed, peer.Node.ID)
					}
				}
			}
		}
	})
}

// holders returns the nodes to which a part of a network may belong.
func holders(s *mesh.Snapshot, part netip.Prefix) []mesh.NodeID {
	var ids []mesh.NodeID
	for id, n := range s.Nodes.All() {
		for _, own := range n.Prefixes() {
			if own.Overlaps(part) && own.Bits() <= part.Bits() {
				ids = append(ids, id)
			}
		}
	}
	for _, r := range s.Routes {
		for _, network := range r.Destinations {
			if network.Overlaps(part) && network.Bits() <= part.Bits() && s.Routable(network) {
				ids = append(ids, policy.Forwarders(s, r)...)
			}
		}
	}
	return ids
}

// Two neighbours either both have each other for a peer or neither does, so
// that no tunnel has one end only.
func TestFor_NeighboursAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		b.acls(drawACLs(t, b)...)
		all := plans(t, b.Snapshot)
		hasPeer := func(a, b mesh.NodeID) bool {
			_, ok := all[a].Peers.Get(b)
			return ok
		}
		for x := range b.Nodes.All() {
			for y := range b.Nodes.All() {
				if hasPeer(x, y) != hasPeer(y, x) {
					t.Fatalf("%s has %s for a peer: %v; the other way: %v", x, y, hasPeer(x, y), hasPeer(y, x))
				}
			}
		}
	})
}

// The order of a snapshot's lists and maps is not in the plan.
func TestFor_IsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		first := plans(t, b.Snapshot)
		shuffled := *b.Snapshot
		shuffled.Routes = slices.Clone(b.Routes)
		shuffle := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)).Shuffle
		edges, nodes := slices.Collect(b.Edges.All()), b.ids()
		shuffle(len(edges), func(i, j int) { edges[i], edges[j] = edges[j], edges[i] })
		shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		shuffled.Edges, shuffled.Nodes = mesh.EdgesOf(edges...), mesh.Nodes{}
		for _, id := range nodes {
			shuffled.Nodes = shuffled.Nodes.With(b.Node(id))
		}
		shuffle(len(shuffled.Routes), func(i, j int) {
			shuffled.Routes[i], shuffled.Routes[j] = shuffled.Routes[j], shuffled.Routes[i]
		})
		compare := cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), listed}
		if diff := cmp.Diff(first, plans(t, &shuffled), compare); diff != "" {
			t.Fatal(diff)
		}
	})
}

// model is what a node should have, found by trying all paths.
type model struct {
	s       *mesh.Snapshot
	network *policy.Network
	self    *mesh.Node
	nearest map[mesh.NodeID]distance
	// first are the neighbours with which a shortest path begins.
	first map[mesh.NodeID]map[mesh.NodeID]bool
}

func newModel(s *mesh.Snapshot, id mesh.NodeID) *model {
	m := &model{
		s: s, network: policy.Compile(s), self: s.Node(id),
		nearest: map[mesh.NodeID]distance{id: {}}, first: map[mesh.NodeID]map[mesh.NodeID]bool{},
	}
	for range s.Nodes.Len() {
		for _, e := range s.AllEdges() {
			m.follow(e.Source, e.Target, e.Weight)
			m.follow(e.Target, e.Source, e.Weight)
		}
	}
	delete(m.nearest, id)
	return m
}

// follow takes one edge one way.
func (m *model) follow(from, to mesh.NodeID, weight int32) {
	d, ok := m.nearest[from]
	a, b := m.s.Node(from), m.s.Node(to)
	if !ok || a == nil || b == nil || to == m.self.ID || a.PublicKey.IsZero() || b.PublicKey.IsZero() ||
		from != m.self.ID && !a.RunsMeshgate() || !m.meet(a, b) || !m.meet(m.self, b) {
		return
	}
	d = distance{d.hops + 1, d.weight + int64(weight)}
	first := m.first[from]
	if from == m.self.ID {
		first = map[mesh.NodeID]bool{to: true}
	}
	switch best, ok := m.nearest[to]; {
	case !ok || d.less(best):
		m.nearest[to], m.first[to] = d, maps.Clone(first)
	case d == best:
		maps.Copy(m.first[to], first)
	}
}

func at(n *mesh.Node, own netip.Prefix) policy.Endpoint {
	return policy.Endpoint{Node: string(n.ID), Network: netip.PrefixFrom(own.Addr(), own.Addr().BitLen())}
}

func (m *model) meet(a, b *mesh.Node) bool {
	return (a.IPv4.IsValid() || b.IPv4.IsValid()) && m.network.Connects(at(a, a.IPv4), at(b, b.IPv4)) ||
		(a.IPv6.IsValid() || b.IPv6.IsValid()) && m.network.Connects(at(a, a.IPv6), at(b, b.IPv6))
}

// holders returns for each prefix the nodes that have the best claim to it: an
// address before a route, then the nearest.
func (m *model) holders() map[netip.Prefix][]mesh.NodeID {
	claims := map[netip.Prefix][]mesh.NodeID{}
	claim := func(id mesh.NodeID, network netip.Prefix) {
		own := m.self.IPv6
		if network.Addr().Is4() {
			own = m.self.IPv4
		}
		for _, part := range m.network.Granted(at(m.self, own), policy.Endpoint{Node: string(id), Network: network}) {
			switch others := claims[part]; {
			case len(others) == 0 || m.nearest[id].less(m.nearest[others[0]]):
				claims[part] = []mesh.NodeID{id}
			case m.nearest[id] == m.nearest[others[0]]:
				claims[part] = append(others, id)
			}
		}
	}
	for id := range m.nearest {
		for _, own := range m.s.Node(id).Prefixes() {
			claim(id, own)
		}
	}
	home := map[netip.Prefix]bool{}
	for _, r := range m.s.Routes {
		for _, network := range r.Destinations {
			home[network] = home[network] || slices.Contains(policy.Forwarders(m.s, r), m.self.ID)
		}
	}
	for _, r := range m.s.Routes {
		for _, id := range policy.Forwarders(m.s, r) {
			for _, network := range r.Destinations {
				if _, reached := m.nearest[id]; reached && !home[network] && m.s.Routable(network) {
					claim(id, network)
				}
			}
		}
	}
	return claims
}

// With any ACLs and routes, a plan has exactly what a look at all paths finds:
// every address that is reachable and granted behind one peer, with which a
// shortest path to a nearest holder begins.
func TestFor_IsWhatALookAtAllPathsFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		for _, id := range b.ids() {
			switch rapid.IntRange(0, 9).Draw(t, "lacks") {
			case 0:
				b.change(id, func(n *mesh.Node) { n.PublicKey = mesh.PublicKey{} })
			case 1:
				b.change(id, func(n *mesh.Node) { n.IPv4 = netip.Prefix{} })
			case 2:
				b.change(id, func(n *mesh.Node) { n.IPv6 = netip.Prefix{} })
			}
		}
		b.Groups = []mesh.Group{group("g", string(rapid.SampledFrom(b.ids()).Draw(t, "member")), string(b.ids()[0]), "gone")}
		b.route("group", "group:g", "10.0.0.0/8", "2001:db8:1::/48")
		if rapid.Bool().Draw(t, "ACLs") {
			b.acls(append(drawACLs(t, b), between(rapid.Bool().Draw(t, "default"), "*", "*"))...)
		}
		for id, plan := range plans(t, b.Snapshot) {
			if b.Node(id).PublicKey.IsZero() {
				if plan.Peers.Len() != 0 {
					t.Fatalf("%s has peers, but no key", id)
				}
				continue
			}
			m := newModel(b.Snapshot, id)
			want := m.holders()
			for peer := range plan.Peers.All() {
				for _, allowed := range peer.AllowedIPs {
					begins := func(holder mesh.NodeID) bool { return m.first[holder][peer.Node.ID] }
					if !slices.ContainsFunc(want[allowed], begins) {
						t.Fatalf("%s has %v behind %s; it is of %v, behind %v", id, allowed, peer.Node.ID, want[allowed], m.first)
					}
					delete(want, allowed)
				}
			}
			if len(want) > 0 {
				t.Fatalf("%s lacks %v", id, want)
			}
		}
	})
}
