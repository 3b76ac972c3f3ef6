// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A node is barred as long as the ACLs of the snapshot bar it, whatever came
// before, and is told with the ACL that does.
func TestBarring_FollowsTheMesh(t *testing.T) {
	node := func(id mesh.NodeID, n byte) *mesh.Node {
		return &mesh.Node{ID: id, IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, n}), 32)}
	}
	acl := func(name string, accept bool, to string) mesh.ACL {
		return mesh.ACL{Name: name, Accept: accept, SourceNodes: []string{"gw"}, DestinationNodes: []string{to}}
	}
	all := acl("all", true, "*")
	var b barring
	step := func(what string, nodes mesh.Nodes, acls []mesh.ACL, groups []mesh.Group, want ...string) {
		t.Helper()
		s := &mesh.Snapshot{Nodes: nodes, ACLs: acls, Groups: groups}
		for range 2 { // as it is, and again without a change
			if diff := cmp.Diff(want, texts(b.of(s, "gw"))); diff != "" {
				t.Errorf("%s: (-want +got)\n%s", what, diff)
			}
		}
		fresh := new(barring)
		if diff := cmp.Diff(want, texts(fresh.of(s, "gw"))); diff != "" {
			t.Errorf("%s, from nothing: (-want +got)\n%s", what, diff)
		}
	}
	nodes := mesh.NodesOf(node("gw", 1), node("c", 3), node("b", 2), &mesh.Node{ID: "bare"})
	step("no ACL", nodes, nil, nil, "b ", "c ")
	open := []mesh.ACL{all}
	step("all", nodes, open, nil)
	closed := []mesh.ACL{acl("lockdown", false, "group:shut"), all}
	groups := []mesh.Group{{Name: "shut", Subjects: []mesh.Subject{{Name: "c", Type: v1.SubjectType_SUBJECT_NODE}}}}
	step("one less", nodes, closed, groups, "c lockdown")
	step("one that is new", nodes.With(node("d", 4)), closed, groups, "c lockdown")
	others := []mesh.Group{{Name: "shut", Subjects: []mesh.Subject{{Name: "b", Type: v1.SubjectType_SUBJECT_NODE}, {Name: "d", Type: v1.SubjectType_SUBJECT_NODE}}}}
	step("another group", nodes.With(node("d", 4)), closed, others, "b lockdown", "d lockdown")
	step("one that went", nodes.Without("b").With(node("d", 4)), closed, others, "d lockdown")
	step("one with another address", nodes.Without("b").With(node("d", 5)), closed, others, "d lockdown")
	step("others themselves", nodes.With(node("gw", 9)), closed, others, "b lockdown")
	step("without oneself", nodes.Without("gw"), closed, others)
}

func texts(list []*meshgatev1.BarredNode) []string {
	var all []string
	for _, m := range list {
		all = append(all, fmt.Sprintf("%s %s", m.GetNodeId(), m.GetAcl()))
	}
	return all
}
