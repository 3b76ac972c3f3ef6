// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// largeSnapshot is a mesh of 10 000 nodes, 100 groups of a hundred nodes and one
// of all, 1000 ACLs between them and 100 roles.
func largeSnapshot() *mesh.Snapshot {
	s := &mesh.Snapshot{IPv4: netip.MustParsePrefix("172.16.0.0/12")}
	everybody := mesh.Group{Name: "everybody"}
	for i := range 10000 {
		id := mesh.NodeID(fmt.Sprintf("n%d", i))
		s.Nodes = s.Nodes.With(&mesh.Node{ID: id, IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 32)})
		everybody.Subjects = append(everybody.Subjects, node(string(id)))
	}
	for i := range 100 {
		name := fmt.Sprintf("g%02d", i)
		s.Groups = append(s.Groups, mesh.Group{Name: name, Subjects: everybody.Subjects[100*i : 100*i+100]})
		s.Roles = append(s.Roles, mesh.Role{Name: name, Rules: []mesh.Rule{rule(edges, put, name)}})
		s.Bindings = append(s.Bindings, mesh.RoleBinding{Name: name, Role: name, Subjects: []mesh.Subject{group(name)}})
	}
	s.Groups = append(s.Groups, everybody)
	for i := range 1000 {
		acl := mesh.ACL{
			Name: fmt.Sprintf("acl%03d", i), Priority: int32(i), Accept: i%3 > 0,
			SourceNodes: []string{fmt.Sprintf("group:g%02d", i%100)}, DestinationNodes: []string{fmt.Sprintf("group:g%02d", i*7%100)},
		}
		if i%2 == 0 {
			acl.Protocols, acl.Ports = []mesh.Protocol{tcp}, []uint16{uint16(i + 1), uint16(i + 1000)}
		}
		if i%100 == 50 {
			acl.SourceNodes = []string{"group:everybody"}
		}
		s.ACLs = append(s.ACLs, acl)
	}
	slices.SortFunc(s.ACLs, mesh.CompareACLs)
	return s
}
