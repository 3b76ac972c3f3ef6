// SPDX-License-Identifier: Apache-2.0

package api

import (
	"slices"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// barring knows which nodes the network ACLs keep off from one node, snapshot by
// snapshot: only nodes that changed are asked about anew, as long as the ACLs and
// groups stay the same. One goroutine uses it.
type barring struct {
	self    *mesh.Node
	acls    []mesh.ACL
	groups  []mesh.Group
	network *policy.Network
	nodes   mesh.Nodes
	list    []*meshgatev1.BarredNode // nobody writes to it
}

// of returns the nodes of s that the ACLs keep off from node self, by their ids. A
// node without an address is not among them.
func (b *barring) of(s *mesh.Snapshot, self mesh.NodeID) []*meshgatev1.BarredNode {
	own := s.Node(self)
	if own == nil {
		return nil
	}
	if b.network == nil || b.self != own || !mesh.SameList(b.acls, s.ACLs) || !mesh.SameList(b.groups, s.Groups) {
		*b = barring{self: own, acls: s.ACLs, groups: s.Groups, network: policy.Compile(s)}
	}
	list := b.list
	fresh := make(map[string]*meshgatev1.BarredNode)
	gone := make(map[string]bool)
	for before, after := range s.Nodes.Changes(b.nodes) {
		if before != nil {
			gone[string(before.ID)] = true
		}
		if m := b.bar(after); m != nil {
			fresh[m.GetNodeId()] = m
		}
	}
	b.nodes = s.Nodes
	if len(gone) == 0 && len(fresh) == 0 {
		return list
	}
	b.list = nil
	for _, m := range list {
		if !gone[m.GetNodeId()] {
			b.list = append(b.list, m)
		}
	}
	for _, m := range fresh {
		b.list = append(b.list, m)
	}
	slices.SortFunc(b.list, func(x, y *meshgatev1.BarredNode) int { return strings.Compare(x.GetNodeId(), y.GetNodeId()) })
	return b.list
}

// bar is a node, which may be nil, as one that is kept off; nil for one that is not.
func (b *barring) bar(o *mesh.Node) *meshgatev1.BarredNode {
	if o == nil || o.ID == b.self.ID || len(o.Addrs()) == 0 {
		return nil
	}
	d := b.network.Between(b.self, o)
	if d.Allowed {
		return nil
	}
	m := &meshgatev1.BarredNode{NodeId: string(o.ID)}
	if d.ACL != nil {
		m.Acl = d.ACL.Name
	}
	return m
}
