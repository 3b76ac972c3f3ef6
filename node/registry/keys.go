// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
)

// The layout of v1 nodes. Values of objects are protojson, the rest is text.
const (
	prefix = "/registry/"

	keyIPv4     = prefix + "meshstate/ipv4prefix"
	keyIPv6     = prefix + "meshstate/ipv6prefix"
	keyDomain   = prefix + "meshstate/meshdomain"
	keyRBACOff  = prefix + "rbac-disabled"
	keyGuard    = prefix + "meshstate/meshgate-guard" // ours: written by every change
	keyNodes    = prefix + "nodes/"
	keyEdges    = prefix + "edges/"
	keyRoles    = prefix + "roles/"
	keyBindings = prefix + "rolebindings/"
	keyGroups   = prefix + "groups/"
	keyACLs     = prefix + "network-acls/"
	keyRoutes   = prefix + "routes/"
)

// split takes a key apart into the prefix of its kind and the object's name.
func split(key string) (kind, name string) {
	rest := strings.TrimPrefix(key, prefix)
	i := strings.IndexByte(rest, '/')
	if i < 0 {
		return key, ""
	}
	return prefix + rest[:i+1], rest[i+1:]
}

// Change is what a decision writes: all of it or nothing.
type Change struct {
	ops []store.Op
	err error // the first value that could not be encoded
}

// PutNode writes a node's record.
func (c *Change) PutNode(n *mesh.Node) { c.put(keyNodes+string(n.ID), mesh.NodeToProto(n)) }

// DeleteNode removes a node's record.
func (c *Change) DeleteNode(id mesh.NodeID) { c.delete(keyNodes + string(id)) }

// PutEdge writes an edge, in both directions as v1 nodes read it.
func (c *Change) PutEdge(e mesh.Edge) {
	back := e
	back.Source, back.Target = e.Target, e.Source
	c.put(edgeKey(e.Source, e.Target), mesh.EdgeToProto(e))
	c.put(edgeKey(e.Target, e.Source), mesh.EdgeToProto(back))
}

// DeleteEdge removes an edge in both directions.
func (c *Change) DeleteEdge(a, b mesh.NodeID) {
	c.delete(edgeKey(a, b))
	c.delete(edgeKey(b, a))
}

// PutRoute writes a route.
func (c *Change) PutRoute(r mesh.Route) { c.put(keyRoutes+r.Name, mesh.RouteToProto(r)) }

// DeleteRoute removes a route.
func (c *Change) DeleteRoute(name string) { c.delete(keyRoutes + name) }

// PutRole writes a role.
func (c *Change) PutRole(r mesh.Role) { c.put(keyRoles+r.Name, mesh.RoleToProto(r)) }

// PutRoleBinding writes a role binding.
func (c *Change) PutRoleBinding(b mesh.RoleBinding) {
	c.put(keyBindings+b.Name, mesh.RoleBindingToProto(b))
}

// PutGroup writes a group.
func (c *Change) PutGroup(g mesh.Group) { c.put(keyGroups+g.Name, mesh.GroupToProto(g)) }

// PutACL writes a network ACL.
func (c *Change) PutACL(a mesh.ACL) { c.put(keyACLs+a.Name, mesh.ACLToProto(a)) }

func (c *Change) text(key, value string) {
	c.ops = append(c.ops, store.Op{Key: key, Value: []byte(value)})
}

func (c *Change) put(key string, m proto.Message) {
	raw, err := protojson.Marshal(m)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.ops = append(c.ops, store.Op{Key: key, Value: raw})
}

func (c *Change) delete(key string) { c.ops = append(c.ops, store.Op{Key: key, Delete: true}) }

func edgeKey(a, b mesh.NodeID) string { return keyEdges + string(a) + "/" + string(b) }
