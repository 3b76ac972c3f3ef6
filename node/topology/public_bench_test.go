// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/topology"
)

// publicJoined is publicMesh without zones, where all others joined at the
// gateway.
func publicJoined(n int) builder {
	b := publicMesh(n)
	for _, id := range b.ids() {
		b.change(id, func(n *mesh.Node) { n.Zone = "" })
		if id != publicGateway {
			b.link(id, publicGateway, 1)
		}
	}
	return b
}

// publicJoins lets a public node join at the gateway.
func publicJoins(s *mesh.Snapshot, i int) *mesh.Snapshot {
	next := *s
	next.Version++
	id := mesh.NodeID(fmt.Sprint("guest", i))
	n := *newMesh(id).Node(id)
	n.PrimaryEndpoint = "192.0.2.1"
	n.IPv4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(i >> 8), byte(i)}), 32)
	n.IPv6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 6: 0x80 | byte(i>>8), 7: byte(i)}), 112)
	next.Nodes = s.Nodes.With(&n)
	next.Edges = s.Edges.With(mesh.Edge{Source: min(id, publicGateway), Target: max(id, publicGateway), Weight: 1})
	return &next
}

// BenchmarkPublic plans for nodes of a mesh in which all can be dialled.
func BenchmarkPublic(b *testing.B) {
	for _, size := range []int{100, 1000, 10_000} {
		all := publicJoined(size)
		b.Run(fmt.Sprint(size, "/a join, plans of the gateway and the new one"), func(b *testing.B) {
			p := topology.New(all.Snapshot, nil)
			planAll(b, p, []mesh.NodeID{publicGateway, "n0001"})
			for i := 0; b.Loop(); i++ {
				p = topology.New(publicJoins(p.Snapshot(), i), p)
				planAll(b, p, []mesh.NodeID{publicGateway, mesh.NodeID(fmt.Sprint("guest", i))})
			}
		})
		asked := all.ids()
		asked = asked[:min(len(asked), 1000)]
		b.Run(fmt.Sprint(size, "/a join, plans of a thousand"), func(b *testing.B) {
			p := topology.New(all.Snapshot, nil)
			planAll(b, p, asked)
			for i := 0; b.Loop(); i++ {
				p = topology.New(publicJoins(p.Snapshot(), i), p)
				planAll(b, p, asked)
			}
		})
		for _, c := range []struct {
			name string
			acl  mesh.ACL
		}{
			{"an ACL without effect", between(true, "*", "*")},
			{"an ACL between two", between(false, "n0001", "n0002")},
		} {
			b.Run(fmt.Sprint(size, "/", c.name, ", plans of a thousand"), func(b *testing.B) {
				p := topology.New(all.Snapshot, nil)
				planAll(b, p, asked)
				for i := 0; b.Loop(); i++ {
					next := *p.Snapshot()
					next.Version++
					if next.ACLs = all.ACLs; i%2 == 0 {
						next.ACLs = append([]mesh.ACL{c.acl}, all.ACLs...)
					}
					p = topology.New(&next, p)
					planAll(b, p, asked)
				}
			})
		}
	}
}

// BenchmarkPublic_Crowd plans for the gateway after fifty nodes came, and after
// they left again.
func BenchmarkPublic_Crowd(b *testing.B) {
	for _, size := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			without := publicJoined(size).Snapshot
			with := without
			for i := range 50 {
				with = publicJoins(with, i)
			}
			p := topology.New(without, nil)
			planAll(b, p, []mesh.NodeID{publicGateway, "n0001"})
			for b.Loop() {
				for _, s := range []*mesh.Snapshot{with, without} {
					next := *s
					next.Version = p.Snapshot().Version + 1
					p = topology.New(&next, p)
					planAll(b, p, []mesh.NodeID{publicGateway, "n0001"})
				}
			}
		})
	}
}
