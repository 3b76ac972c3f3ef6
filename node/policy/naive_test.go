// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// naiveAccepts is the meaning of network ACLs, written as plainly as can be:
// one address at a time, groups searched anew for each question.
func naiveAccepts(s *mesh.Snapshot, f policy.Flow) bool {
	for _, acl := range s.ACLs {
		if naiveMatch(s, acl, f) {
			return acl.Accept
		}
	}
	return false
}

// naiveOpens is the meaning of ACLs for a node that opens a conversation with
// packets: ACLs without protocols and ports hold in both directions.
func naiveOpens(s *mesh.Snapshot, f policy.Flow) bool {
	for _, acl := range s.ACLs {
		restricted := len(acl.Protocols) > 0 || len(acl.Ports) > 0
		if naiveMatch(s, acl, f) || (!restricted && naiveMatch(s, acl, reverse(f))) {
			return acl.Accept
		}
	}
	return false
}

// reverse is a flow in the other direction, with the same protocol and port.
func reverse(f policy.Flow) policy.Flow {
	f.SrcNode, f.DstNode = string(f.DstNode), mesh.NodeID(f.SrcNode)
	f.Src, f.Dst = f.Dst, f.Src
	return f
}

// naiveConnects is the meaning of ACLs for a pair of addresses: somebody may
// open some conversation.
func naiveConnects(s *mesh.Snapshot, f policy.Flow) bool {
	for _, f.Protocol = range worldProtocols() {
		for _, f.Port = range worldPorts() {
			if naiveOpens(s, f) || naiveOpens(s, reverse(f)) {
				return true
			}
		}
	}
	return false
}

func naiveMatch(s *mesh.Snapshot, acl mesh.ACL, f policy.Flow) bool {
	return naiveNodes(s, acl.SourceNodes, f.SrcNode) && naiveNodes(s, acl.DestinationNodes, string(f.DstNode)) &&
		naiveCIDRs(acl.SourceCIDRs, f.Src) && naiveCIDRs(acl.DestinationCIDRs, f.Dst) &&
		(len(acl.Protocols) == 0 || slices.Contains(acl.Protocols, f.Protocol)) &&
		(len(acl.Ports) == 0 || f.Protocol.HasPorts() && slices.Contains(acl.Ports, f.Port))
}

// ACLs name the first three of these; the others stand for all others, with
// ports and without.
func worldProtocols() []mesh.Protocol {
	return []mesh.Protocol{mesh.ProtocolTCP, mesh.ProtocolUDP, mesh.ProtocolICMP, mesh.ProtocolSCTP, 47}
}

func worldPorts() []uint16 { return []uint16{22, 53, 443, 40000} }

func naiveNodes(s *mesh.Snapshot, list []string, id string) bool {
	if len(list) == 0 {
		return true
	}
	for _, entry := range list {
		if name, ok := strings.CutPrefix(entry, "group:"); ok {
			if naiveMember(s, name, id, len(s.Groups)) {
				return true
			}
		} else if entry == "*" || entry == id {
			return true
		}
	}
	return false
}

// naiveMember searches to a depth beyond which groups only repeat.
func naiveMember(s *mesh.Snapshot, group, id string, depth int) bool {
	for _, g := range s.Groups {
		if g.Name != group {
			continue
		}
		for _, subject := range g.Subjects {
			switch {
			case subject.Type == v1.SubjectType_SUBJECT_GROUP:
				if depth > 0 && naiveMember(s, subject.Name, id, depth-1) {
					return true
				}
			case subject.Name == "*" || subject.Name == id:
				return true
			}
		}
	}
	return false
}

func naiveCIDRs(list []netip.Prefix, addr netip.Addr) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p netip.Prefix) bool {
		return p.Contains(addr) || (p.Bits() == 0 && !addr.IsValid())
	})
}

// The world of the generator is small, so that things collide: four nodes,
// three groups, addresses in 10.0.0.0/28 and fd00::/124.
func drawName(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "name")
}

func drawGroupName(t *rapid.T) string {
	return rapid.SampledFrom([]string{"g", "h", "i"}).Draw(t, "group")
}

func drawPrefix(t *rapid.T) netip.Prefix {
	if rapid.Bool().Draw(t, "v6") {
		addr := netip.MustParseAddr("fd00::").As16()
		addr[15] = rapid.ByteRange(0, 15).Draw(t, "host")
		bits := rapid.SampledFrom([]int{0, 120, 124, 126, 127, 128}).Draw(t, "bits")
		return netip.PrefixFrom(netip.AddrFrom16(addr), bits).Masked()
	}
	addr := netip.AddrFrom4([4]byte{10, 0, 0, rapid.ByteRange(0, 15).Draw(t, "host")})
	return netip.PrefixFrom(addr, rapid.SampledFrom([]int{0, 8, 28, 29, 30, 31, 32}).Draw(t, "bits")).Masked()
}

// drawAddr draws an address of the world, or the unknown one.
func drawAddr(t *rapid.T) netip.Addr {
	if rapid.IntRange(0, 9).Draw(t, "unknown") == 0 {
		return netip.Addr{}
	}
	p := drawPrefix(t)
	return p.Addr()
}

func drawNodes(t *rapid.T) []string {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			return "*"
		case 1, 2:
			return "group:" + drawGroupName(t)
		default:
			return drawName(t)
		}
	}), 0, 2).Draw(t, "nodes")
}

func drawGroups(t *rapid.T) []mesh.Group {
	var list []mesh.Group
	for _, name := range []string{"g", "h", "i"} {
		subjects := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) mesh.Subject {
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0:
				return all("*")
			case 1, 2, 3, 4:
				return group(drawGroupName(t))
			default:
				return node(drawName(t))
			}
		}), 0, 3).Draw(t, "subjects")
		list = append(list, mesh.Group{Name: name, Subjects: subjects})
	}
	return list
}

func drawACLs(t *rapid.T) []mesh.ACL {
	list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) mesh.ACL {
		cidrs := rapid.SliceOfN(rapid.Custom(drawPrefix), 0, 2)
		return mesh.ACL{
			Priority:         rapid.Int32Range(-2, 2).Draw(t, "priority"),
			Accept:           rapid.IntRange(0, 2).Draw(t, "accept") > 0,
			SourceNodes:      drawNodes(t),
			DestinationNodes: drawNodes(t),
			SourceCIDRs:      cidrs.Draw(t, "source"),
			DestinationCIDRs: cidrs.Draw(t, "destination"),
			Protocols:        rapid.SliceOfNDistinct(rapid.SampledFrom(worldProtocols()[:3]), 0, 2, rapid.ID).Draw(t, "protocols"),
			Ports:            rapid.SliceOfNDistinct(rapid.SampledFrom(worldPorts()[:3]), 0, 2, rapid.ID).Draw(t, "ports"),
		}
	}), 0, 6).Draw(t, "acls")
	for _, acl := range list {
		slices.Sort(acl.Protocols)
		slices.Sort(acl.Ports)
	}
	slices.SortStableFunc(list, mesh.CompareACLs)
	return list
}

func drawSnapshot(t *rapid.T) *mesh.Snapshot {
	return &mesh.Snapshot{Groups: drawGroups(t), ACLs: drawACLs(t)}
}

func drawFlow(t *rapid.T) policy.Flow {
	return policy.Flow{
		SrcNode: drawName(t), Src: drawAddr(t),
		DstNode: mesh.NodeID(drawName(t)), Dst: drawAddr(t),
		Protocol: rapid.SampledFrom(append(worldProtocols(), 0)).Draw(t, "protocol"),
		Port:     rapid.SampledFrom(append(worldPorts(), 0)).Draw(t, "port"),
	}
}

func TestAccepts_AgreesWithTheNaiveEvaluator(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f := drawSnapshot(t), drawFlow(t)
		if got, want := policy.Accepts(s, f), naiveAccepts(s, f); got != want {
			t.Fatalf("Accepts(%+v) = %v", f, got)
		}
		if got, want := policy.Compile(s).Opens(f), naiveOpens(s, f); got.Allowed != want {
			t.Fatalf("Opens(%+v) = %v", f, got)
		}
	})
}

// What a node is told of the ACLs decides its own traffic as the whole does.
func TestConcerning_DecidesAsTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f := drawSnapshot(t), drawFlow(t)
		told := &mesh.Snapshot{ACLs: policy.Concerning(s, f.DstNode)}
		if got, want := policy.Accepts(told, f), naiveAccepts(s, f); got != want {
			t.Fatalf("as destination: Accepts(%+v) = %v", f, got)
		}
		told.ACLs = policy.Concerning(s, mesh.NodeID(f.SrcNode))
		if got, want := policy.Accepts(told, f), naiveAccepts(s, f); got != want {
			t.Fatalf("as source: Accepts(%+v) = %v", f, got)
		}
	})
}

// Granted holds an address exactly when the address alone is granted, and no
// address twice.
func TestGranted_AgreesWithTheNaiveEvaluator(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f := drawSnapshot(t), drawFlow(t)
		network := rapid.SampledFrom([]string{"10.0.0.0/28", "10.0.0.8/29", "fd00::/124", "10.0.0.3/32"}).Draw(t, "network")
		self := policy.Endpoint{Node: f.SrcNode}
		if f.Src.IsValid() {
			self.Network = netip.PrefixFrom(f.Src, f.Src.BitLen())
		}
		p := netip.MustParsePrefix(network)
		parts := policy.Compile(s).Granted(self, policy.Endpoint{Node: string(f.DstNode), Network: p})
		for addr := p.Addr(); p.Contains(addr); addr = addr.Next() {
			f.Dst = addr
			found := 0
			for _, part := range parts {
				if part.Contains(addr) {
					found++
				}
			}
			if want := naiveConnects(s, f); found > 1 || (found == 1) != want {
				t.Fatalf("%v is in %d of %v, want granted %v", addr, found, parts, want)
			}
		}
	})
}

// drawMesh draws a snapshot in which each of the four nodes has addresses.
func drawMesh(t *rapid.T) *mesh.Snapshot {
	s := drawSnapshot(t)
	s.IPv4, s.IPv6 = netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/48")
	for i, id := range []mesh.NodeID{"a", "b", "c", "d"} {
		v6 := netip.MustParseAddr("fd00::").As16()
		v6[15] = byte(4 * i)
		s.Nodes = s.Nodes.With(&mesh.Node{
			ID:   id,
			IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(4 * i)}), 32),
			IPv6: netip.PrefixFrom(netip.AddrFrom16(v6), 126),
		})
	}
	return s
}

// naiveFilter is a packet filter that remembers everything for ever.
type naiveFilter struct {
	s      *mesh.Snapshot
	opened map[mesh.Packet]bool
}

func (n *naiveFilter) allow(src, dst *mesh.Node, p mesh.Packet) bool {
	there := policy.Flow{SrcNode: string(src.ID), Src: p.Src, DstNode: dst.ID, Dst: p.Dst, Protocol: p.Protocol, Port: p.DstPort}
	back := reverse(there)
	back.Port = p.SrcPort
	opens, answers := naiveOpens(n.s, there), naiveOpens(n.s, back)
	switch p.Kind {
	case mesh.PacketOpens:
		return opens
	case mesh.PacketContinues, mesh.PacketReports:
		return opens || answers
	}
	if opens {
		n.opened[p] = true
		return true
	}
	p.Src, p.Dst, p.SrcPort, p.DstPort = p.Dst, p.Src, p.DstPort, p.SrcPort
	return answers && n.opened[p]
}

func TestFilter_AgreesWithTheNaiveEvaluator(t *testing.T) {
	ids := []mesh.NodeID{"a", "b", "c", "d"}
	rapid.Check(t, func(t *rapid.T) {
		s := drawMesh(t)
		naive := &naiveFilter{s: s, opened: make(map[mesh.Packet]bool)}
		filter := policy.ForwardFilter(s, policy.NewFlows())
		for range rapid.IntRange(1, 30).Draw(t, "packets") {
			src := s.Node(rapid.SampledFrom(ids).Draw(t, "src"))
			dst := s.Node(rapid.SampledFrom(ids).Draw(t, "dst"))
			family := rapid.IntRange(0, 1).Draw(t, "family")
			p := mesh.Packet{
				Src: src.Addrs()[family], Dst: dst.Addrs()[family],
				Protocol: rapid.SampledFrom(append(worldProtocols(), 0)).Draw(t, "protocol"),
				Kind: rapid.SampledFrom([]mesh.PacketKind{
					mesh.PacketUnclear, mesh.PacketUnclear, mesh.PacketOpens, mesh.PacketContinues, mesh.PacketReports,
				}).Draw(t, "kind"),
			}
			if p.Protocol.HasPorts() {
				p.SrcPort = rapid.SampledFrom(worldPorts()).Draw(t, "source port")
				p.DstPort = rapid.SampledFrom(worldPorts()).Draw(t, "port")
			}
			if got, want := filter.Allow(p), naive.allow(src, dst, p); got != want {
				t.Fatalf("%+v = %v", p, got)
			}
		}
	})
}

// A pair may exchange packets exactly when some conversation is accepted.
func TestConnects_AgreesWithTheNaiveEvaluator(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, f := drawSnapshot(t), drawFlow(t)
		end := func(name string, addr netip.Addr) policy.Endpoint {
			return policy.Endpoint{Node: name, Network: netip.PrefixFrom(addr, addr.BitLen())}
		}
		a, b := end(f.SrcNode, f.Src), end(string(f.DstNode), f.Dst)
		n := policy.Compile(s)
		if n.Connects(a, b) != n.Connects(b, a) {
			t.Fatal("the decision depends on the order of the ends")
		}
		if n.Connects(a, b) != naiveConnects(s, f) {
			t.Fatal("the naive evaluator disagrees")
		}
	})
}
