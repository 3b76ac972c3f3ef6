// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// builder holds the decoded registry and makes snapshots of it. A change
// decodes what it touches and nothing else; a kind that it does not touch
// shares its list with the snapshot before. An object that cannot be decoded
// is left out: one bad record, written by whomever, must not hide the others.
type builder struct {
	log          *slog.Logger
	ipv4, ipv6   netip.Prefix
	domain       string
	rbacDisabled bool

	nodes    kind[mesh.NodeID, *mesh.Node]
	edges    kind[[2]mesh.NodeID, mesh.Edge]
	routes   kind[string, mesh.Route]
	roles    kind[string, mesh.Role]
	bindings kind[string, mesh.RoleBinding]
	groups   kind[string, mesh.Group]
	acls     kind[string, mesh.ACL]

	shared map[mesh.NodeID]*mesh.Node // nodes as the last snapshot has them; nil when changed
}

// kind is the objects of one kind, by key, with a sorted list made on demand.
type kind[K comparable, T any] struct {
	byKey map[K]T
	list  []T // nil when byKey changed since
}

func (k *kind[K, T]) put(key K, v T) { k.byKey[key], k.list = v, nil }

func (k *kind[K, T]) remove(key K) {
	if _, ok := k.byKey[key]; ok {
		delete(k.byKey, key)
		k.list = nil
	}
}

func (k *kind[K, T]) sorted(compare func(a, b T) int) []T {
	if k.list == nil {
		k.list = slices.AppendSeq(make([]T, 0, len(k.byKey)), maps.Values(k.byKey))
		slices.SortFunc(k.list, compare)
	}
	return k.list
}

func newKind[K comparable, T any]() kind[K, T] { return kind[K, T]{byKey: map[K]T{}} }

func newBuilder(log *slog.Logger) *builder {
	return &builder{
		log:   log,
		nodes: newKind[mesh.NodeID, *mesh.Node](), edges: newKind[[2]mesh.NodeID, mesh.Edge](),
		routes: newKind[string, mesh.Route](), roles: newKind[string, mesh.Role](),
		bindings: newKind[string, mesh.RoleBinding](), groups: newKind[string, mesh.Group](),
		acls: newKind[string, mesh.ACL](),
	}
}

// put takes over the value of a key.
func (b *builder) put(key string, value []byte) {
	if err := b.decode(key, value); err != nil {
		b.log.Warn("registry object is left out", "n", key, "err", err)
		b.remove(key)
	}
}

func (b *builder) decode(key string, value []byte) error {
	switch k, name := split(key); k {
	case keyNodes:
		b.shared = nil
		return object(value, &v1.MeshNode{}, name, mesh.NodeFromProto, func(n *mesh.Node) string { return string(n.ID) },
			func(n *mesh.Node) { b.nodes.put(n.ID, n) })
	case keyEdges:
		return b.decodeEdge(name, value)
	case keyRoutes:
		return object(value, &v1.Route{}, name, mesh.RouteFromProto, func(r mesh.Route) string { return r.Name },
			func(r mesh.Route) { b.routes.put(name, r) })
	case keyRoles:
		return object(value, &v1.Role{}, name, mesh.RoleFromProto, func(r mesh.Role) string { return r.Name },
			func(r mesh.Role) { b.roles.put(name, r) })
	case keyBindings:
		return object(value, &v1.RoleBinding{}, name, mesh.RoleBindingFromProto, func(r mesh.RoleBinding) string { return r.Name },
			func(r mesh.RoleBinding) { b.bindings.put(name, r) })
	case keyGroups:
		return object(value, &v1.Group{}, name, mesh.GroupFromProto, func(g mesh.Group) string { return g.Name },
			func(g mesh.Group) { b.groups.put(name, g) })
	case keyACLs:
		return object(value, &v1.NetworkACL{}, name, mesh.ACLFromProto, func(a mesh.ACL) string { return a.Name },
			func(a mesh.ACL) { b.acls.put(name, a) })
	}
	return b.decodeState(key, string(value))
}

func (b *builder) decodeState(key, value string) (err error) {
	switch key {
	case keyIPv4:
		b.ipv4, err = mesh.ParsePrefix(value)
	case keyIPv6:
		b.ipv6, err = mesh.ParsePrefix(value)
	case keyDomain:
		b.domain = value
	case keyRBACOff:
		b.rbacDisabled = true
	}
	return err
}

// decodeEdge keeps one of the two directions that v1 stores.
func (b *builder) decodeEdge(name string, value []byte) error {
	p := &v1.MeshEdge{}
	if err := unmarshal(value, p); err != nil {
		return err
	}
	e, err := mesh.EdgeFromProto(p)
	if err != nil {
		return err
	}
	if forward, back := string(e.Source)+"/"+string(e.Target), string(e.Target)+"/"+string(e.Source); name != forward && name != back {
		return fmt.Errorf("%w: it is the edge %s", mesh.ErrInvalid, forward)
	}
	b.edges.put([2]mesh.NodeID{e.Source, e.Target}, e)
	return nil
}

// object decodes a value and refuses one that is stored under another's name.
func object[P proto.Message, T any](value []byte, p P, name string, from func(P) (T, error), nameOf func(T) string, keep func(T)) error {
	if err := unmarshal(value, p); err != nil {
		return err
	}
	v, err := from(p)
	if err != nil {
		return err
	}
	if nameOf(v) != name {
		return fmt.Errorf("%w: it says that its name is %q", mesh.ErrInvalid, nameOf(v))
	}
	keep(v)
	return nil
}

func unmarshal(value []byte, p proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(value, p)
}

// remove forgets a key.
func (b *builder) remove(key string) {
	switch k, name := split(key); k {
	case keyNodes:
		b.shared = nil
		b.nodes.remove(mesh.NodeID(name))
	case keyEdges:
		// Ids hold no slash. Losing one direction loses the edge.
		x, y, _ := strings.Cut(name, "/")
		b.edges.remove([2]mesh.NodeID{mesh.NodeID(min(x, y)), mesh.NodeID(max(x, y))})
	case keyRoutes:
		b.routes.remove(name)
	case keyRoles:
		b.roles.remove(name)
	case keyBindings:
		b.bindings.remove(name)
	case keyGroups:
		b.groups.remove(name)
	case keyACLs:
		b.acls.remove(name)
	}
	if key == keyRBACOff {
		b.rbacDisabled = false
	}
}

// snapshot is the state now, as version.
func (b *builder) snapshot(version uint64) *mesh.Snapshot {
	if b.shared == nil {
		b.shared = maps.Clone(b.nodes.byKey)
	}
	return &mesh.Snapshot{
		Version: version, Domain: b.domain, IPv4: b.ipv4, IPv6: b.ipv6, RBACDisabled: b.rbacDisabled,
		Nodes: b.shared,
		Edges: b.edges.sorted(func(x, y mesh.Edge) int {
			return cmp.Or(cmp.Compare(x.Source, y.Source), cmp.Compare(x.Target, y.Target))
		}),
		Routes:   b.routes.sorted(func(x, y mesh.Route) int { return cmp.Compare(x.Name, y.Name) }),
		Roles:    b.roles.sorted(func(x, y mesh.Role) int { return cmp.Compare(x.Name, y.Name) }),
		Bindings: b.bindings.sorted(func(x, y mesh.RoleBinding) int { return cmp.Compare(x.Name, y.Name) }),
		Groups:   b.groups.sorted(func(x, y mesh.Group) int { return cmp.Compare(x.Name, y.Name) }),
		ACLs:     b.acls.sorted(mesh.CompareACLs),
	}
}
