// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// view is a published snapshot with what a change based on it needs to know.
// It is immutable.
type view struct {
	snapshot *mesh.Snapshot
	// unreadable holds the keys whose values make no sense.
	unreadable map[string]bool
	// bound are the keys of purged nodes.
	bound map[mesh.NodeID]mesh.PublicKey
	// superseded is closed when the next view is published.
	superseded chan struct{}
}

// builder follows the keys of the registry and makes views of them. Only the
// objects whose keys changed are decoded again, and what a view shares with the
// one before it is not copied. One goroutine uses it.
type builder struct {
	logger *slog.Logger

	version    uint64
	revision   uint64
	domain     string
	ipv4, ipv6 netip.Prefix
	lastIPv4   netip.Addr
	noRBAC     bool
	watched    time.Duration

	nodes     nodeTable
	bound     plainTable[mesh.PublicKey]
	silent    plainTable[time.Time]
	missed    plainTable[time.Duration]
	edges     edgeTable
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

func newBuilder(logger *slog.Logger) *builder {
	b := &builder{
		logger: logger, broken: map[string]bool{},
		bound:  plainTable[mesh.PublicKey]{prefix: prefixBound, parse: mesh.ParsePublicKey},
		silent: plainTable[time.Time]{prefix: prefixSilent, parse: parseTime},
		missed: plainTable[time.Duration]{prefix: prefixMissed, parse: parseSeconds},
	}
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
	b.tables = []keyed{&b.nodes, &b.edges, &b.bound, &b.silent, &b.missed, b.routes, b.acls, b.roles, b.bindings, b.groups}
	return b
}

// load replaces everything by the entries of a list.
func (b *builder) load(entries []store.Entry, version uint64) *view {
	b.revision, b.domain, b.ipv4, b.ipv6, b.noRBAC, b.lastIPv4, b.watched = 0, "", netip.Prefix{}, netip.Prefix{}, false, netip.Addr{}, 0
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

// SnapshotOf returns what the entries of a whole state, such as those of a
// backup, say. What makes no sense is left out.
func SnapshotOf(entries []store.Entry, version uint64) *mesh.Snapshot {
	return newBuilder(slog.New(slog.DiscardHandler)).load(entries, version).snapshot
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
	case keyLastIPv4:
		b.lastIPv4, err = netip.ParseAddr(string(e.Value))
	case keyWatched:
		b.watched, err = parseSeconds(string(e.Value))
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
	case keyLastIPv4:
		b.lastIPv4 = netip.Addr{}
	case keyWatched:
		b.watched = 0
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
	if b.published == nil {
		b.published = maps.Clone(b.broken)
	}
	b.version = version
	return &view{
		snapshot: &mesh.Snapshot{
			Version:      version,
			Revision:     b.revision,
			Domain:       b.domain,
			IPv4:         b.ipv4,
			IPv6:         b.ipv6,
			RBACDisabled: b.noRBAC,
			LastIPv4:     b.lastIPv4,
			Silent:       b.silent.set,
			Missed:       b.missed.set,
			Watched:      b.watched,
			Nodes:        b.nodes.set,
			Edges:        b.edges.set,
			Routes:       b.routes.sorted(),
			Roles:        b.roles.sorted(),
			Bindings:     b.bindings.sorted(),
			Groups:       b.groups.sorted(),
			ACLs:         b.acls.sorted(),
		},
		unreadable: b.published,
		bound:      b.bound.set,
		superseded: make(chan struct{}),
	}
}
