// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
)

// draft is a snapshot upon which changes are made one after another. The one that
// it began with stays as it is: a list is copied before the first write to it.
// Lists are not in the order that snapshots promise, of which no check knows.
type draft struct {
	mesh.Snapshot
	own struct{ roles, bindings, groups, acls, routes bool }
}

func newDraft(s *mesh.Snapshot) *draft { return &draft{Snapshot: *s} }

// effect is what c would do; it is checked to have one object.
func (d *draft) effect(c mesh.Change) mesh.Effect {
	switch {
	case c.Role != nil:
		return effectOn(d.Roles, *c.Role, c.Delete, roleName, mesh.RoleToProto)
	case c.Binding != nil:
		return effectOn(d.Bindings, *c.Binding, c.Delete, bindingName, mesh.RoleBindingToProto)
	case c.Group != nil:
		return effectOn(d.Groups, *c.Group, c.Delete, groupName, mesh.GroupToProto)
	case c.ACL != nil:
		return effectOn(d.ACLs, *c.ACL, c.Delete, aclName, mesh.ACLToProto)
	case c.Route != nil:
		return effectOn(d.Routes, *c.Route, c.Delete, routeName, mesh.RouteToProto)
	}
	e := *c.Edge
	e.Source, e.Target = min(e.Source, e.Target), max(e.Source, e.Target)
	old, ok := d.Edges.Get(e.Source, e.Target)
	return effectOf(ok, c.Delete, func() bool { return proto.Equal(mesh.EdgeToProto(old), mesh.EdgeToProto(e)) })
}

// effectOn is what putting v into list, or taking it out, would do.
func effectOn[T any, M proto.Message](list []T, v T, gone bool, name func(*T) string, to func(T) M) mesh.Effect {
	i := at(list, name(&v), name)
	return effectOf(i >= 0, gone, func() bool { return proto.Equal(to(list[i]), to(v)) })
}

func effectOf(there, gone bool, same func() bool) mesh.Effect {
	switch {
	case gone && there:
		return mesh.Removed
	case gone:
		return mesh.Unchanged
	case !there:
		return mesh.Created
	case same():
		return mesh.Unchanged
	}
	return mesh.Replaced
}

// apply makes c in d.
func (d *draft) apply(c mesh.Change) {
	switch {
	case c.Role != nil:
		applyTo(&d.Roles, &d.own.roles, *c.Role, c.Delete, roleName)
	case c.Binding != nil:
		applyTo(&d.Bindings, &d.own.bindings, *c.Binding, c.Delete, bindingName)
	case c.Group != nil:
		applyTo(&d.Groups, &d.own.groups, *c.Group, c.Delete, groupName)
	case c.ACL != nil:
		applyTo(&d.ACLs, &d.own.acls, *c.ACL, c.Delete, aclName)
	case c.Route != nil:
		applyTo(&d.Routes, &d.own.routes, *c.Route, c.Delete, routeName)
	case c.Delete:
		d.Edges = d.Edges.Without(c.Edge.Source, c.Edge.Target)
	default:
		d.Edges = d.Edges.With(*c.Edge)
	}
}

// applyTo puts v into list, in the place of what has its name, or takes that out.
func applyTo[T any](list *[]T, own *bool, v T, gone bool, name func(*T) string) {
	if !*own {
		*list, *own = slices.Clone(*list), true
	}
	i := at(*list, name(&v), name)
	switch {
	case gone && i >= 0:
		*list = slices.Delete(*list, i, i+1)
	case gone:
	case i >= 0:
		(*list)[i] = v
	default:
		*list = append(*list, v)
	}
}

// at is the index of what has a name; -1 without it.
func at[T any](list []T, name string, of func(*T) string) int {
	for i := range list {
		if of(&list[i]) == name {
			return i
		}
	}
	return -1
}

func roleName(r *mesh.Role) string           { return r.Name }
func bindingName(b *mesh.RoleBinding) string { return b.Name }
func groupName(g *mesh.Group) string         { return g.Name }
func aclName(a *mesh.ACL) string             { return a.Name }
func routeName(r *mesh.Route) string         { return r.Name }
