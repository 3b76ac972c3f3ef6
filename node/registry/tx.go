// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Tx is one change of the registry while it is decided. It is used by the
// function given to Update only, in one goroutine.
//
// Put methods refuse, with an error that wraps mesh.ErrInvalid and names the
// field, what could not be read back; a Put of what is there already and a
// Delete of what is not are no changes. Of several writes of one object the last
// one counts.
type Tx struct {
	view *view
	ops  []store.Op
}

// Snapshot returns the registry that the change is based on. The writes of the
// change itself are not in it.
func (tx *Tx) Snapshot() *mesh.Snapshot { return tx.view.snapshot }

// Unreadable reports whether there is a record of the node that makes no
// sense, and is therefore not in the snapshot.
func (tx *Tx) Unreadable(id mesh.NodeID) bool { return tx.view.unreadable[prefixNodes+string(id)] }

// PutNode writes the record of a node.
func (tx *Tx) PutNode(n *mesh.Node) error {
	old, ok := tx.Snapshot().Nodes.Get(n.ID)
	return put(tx, prefixNodes+string(n.ID), n, old, ok, mesh.NodeToProto, mesh.NodeFromProto)
}

// DeleteNode removes the record of a node and all edges to it.
func (tx *Tx) DeleteNode(id mesh.NodeID) {
	tx.deleteIf(tx.Snapshot().Node(id) != nil, prefixNodes+string(id))
	for e := range tx.Snapshot().Edges.Of(id) {
		tx.DeleteEdge(e.Source, e.Target)
	}
	for key := range tx.view.unreadable {
		if isEdgeOf(key, id) {
			tx.delete(key)
		}
	}
	for _, op := range slices.Clone(tx.ops) {
		if !op.Delete && isEdgeOf(op.Key, id) {
			tx.delete(op.Key)
		}
	}
}

// isEdgeOf reports whether a key is that of an edge to a node.
func isEdgeOf(key string, id mesh.NodeID) bool {
	name, ok := strings.CutPrefix(key, prefixEdges)
	source, target, _ := strings.Cut(name, "/")
	return ok && (source == string(id) || target == string(id))
}

// BoundKey returns the key to which the id of a purged node is bound.
func (tx *Tx) BoundKey(id mesh.NodeID) (mesh.PublicKey, bool) {
	key, ok := tx.view.bound[id]
	return key, ok
}

// BindKey binds an id to a key.
func (tx *Tx) BindKey(id mesh.NodeID, key mesh.PublicKey) {
	old, ok := tx.BoundKey(id)
	tx.setIf(!ok || old != key, prefixBound+string(id), key.Encode())
}

// UnbindKey frees an id for any key.
func (tx *Tx) UnbindKey(id mesh.NodeID) {
	_, ok := tx.BoundKey(id)
	tx.deleteIf(ok, prefixBound+string(id))
}

// SetSilent notes since when a member has not been heard, by the clock of the
// gateway that missed it, and how long was watched by then who is silent.
func (tx *Tx) SetSilent(id mesh.NodeID, since time.Time) {
	since = since.UTC().Truncate(time.Second)
	old, ok := tx.Snapshot().Silent[id]
	tx.setIf(!ok || !old.Equal(since), prefixSilent+string(id), since.Format(time.RFC3339))
	tx.setMissed(id, tx.Snapshot().Watched)
}

func (tx *Tx) setMissed(id mesh.NodeID, watched time.Duration) {
	old, ok := tx.Snapshot().Missed[id]
	tx.setIf(!ok || old != watched, prefixMissed+string(id), formatSeconds(watched))
}

// Watch adds to the time for which was watched who is silent. The silence of a
// member of which it is not known what that was when it began, begins now.
func (tx *Tx) Watch(d time.Duration) {
	watched := (tx.Snapshot().Watched + d).Truncate(time.Second)
	tx.setIf(watched != tx.Snapshot().Watched, keyWatched, formatSeconds(watched))
	for id := range tx.Snapshot().Silent {
		if _, known := tx.Snapshot().Missed[id]; !known {
			tx.setMissed(id, watched)
		}
	}
}

// ClearSilent notes that a member was heard, or is gone.
func (tx *Tx) ClearSilent(id mesh.NodeID) {
	_, ok := tx.Snapshot().Silent[id]
	tx.deleteIf(ok, prefixSilent+string(id))
	_, ok = tx.Snapshot().Missed[id]
	tx.deleteIf(ok, prefixMissed+string(id))
}

// SetLastIPv4 notes which IPv4 address was handed out last.
func (tx *Tx) SetLastIPv4(addr netip.Addr) {
	tx.setIf(addr != tx.Snapshot().LastIPv4, keyLastIPv4, addr.String())
}

// Edge returns the stored edge between two nodes.
func (tx *Tx) Edge(a, b mesh.NodeID) (mesh.Edge, bool) { return tx.Snapshot().Edges.Get(a, b) }

// PutEdge writes an edge, under both of its keys.
func (tx *Tx) PutEdge(e mesh.Edge) error {
	e.Source, e.Target = min(e.Source, e.Target), max(e.Source, e.Target)
	old, ok := tx.Edge(e.Source, e.Target)
	n := len(tx.ops)
	err := put(tx, prefixEdges+edgeName(e.Source, e.Target), e, old, ok, mesh.EdgeToProto, mesh.EdgeFromProto)
	if err != nil || len(tx.ops) == n {
		return err
	}
	reversed := mesh.EdgeToProto(e)
	reversed.Source, reversed.Target = reversed.Target, reversed.Source
	return tx.set(prefixEdges+edgeName(e.Target, e.Source), reversed)
}

// DeleteEdge removes the edge between two nodes.
func (tx *Tx) DeleteEdge(a, b mesh.NodeID) {
	_, ok := tx.Edge(a, b)
	for _, key := range []string{prefixEdges + edgeName(a, b), prefixEdges + edgeName(b, a)} {
		if ok || tx.wrote(key) {
			tx.delete(key)
		}
	}
}

// PutRoute writes a route.
func (tx *Tx) PutRoute(r mesh.Route) error {
	old, ok := tx.route(r.Name)
	return put(tx, prefixRoutes+r.Name, r, old, ok, mesh.RouteToProto, mesh.RouteFromProto)
}

// DeleteRoute removes a route.
func (tx *Tx) DeleteRoute(name string) {
	_, ok := tx.route(name)
	tx.deleteIf(ok, prefixRoutes+name)
}

// PutACL writes a network ACL.
func (tx *Tx) PutACL(a mesh.ACL) error {
	old, ok := tx.acl(a.Name)
	return put(tx, prefixACLs+a.Name, a, old, ok, mesh.ACLToProto, mesh.ACLFromProto)
}

// DeleteACL removes a network ACL.
func (tx *Tx) DeleteACL(name string) {
	_, ok := tx.acl(name)
	tx.deleteIf(ok, prefixACLs+name)
}

// PutRole writes a role.
func (tx *Tx) PutRole(r mesh.Role) error {
	old, ok := tx.role(r.Name)
	return put(tx, prefixRoles+r.Name, r, old, ok, mesh.RoleToProto, mesh.RoleFromProto)
}

// DeleteRole removes a role.
func (tx *Tx) DeleteRole(name string) {
	_, ok := tx.role(name)
	tx.deleteIf(ok, prefixRoles+name)
}

// PutRoleBinding writes a role binding.
func (tx *Tx) PutRoleBinding(b mesh.RoleBinding) error {
	old, ok := tx.binding(b.Name)
	return put(tx, prefixBindings+b.Name, b, old, ok, mesh.RoleBindingToProto, mesh.RoleBindingFromProto)
}

// DeleteRoleBinding removes a role binding.
func (tx *Tx) DeleteRoleBinding(name string) {
	_, ok := tx.binding(name)
	tx.deleteIf(ok, prefixBindings+name)
}

// PutGroup writes a group.
func (tx *Tx) PutGroup(g mesh.Group) error {
	old, ok := tx.group(g.Name)
	return put(tx, prefixGroups+g.Name, g, old, ok, mesh.GroupToProto, mesh.GroupFromProto)
}

// DeleteGroup removes a group.
func (tx *Tx) DeleteGroup(name string) {
	_, ok := tx.group(name)
	tx.deleteIf(ok, prefixGroups+name)
}

func (tx *Tx) route(name string) (mesh.Route, bool) {
	routes := tx.Snapshot().Routes // each node may have one
	i, ok := slices.BinarySearchFunc(routes, name, func(r mesh.Route, name string) int { return strings.Compare(r.Name, name) })
	if !ok {
		return mesh.Route{}, false
	}
	return routes[i], true
}

func (tx *Tx) acl(name string) (mesh.ACL, bool) {
	return find(tx.Snapshot().ACLs, func(a mesh.ACL) bool { return a.Name == name })
}

func (tx *Tx) role(name string) (mesh.Role, bool) {
	return find(tx.Snapshot().Roles, func(r mesh.Role) bool { return r.Name == name })
}

func (tx *Tx) binding(name string) (mesh.RoleBinding, bool) {
	return find(tx.Snapshot().Bindings, func(b mesh.RoleBinding) bool { return b.Name == name })
}

func (tx *Tx) group(name string) (mesh.Group, bool) {
	return find(tx.Snapshot().Groups, func(g mesh.Group) bool { return g.Name == name })
}

func find[T any](list []T, is func(T) bool) (T, bool) {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i], true
	}
	var none T
	return none, false
}

// put writes an item, unless it is equal to the old one.
func put[T any, M proto.Message](tx *Tx, key string, item, old T, exists bool, to func(T) M, from func(M) (T, error)) error {
	message := to(item)
	if _, err := from(message); err != nil {
		return err
	}
	if exists && !tx.wrote(key) && proto.Equal(message, to(old)) {
		return nil
	}
	return tx.set(key, message)
}

func (tx *Tx) set(key string, message proto.Message) error {
	value, err := protojson.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	tx.setText(key, string(value))
	return nil
}

func (tx *Tx) setText(key, value string) {
	tx.ops = append(tx.ops, store.Op{Key: key, Value: []byte(value)})
}

// setIf writes a text that differs from what is there.
func (tx *Tx) setIf(differs bool, key, value string) {
	if differs || tx.wrote(key) {
		tx.setText(key, value)
	}
}

// wrote reports whether the change has written or removed a key before: then
// the snapshot does not tell what is there.
func (tx *Tx) wrote(key string) bool {
	return slices.ContainsFunc(tx.ops, func(op store.Op) bool { return op.Key == key })
}

// deleteIf removes a key that holds an object or something unreadable.
func (tx *Tx) deleteIf(exists bool, key string) {
	if exists || tx.view.unreadable[key] || tx.wrote(key) {
		tx.delete(key)
	}
}

func (tx *Tx) delete(key string) {
	tx.ops = append(tx.ops, store.Op{Key: key, Delete: true})
}

// Unchanged is the condition that nobody has changed the registry after a
// snapshot.
func Unchanged(s *mesh.Snapshot) store.Condition {
	return store.Condition{Key: keyRevision, Version: s.Revision}
}

// batch returns the change with its condition: that nobody else changed the
// registry after the snapshot.
func (tx *Tx) batch() store.Batch {
	return store.Batch{
		If:  []store.Condition{Unchanged(tx.view.snapshot)},
		Ops: append(slices.Clip(tx.ops), store.Op{Key: keyRevision}),
	}
}

// Link returns an edge between two nodes that reach each other by the given
// protocol. It has the weight of an edge that v1 nodes make at a join.
func Link(a, b mesh.NodeID, protocol v1.ConnectProtocol) (mesh.Edge, error) {
	e := mesh.Edge{Source: min(a, b), Target: max(a, b), Weight: 1}
	var attribute v1.EdgeAttribute
	switch protocol {
	case v1.ConnectProtocol_CONNECT_NATIVE:
		attribute = v1.EdgeAttribute_EDGE_ATTRIBUTE_NATIVE
	case v1.ConnectProtocol_CONNECT_ICE:
		attribute = v1.EdgeAttribute_EDGE_ATTRIBUTE_ICE
	case v1.ConnectProtocol_CONNECT_LIBP2P:
		attribute = v1.EdgeAttribute_EDGE_ATTRIBUTE_LIBP2P
	default:
		return mesh.Edge{}, fmt.Errorf("%w: unknown protocol %d", mesh.ErrInvalid, protocol)
	}
	e.Attributes = map[string]string{attribute.String(): "true"}
	return e, nil
}
