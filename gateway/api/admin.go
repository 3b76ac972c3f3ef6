// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// Objects changes what people manage. On a node that holds no state it returns
// an error that wraps mesh.ErrUnsupported.
type Objects interface {
	// Change puts or deletes one object, as a whole or not at all, if permit, which
	// may be nil, allows it. That there is nothing to delete is no error.
	Change(ctx context.Context, c mesh.Change, permit mesh.Permit) error
	// ChangeAll makes all changes of b or none, if all that it expects is so.
	ChangeAll(ctx context.Context, b mesh.Batch) (mesh.Outcome, error)
}

// adminService serves v1.Admin. Reads are answered from one state; writes are
// checked against the latest one when they are made.
type adminService struct {
	state   State
	objects Objects
}

var _ v1connect.AdminHandler = (*adminService)(nil)

type empty = connect.Response[emptypb.Empty]

// change makes c happen, unless the request that it was read from is bad.
func (a *adminService) change(ctx context.Context, c mesh.Change, bad error) (*empty, error) {
	if bad != nil {
		return nil, bad
	}
	if err := a.objects.Change(ctx, c, permitOf(ctx)); err != nil {
		return nil, err
	}
	return connect.NewResponse(&emptypb.Empty{}), nil
}

// named is a message that names an object.
type named interface{ GetName() string }

// get answers with the object that m names.
func get[T, M any](ctx context.Context, a *adminService, m named, kind string, list func(*mesh.Snapshot) []T, is func(T, string) bool, to func(T) *M) (*connect.Response[M], error) {
	name := m.GetName()
	if err := objectName(name); err != nil {
		return nil, err
	}
	s, err := whole(ctx, a.state)
	if err != nil {
		return nil, err
	}
	items := list(s)
	i := slices.IndexFunc(items, func(item T) bool { return is(item, name) })
	if i < 0 {
		return nil, fmt.Errorf("%w: no %s %q in this mesh", mesh.ErrNotFound, kind, name)
	}
	return connect.NewResponse(to(items[i])), nil
}

// list answers with all objects of a kind.
func list[T, M, L any](ctx context.Context, a *adminService, items func(*mesh.Snapshot) []T, to func(T) *M, wrap func([]*M) *L) (*connect.Response[L], error) {
	s, err := whole(ctx, a.state)
	if err != nil {
		return nil, err
	}
	out := make([]*M, 0, len(items(s)))
	for _, item := range items(s) {
		out = append(out, to(item))
	}
	return connect.NewResponse(wrap(out)), nil
}

func roles(s *mesh.Snapshot) []mesh.Role           { return s.Roles }
func bindings(s *mesh.Snapshot) []mesh.RoleBinding { return s.Bindings }
func groups(s *mesh.Snapshot) []mesh.Group         { return s.Groups }
func acls(s *mesh.Snapshot) []mesh.ACL             { return s.ACLs }
func routes(s *mesh.Snapshot) []mesh.Route         { return s.Routes }
func edges(s *mesh.Snapshot) []mesh.Edge           { return slices.Collect(s.Edges.All()) }

// PutRole creates or replaces a role.
func (a *adminService) PutRole(ctx context.Context, req *connect.Request[v1.Role]) (*empty, error) {
	r, err := mesh.RoleFromProto(req.Msg)
	return a.change(ctx, mesh.Change{Role: &r}, err)
}

// DeleteRole removes a role to which nothing is bound.
func (a *adminService) DeleteRole(ctx context.Context, req *connect.Request[v1.Role]) (*empty, error) {
	name := req.Msg.GetName()
	return a.change(ctx, mesh.Change{Role: &mesh.Role{Name: name}, Delete: true}, objectName(name))
}

// GetRole returns a role by its name.
func (a *adminService) GetRole(ctx context.Context, req *connect.Request[v1.Role]) (*connect.Response[v1.Role], error) {
	return get(ctx, a, req.Msg, "role", roles, func(r mesh.Role, name string) bool { return r.Name == name }, mesh.RoleToProto)
}

// ListRoles returns every role, sorted by name.
func (a *adminService) ListRoles(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[v1.Roles], error) {
	return list(ctx, a, roles, mesh.RoleToProto, func(items []*v1.Role) *v1.Roles { return &v1.Roles{Items: items} })
}

// PutRoleBinding creates or replaces a role binding. Its role has to exist.
func (a *adminService) PutRoleBinding(ctx context.Context, req *connect.Request[v1.RoleBinding]) (*empty, error) {
	b, err := mesh.RoleBindingFromProto(req.Msg)
	b.Subjects = collapseSubjects(b.Subjects)
	return a.change(ctx, mesh.Change{Binding: &b}, err)
}

// DeleteRoleBinding removes a role binding.
func (a *adminService) DeleteRoleBinding(ctx context.Context, req *connect.Request[v1.RoleBinding]) (*empty, error) {
	name := req.Msg.GetName()
	return a.change(ctx, mesh.Change{Binding: &mesh.RoleBinding{Name: name}, Delete: true}, objectName(name))
}

// GetRoleBinding returns a role binding by its name.
func (a *adminService) GetRoleBinding(ctx context.Context, req *connect.Request[v1.RoleBinding]) (*connect.Response[v1.RoleBinding], error) {
	return get(ctx, a, req.Msg, "role binding", bindings, func(b mesh.RoleBinding, name string) bool { return b.Name == name }, mesh.RoleBindingToProto)
}

// ListRoleBindings returns every role binding, sorted by name.
func (a *adminService) ListRoleBindings(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[v1.RoleBindings], error) {
	return list(ctx, a, bindings, mesh.RoleBindingToProto, func(items []*v1.RoleBinding) *v1.RoleBindings { return &v1.RoleBindings{Items: items} })
}

// PutGroup creates or replaces a group. Groups in it have to exist.
func (a *adminService) PutGroup(ctx context.Context, req *connect.Request[v1.Group]) (*empty, error) {
	g, err := mesh.GroupFromProto(req.Msg)
	g.Subjects = collapseSubjects(g.Subjects)
	return a.change(ctx, mesh.Change{Group: &g}, err)
}

// DeleteGroup removes a group that no network ACL, role binding, route or other
// group names.
func (a *adminService) DeleteGroup(ctx context.Context, req *connect.Request[v1.Group]) (*empty, error) {
	name := req.Msg.GetName()
	return a.change(ctx, mesh.Change{Group: &mesh.Group{Name: name}, Delete: true}, objectName(name))
}

// GetGroup returns a group by its name.
func (a *adminService) GetGroup(ctx context.Context, req *connect.Request[v1.Group]) (*connect.Response[v1.Group], error) {
	return get(ctx, a, req.Msg, "group", groups, func(g mesh.Group, name string) bool { return g.Name == name }, mesh.GroupToProto)
}

// ListGroups returns every group, sorted by name.
func (a *adminService) ListGroups(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[v1.Groups], error) {
	return list(ctx, a, groups, mesh.GroupToProto, func(items []*v1.Group) *v1.Groups { return &v1.Groups{Items: items} })
}

// PutNetworkACL creates or replaces a network ACL.
func (a *adminService) PutNetworkACL(ctx context.Context, req *connect.Request[v1.NetworkACL]) (*empty, error) {
	acl, err := parseACL(req.Msg)
	return a.change(ctx, mesh.Change{ACL: &acl}, err)
}

// DeleteNetworkACL removes a network ACL.
func (a *adminService) DeleteNetworkACL(ctx context.Context, req *connect.Request[v1.NetworkACL]) (*empty, error) {
	name := req.Msg.GetName()
	return a.change(ctx, mesh.Change{ACL: &mesh.ACL{Name: name}, Delete: true}, objectName(name))
}

// GetNetworkACL returns a network ACL by its name.
func (a *adminService) GetNetworkACL(ctx context.Context, req *connect.Request[v1.NetworkACL]) (*connect.Response[v1.NetworkACL], error) {
	return get(ctx, a, req.Msg, "network ACL", acls, func(acl mesh.ACL, name string) bool { return acl.Name == name }, mesh.ACLToProto)
}

// ListNetworkACLs returns every network ACL in the order in which they are asked.
func (a *adminService) ListNetworkACLs(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[v1.NetworkACLs], error) {
	return list(ctx, a, acls, mesh.ACLToProto, func(items []*v1.NetworkACL) *v1.NetworkACLs { return &v1.NetworkACLs{Items: items} })
}

// PutRoute creates or replaces a route. Its node and next hop have to exist.
func (a *adminService) PutRoute(ctx context.Context, req *connect.Request[v1.Route]) (*empty, error) {
	r, err := parseRoute(req.Msg)
	return a.change(ctx, mesh.Change{Route: &r}, err)
}

// DeleteRoute removes a route.
func (a *adminService) DeleteRoute(ctx context.Context, req *connect.Request[v1.Route]) (*empty, error) {
	name := req.Msg.GetName()
	return a.change(ctx, mesh.Change{Route: &mesh.Route{Name: name}, Delete: true}, objectName(name))
}

// GetRoute returns a route by its name.
func (a *adminService) GetRoute(ctx context.Context, req *connect.Request[v1.Route]) (*connect.Response[v1.Route], error) {
	return get(ctx, a, req.Msg, "route", routes, func(r mesh.Route, name string) bool { return r.Name == name }, mesh.RouteToProto)
}

// ListRoutes returns every route, sorted by name.
func (a *adminService) ListRoutes(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[v1.Routes], error) {
	return list(ctx, a, routes, mesh.RouteToProto, func(items []*v1.Route) *v1.Routes { return &v1.Routes{Items: items} })
}

// PutEdge creates or replaces the edge between two nodes, which have to exist.
func (a *adminService) PutEdge(ctx context.Context, req *connect.Request[v1.MeshEdge]) (*empty, error) {
	e, err := parseEdge(req.Msg)
	return a.change(ctx, mesh.Change{Edge: &e}, err)
}

// DeleteEdge removes the edge between two nodes, in either order.
func (a *adminService) DeleteEdge(ctx context.Context, req *connect.Request[v1.MeshEdge]) (*empty, error) {
	e, err := edgeEnds(req.Msg)
	return a.change(ctx, mesh.Change{Edge: &e, Delete: true}, err)
}

// GetEdge returns the edge between two nodes, in either order.
func (a *adminService) GetEdge(ctx context.Context, req *connect.Request[v1.MeshEdge]) (*connect.Response[v1.MeshEdge], error) {
	ends, err := edgeEnds(req.Msg)
	if err != nil {
		return nil, err
	}
	s, err := whole(ctx, a.state)
	if err != nil {
		return nil, err
	}
	edge, ok := s.Edges.Get(ends.Source, ends.Target)
	if !ok {
		return nil, fmt.Errorf("%w: no edge between %q and %q in this mesh", mesh.ErrNotFound, ends.Source, ends.Target)
	}
	return connect.NewResponse(mesh.EdgeToProto(edge)), nil
}

// ListEdges returns every edge once, sorted by source and target.
func (a *adminService) ListEdges(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[v1.MeshEdges], error) {
	return list(ctx, a, edges, mesh.EdgeToProto, func(items []*v1.MeshEdge) *v1.MeshEdges { return &v1.MeshEdges{Items: items} })
}
