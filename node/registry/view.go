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

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// view is a published snapshot with what a change based on it needs to know.
// It is immutable.
type view struct {
	snapshot *mesh.Snapshot
	// revision is the version of keyRevision; 0 before the first change.
	revision uint64
	// unreadable holds the keys whose values make no sense.
	unreadable map[string]bool
	// superseded is closed when the next view is published.
	superseded chan struct{}
}

// builder follows the keys of the registry and makes views of them. Only the
// objects whose keys changed are decoded again, and only the lists with such
// objects are made again. One goroutine uses it.
type builder struct {
	logger *slog.Logger

	version    uint64
	revision   uint64
	domain     string
	ipv4, ipv6 netip.Prefix
	noRBAC     bool

	nodes     *table[*mesh.Node]
	nodeByID  map[mesh.NodeID]*mesh.Node // the published one; replaced, never changed
	edges     *table[mesh.Edge]
	routes    *table[mesh.Route]
	acls      *table[mesh.ACL]
	roles     *table[mesh.Role]
	bindings  *table[mesh.RoleBinding]
	groups    *table[mesh.Group]
	tables    []keyed
	broken    map[string]bool
	published map[string]bool // a copy of broken; nil when it has changed since
}

// keyed is what a table of any kind does with the keys under its prefix.
type keyed interface {
	put(name string, value []byte) error
	remove(name string)
	clear()
	under() string
}

func (t *table[T]) under() string { return t.prefix }

func newBuilder(logger *slog.Logger) *builder {
	b := &builder{logger: logger, broken: map[string]bool{}}
	nodeName := func(n *mesh.Node) string { return string(n.ID) }
	b.nodes = newTable(prefixNodes, func() *v1.MeshNode { return &v1.MeshNode{} }, mesh.NodeFromProto, nodeName, byName(nodeName))
	b.edges = newEdgeTable()
	routeName := func(r mesh.Route) string { return r.Name }
	b.routes = newTable(prefixRoutes, func() *v1.Route { return &v1.Route{} }, mesh.RouteFromProto, routeName, byName(routeName))
	b.acls = newTable(prefixACLs, func() *v1.NetworkACL { return &v1.NetworkACL{} }, mesh.ACLFromProto,
		func(a mesh.ACL) string { return a.Name }, mesh.CompareACLs)
	roleName := func(r mesh.Role) string { return r.Name }
	b.roles = newTable(prefixRoles, func() *v1.Role { return &v1.Role{} }, mesh.RoleFromProto, roleName, byName(roleName))
	bindingName := func(r mesh.RoleBinding) string { return r.Name }
	b.bindings = newTable(prefixBindings, func() *v1.RoleBinding { return &v1.RoleBinding{} }, mesh.RoleBindingFromProto, bindingName, byName(bindingName))
	groupName := func(g mesh.Group) string { return g.Name }
	b.groups = newTable(prefixGroups, func() *v1.Group { return &v1.Group{} }, mesh.GroupFromProto, groupName, byName(groupName))
	b.tables = []keyed{b.nodes, b.edges, b.routes, b.acls, b.roles, b.bindings, b.groups}
	return b
}

// newEdgeTable returns the table of edges, whose keys have two names.
func newEdgeTable() *table[mesh.Edge] {
	return &table[mesh.Edge]{
		prefix: prefixEdges,
		items:  map[string]mesh.Edge{},
		decode: func(name string, value []byte) (mesh.Edge, error) {
			e, err := decode(value, &v1.MeshEdge{}, mesh.EdgeFromProto)
			if err == nil && name != edgeName(e.Source, e.Target) && name != edgeName(e.Target, e.Source) {
				err = fmt.Errorf("the value is that of %q", edgeName(e.Source, e.Target))
			}
			return e, err
		},
		arrange: arrangeEdges,
	}
}

func edgeName(source, target mesh.NodeID) string { return string(source) + "/" + string(target) }

// arrangeEdges joins the two keys of each edge. One alone will do; where they
// differ, the one whose source sorts first decides.
func arrangeEdges(items map[string]mesh.Edge) []mesh.Edge {
	list := make([]mesh.Edge, 0, len(items)/2)
	for name, e := range items {
		forward := edgeName(e.Source, e.Target)
		if _, ok := items[forward]; ok && name != forward {
			continue
		}
		list = append(list, e)
	}
	slices.SortFunc(list, compareEdges)
	return list
}

func compareEdges(a, b mesh.Edge) int {
	return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Target, b.Target))
}

// load replaces everything by the entries of a list.
func (b *builder) load(entries []store.Entry, version uint64) *view {
	b.revision, b.domain, b.ipv4, b.ipv6, b.noRBAC = 0, "", netip.Prefix{}, netip.Prefix{}, false
	for _, t := range b.tables {
		t.clear()
	}
	was := b.broken
	b.broken, b.published = map[string]bool{}, nil
	for _, e := range entries {
		b.put(e, was[e.Key])
	}
	return b.view(version)
}

// follow takes over a change.
func (b *builder) follow(c store.Change) *view {
	for _, e := range c.Events {
		if e.Deleted {
			b.remove(e.Key)
		} else {
			b.put(e.Entry, b.broken[e.Key])
		}
	}
	return b.view(c.Version)
}

// put takes over a value. One that makes no sense is left out, and logged
// unless it made none before.
func (b *builder) put(e store.Entry, wasBroken bool) {
	err := b.take(e)
	if (err != nil) != b.broken[e.Key] {
		b.published = nil
	}
	if err == nil {
		delete(b.broken, e.Key)
		return
	}
	b.broken[e.Key] = true
	if !wasBroken {
		b.logger.Warn("registry value makes no sense and is left out", "key", e.Key, "err", err)
	}
}

func (b *builder) take(e store.Entry) (err error) {
	switch e.Key {
	case keyRevision:
		b.revision = e.Version
	case keyDomain:
		b.domain = string(e.Value)
	case keyIPv4:
		b.ipv4, err = network(e.Value, true)
	case keyIPv6:
		b.ipv6, err = network(e.Value, false)
	case keyRBACDisabled:
		b.noRBAC = true
	default:
		if t, name, ok := b.table(e.Key); ok {
			return t.put(name, e.Value)
		}
	}
	return err
}

func (b *builder) remove(key string) {
	if b.broken[key] {
		delete(b.broken, key)
		b.published = nil
	}
	switch key {
	case keyRevision:
		b.revision = 0
	case keyDomain:
		b.domain = ""
	case keyIPv4:
		b.ipv4 = netip.Prefix{}
	case keyIPv6:
		b.ipv6 = netip.Prefix{}
	case keyRBACDisabled:
		b.noRBAC = false
	default:
		if t, name, ok := b.table(key); ok {
			t.remove(name)
		}
	}
}

func (b *builder) table(key string) (t keyed, name string, ok bool) {
	for _, t := range b.tables {
		if name, ok := strings.CutPrefix(key, t.under()); ok {
			return t, name, true
		}
	}
	return nil, "", false // another program's key
}

// network reads one of the mesh's networks.
func network(value []byte, v4 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(string(value))
	if err != nil {
		return netip.Prefix{}, err
	}
	if p.Addr().Is4() != v4 || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%v is a network of the other family", p)
	}
	return p, nil
}

// view makes the view of the present state.
func (b *builder) view(version uint64) *view {
	if b.nodes.dirty || b.nodeByID == nil {
		b.nodeByID = make(map[mesh.NodeID]*mesh.Node, len(b.nodes.items))
		for _, n := range b.nodes.items {
			b.nodeByID[n.ID] = n
		}
		b.nodes.dirty = false
	}
	if b.published == nil {
		b.published = maps.Clone(b.broken)
	}
	b.version = version
	return &view{
		snapshot: &mesh.Snapshot{
			Version:      version,
			Domain:       b.domain,
			IPv4:         b.ipv4,
			IPv6:         b.ipv6,
			RBACDisabled: b.noRBAC,
			Nodes:        b.nodeByID,
			Edges:        b.edges.sorted(),
			Routes:       b.routes.sorted(),
			Roles:        b.roles.sorted(),
			Bindings:     b.bindings.sorted(),
			Groups:       b.groups.sorted(),
			ACLs:         b.acls.sorted(),
		},
		revision:   b.revision,
		unreadable: b.published,
		superseded: make(chan struct{}),
	}
}
