// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

// filterSnapshot is a mesh of the nodes a, b and c; c offers routes.
func filterSnapshot(list ...mesh.ACL) *mesh.Snapshot {
	s := acls(list...)
	s.IPv4, s.IPv6 = netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("fd00:1::/32")
	for i, id := range []mesh.NodeID{"a", "b", "c"} {
		s.Nodes = s.Nodes.With(&mesh.Node{
			ID:   id,
			IPv4: netip.MustParsePrefix(fmt.Sprintf("172.16.0.%d/32", i+1)),
			IPv6: netip.MustParsePrefix(fmt.Sprintf("fd00:1:0:%d::/112", i+1)),
		})
	}
	s.Routes = []mesh.Route{
		{Name: "c", Node: "c", Destinations: prefixes("10.0.0.0/8", "172.16.9.0/24", "fd00:1:0:1::/120", "127.0.0.0/8")},
		{Name: "wide", Node: "b", Destinations: prefixes("10.0.0.0/7", "192.0.2.0/24")},
	}
	return s
}

// passes is a forward filter that is asked about addresses only.
func passes(s *mesh.Snapshot) func(src, dst netip.Addr) bool {
	f := policy.ForwardFilter(s, policy.NewFlows())
	return func(src, dst netip.Addr) bool { return f.Allow(mesh.Packet{Src: src, Dst: dst}) }
}

func TestFilter(t *testing.T) {
	aToB := mesh.ACL{Accept: true, SourceNodes: []string{"a"}, DestinationNodes: []string{"b"}}
	denyAToB := mesh.ACL{SourceNodes: []string{"a"}, DestinationNodes: []string{"b"}}
	aToC := mesh.ACL{Accept: true, SourceNodes: []string{"a"}, DestinationNodes: []string{"c"}}
	cases := []struct {
		name     string
		acls     []mesh.ACL
		src, dst string
		want     bool
	}{
		{"no ACL", nil, "172.16.0.1", "172.16.0.2", false},
		{"accepted", []mesh.ACL{aToB}, "172.16.0.1", "172.16.0.2", true},
		{"reply", []mesh.ACL{aToB}, "172.16.0.2", "172.16.0.1", true},
		{"IPv6", []mesh.ACL{aToB}, "fd00:1:0:1::", "fd00:1:0:2::", true},
		{"all of a node's IPv6 network is the node", []mesh.ACL{aToB}, "fd00:1:0:1::7", "fd00:1:0:2::ffff", true},
		{"mapped", []mesh.ACL{aToB}, "::ffff:172.16.0.1", "172.16.0.2", true},
		{"denied one way, accepted by a weaker ACL", []mesh.ACL{denyAToB, {Accept: true}}, "172.16.0.1", "172.16.0.2", false},
		{"denied one way, the other way", []mesh.ACL{denyAToB, {Accept: true}}, "172.16.0.2", "172.16.0.1", false},
		{"accepted one way, denied by a weaker ACL", []mesh.ACL{aToB, {}}, "172.16.0.2", "172.16.0.1", true},
		{"another node", []mesh.ACL{aToB}, "172.16.0.1", "172.16.0.3", false},
		{"address of nobody", []mesh.ACL{{Accept: true}}, "172.16.0.1", "172.16.0.9", false},
		{"address of nobody, by route", []mesh.ACL{{Accept: true}}, "172.16.0.1", "172.16.9.9", false},
		{"route", []mesh.ACL{aToC}, "172.16.0.1", "10.1.2.3", true},
		{"route, reply", []mesh.ACL{aToC}, "10.1.2.3", "172.16.0.1", true},
		{"route of another node", []mesh.ACL{aToB}, "172.16.0.1", "10.1.2.3", false},
		{"the wider route is b's", []mesh.ACL{aToB}, "172.16.0.1", "11.1.2.3", true},
		{"no route takes a node's address", []mesh.ACL{aToC}, "fd00:1:0:1::1", "fd00:1:0:2::", false},
		{"loopback is never routed to c", []mesh.ACL{aToC}, "172.16.0.1", "127.0.0.1", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			allow := passes(filterSnapshot(c.acls...))
			for range 2 { // decided, then remembered
				if got := allow(netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst)); got != c.want {
					t.Errorf("Filter = %v", got)
				}
			}
		})
	}
}

func TestFilter_RefusesTheZeroAddress(t *testing.T) {
	allow := passes(filterSnapshot(mesh.ACL{Accept: true}))
	if allow(netip.Addr{}, netip.MustParseAddr("172.16.0.1")) || allow(netip.Addr{}, netip.Addr{}) {
		t.Error("a packet without addresses passes")
	}
}

func TestFilter_AnyNodeOfAGroupMayForward(t *testing.T) {
	s := filterSnapshot(mesh.ACL{Accept: true, SourceNodes: []string{"a"}, DestinationNodes: []string{"c"}})
	s.Groups = append(s.Groups, mesh.Group{Name: "exits", Subjects: []mesh.Subject{node("b"), node("c")}})
	s.Routes = []mesh.Route{{Name: "exit", Node: "group:exits", Destinations: prefixes("10.0.0.0/8")}}
	if !passes(s)(netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("10.0.0.1")) {
		t.Error("a network is out of reach although one of its nodes is not")
	}
}

// Many more pairs than there are slots, asked at the same time, are each
// decided as by a filter that remembers nothing.
func TestFilter_StaysRightUnderConcurrentFloods(t *testing.T) {
	s := filterSnapshot(mesh.ACL{DestinationCIDRs: prefixes("10.0.1.0/24")}, mesh.ACL{Accept: true})
	allow := passes(s)
	self := netip.MustParseAddr("172.16.0.1")
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 4 * policy.FilterSlots / 3 {
				var raw [4]byte
				binary.BigEndian.PutUint32(raw[:], 10<<24+uint32(i))
				addr := netip.AddrFrom4(raw)
				want := raw[1] != 0 || raw[2] != 1
				if got := allow(self, addr); got != want {
					t.Errorf("worker %d: %v = %v", worker, addr, got)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A filter is made for each plan, of which most see few packets.
func TestFilter_TakesMemoryForWhatItDecided(t *testing.T) {
	s := filterSnapshot(mesh.ACL{Accept: true})
	f := policy.ForwardFilter(s, policy.NewFlows())
	if n := policy.Pages(f); n != 0 {
		t.Errorf("%d pages of a new filter", n)
	}
	there, back := netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("172.16.0.2")
	for range 3 {
		f.Allow(mesh.Packet{Src: there, Dst: back})
		f.Allow(mesh.Packet{Src: back, Dst: there})
	}
	if n := policy.Pages(f); n != 1 {
		t.Errorf("%d pages for one pair of addresses", n)
	}
}

func BenchmarkFilter(b *testing.B) {
	s := filterSnapshot(mesh.ACL{Accept: true, SourceNodes: []string{"group:loop"}}, mesh.ACL{Accept: true})
	src, dst := netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("172.16.0.2")
	b.Run("remembered", func(b *testing.B) {
		f := policy.ForwardFilter(s, policy.NewFlows())
		p := mesh.Packet{Src: src, Dst: dst}
		b.ReportAllocs()
		for b.Loop() {
			f.Allow(p)
		}
	})
	b.Run("decided", func(b *testing.B) {
		f := policy.ForwardFilter(s, policy.NewFlows())
		p := mesh.Packet{Src: src}
		b.ReportAllocs()
		var n uint32
		for b.Loop() {
			n++
			p.Dst = netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
			f.Allow(p)
		}
	})
}
