// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// maxServers bounds each list of servers that a node is told.
const maxServers = 64

// directory is the servers of the mesh. It is the same for all who ask about
// one snapshot.
type directory struct {
	mu    sync.Mutex // guards the fields below
	nodes mesh.Nodes
	ice   []string
	dns   []dnsServer

	gateways []*v1.MeshNode
	// granted is what the gateways were chosen by, beside nodes.
	granted grants

	// acls are the messages of expanded, which are of the lists told and groups.
	expanded []policy.Expanded
	acls     []*v1.NetworkACL
	told     []mesh.ACL
	groups   []mesh.Group
}

// concerning returns the ACLs that concern a node, with the groups of s expanded.
// Their messages are shared by all who ask.
func (d *directory) concerning(s *mesh.Snapshot, id mesh.NodeID) []*v1.NetworkACL {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !mesh.SameList(d.told, s.ACLs) || !mesh.SameList(d.groups, s.Groups) {
		d.told, d.groups, d.expanded, d.acls = s.ACLs, s.Groups, policy.Expand(s), nil
		for _, e := range d.expanded {
			d.acls = append(d.acls, mesh.ACLToProto(e.ACL))
		}
	}
	var acls []*v1.NetworkACL
	for i := range d.expanded {
		if d.expanded[i].Concerns(id) {
			acls = append(acls, d.acls[i])
		}
	}
	return acls
}

// grants are the lists of a snapshot that say who may do what.
type grants struct {
	nodes    mesh.Nodes
	roles    []mesh.Role
	bindings []mesh.RoleBinding
	groups   []mesh.Group
}

// of reports whether the grants are those of s.
func (g *grants) of(s *mesh.Snapshot) bool {
	return g.nodes == s.Nodes && mesh.SameList(g.roles, s.Roles) && mesh.SameList(g.bindings, s.Bindings) && mesh.SameList(g.groups, s.Groups)
}

// gatewaysBut are the gateways of the mesh without node id, as they are now: not
// those that say they are gateways and may not be.
func (d *directory) gatewaysBut(s *mesh.Snapshot, id mesh.NodeID) []*v1.MeshNode {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.granted.of(s) {
		d.granted = grants{nodes: s.Nodes, roles: s.Roles, bindings: s.Bindings, groups: s.Groups}
		d.gateways = nil
		vote := mesh.Action{Resource: v1.RuleResource_RESOURCE_VOTES, Verb: v1.RuleVerb_VERB_PUT}
		for n := range s.Nodes.Gateways() {
			if len(d.gateways) < maxServers && policy.Allowed(s, string(n.ID), vote) {
				d.gateways = append(d.gateways, mesh.NodeToProto(n))
			}
		}
	}
	list := d.gateways
	if i := slices.IndexFunc(list, func(n *v1.MeshNode) bool { return n.GetId() == string(id) }); i >= 0 {
		list = slices.Delete(slices.Clone(list), i, i+1)
	}
	return list
}

// dnsServer is a node that knows the names of the mesh.
type dnsServer struct {
	id mesh.NodeID
	at string
}

// iceServers are the nodes through which ICE peers find each other, as "ip:port"
// of their RPC service. Only those with an IP address as endpoint are named,
// because v1 nodes parse it as one.
func (d *directory) iceServers(s *mesh.Snapshot) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readLocked(s)
	return d.ice
}

// dnsServers are the DNS servers for node id, "ip:port" in the mesh.
func (d *directory) dnsServers(s *mesh.Snapshot, id mesh.NodeID) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readLocked(s)
	var list []string
	for _, server := range d.dns {
		if server.id != id {
			list = append(list, server.at)
		}
	}
	return list
}

// isServer reports whether n, which may be nil, is for a directory.
func isServer(n *mesh.Node) bool {
	return n != nil && (n.HasFeature(v1.Feature_ICE_NEGOTIATION) || n.HasFeature(v1.Feature_MESH_DNS))
}

// readLocked makes the lists those of s. It costs what changed since the last
// snapshot that was asked about, unless a server did.
func (d *directory) readLocked(s *mesh.Snapshot) {
	if s.Nodes == d.nodes {
		return
	}
	moved := false
	for before, after := range s.Nodes.Changes(d.nodes) {
		if moved = isServer(before) || isServer(after); moved {
			break
		}
	}
	d.nodes = s.Nodes
	if !moved {
		return
	}
	d.ice, d.dns = nil, nil
	for id, n := range s.Nodes.All() {
		if port, ok := n.FeaturePort(v1.Feature_ICE_NEGOTIATION); ok && len(d.ice) < maxServers {
			if _, err := netip.ParseAddr(n.PrimaryEndpoint); err == nil {
				d.ice = append(d.ice, net.JoinHostPort(n.PrimaryEndpoint, strconv.Itoa(int(port))))
			}
		}
		if port, ok := n.FeaturePort(v1.Feature_MESH_DNS); ok && len(n.Addrs()) > 0 && len(d.dns) < maxServers {
			d.dns = append(d.dns, dnsServer{id, netip.AddrPortFrom(n.Addrs()[0], port).String()})
		}
	}
}
