// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

const (
	// MaxObjectsMessage is the largest request to the Objects service, in bytes:
	// as many as a batch of the store may have, in which the same is longer, as JSON.
	MaxObjectsMessage = 4 << 20
	// MaxObjectsFields is the largest number of fields of one, those of the messages
	// in it included: 64 for each of as many objects as a request may have.
	MaxObjectsFields = 64 * mesh.MaxChanges
)

// objectsService serves meshgate.v1.Objects.
type objectsService struct{ objects Objects }

var _ meshgatev1connect.ObjectsHandler = (*objectsService)(nil)

type permitKey struct{}

// WithPermit returns a context for a call whose rights are asked of each state
// upon which its change is about to be made, as mesh.Permit says.
func WithPermit(ctx context.Context, permit mesh.Permit) context.Context {
	return context.WithValue(ctx, permitKey{}, permit)
}

// permitOf is the permit of a call; nil: it needs none.
func permitOf(ctx context.Context) mesh.Permit {
	permit, _ := ctx.Value(permitKey{}).(mesh.Permit)
	return permit
}

// Change makes changes together.
func (o *objectsService) Change(ctx context.Context, req *connect.Request[meshgatev1.ChangeRequest]) (*connect.Response[meshgatev1.ChangeResponse], error) {
	b, err := batchOf(req.Msg)
	if err != nil {
		return nil, err
	}
	b.Permit = permitOf(ctx)
	outcome, err := o.objects.ChangeAll(ctx, b)
	if err != nil {
		return nil, err
	}
	answer := &meshgatev1.ChangeResponse{Version: outcome.Version}
	for _, e := range outcome.Effects {
		answer.Effects = append(answer.Effects, effectToProto(e))
	}
	return connect.NewResponse(answer), nil
}

// batchOf reads a request. What is to be is read as strictly as v1.Admin reads it,
// what is expected to be as it may be stored.
func batchOf(m *meshgatev1.ChangeRequest) (mesh.Batch, error) {
	b := mesh.Batch{DryRun: m.GetDryRun()}
	var err error
	if b.Changes, err = changes("changes", m.GetChanges(), toPut); err != nil {
		return b, err
	}
	b.Expected, err = changes("expected", m.GetExpected(), asStored)
	return b, err
}

func changes(field string, list []*meshgatev1.ObjectState, read func(*meshgatev1.ObjectState) (mesh.Change, error)) ([]mesh.Change, error) {
	if len(list) > mesh.MaxChanges {
		return nil, fmt.Errorf("%w: %s: %d are too many, the most is %d", mesh.ErrInvalid, field, len(list), mesh.MaxChanges)
	}
	out := make([]mesh.Change, 0, len(list))
	for i, p := range list {
		c, err := readState(p, read)
		if err != nil {
			return nil, fmt.Errorf("%s: [%d]: %w", field, i, err)
		}
		out = append(out, c)
	}
	return out, nil
}

func readState(p *meshgatev1.ObjectState, read func(*meshgatev1.ObjectState) (mesh.Change, error)) (mesh.Change, error) {
	if p.GetAbsent() {
		return absent(p)
	}
	return read(p)
}

// errNoObject is the answer to a state of nothing.
var errNoObject = fmt.Errorf("%w: object is empty; set role, role_binding, group, network_acl, route or edge", mesh.ErrInvalid)

// toPut is the change to p, read as the v1 call for it reads it.
func toPut(p *meshgatev1.ObjectState) (c mesh.Change, err error) {
	switch {
	case p.GetRoleBinding() != nil:
		c.Binding, err = pointer(mesh.RoleBindingFromProto(p.GetRoleBinding()))
		c.Binding.Subjects = collapseSubjects(c.Binding.Subjects)
	case p.GetGroup() != nil:
		c.Group, err = pointer(mesh.GroupFromProto(p.GetGroup()))
		c.Group.Subjects = collapseSubjects(c.Group.Subjects)
	case p.GetNetworkAcl() != nil:
		c.ACL, err = pointer(parseACL(p.GetNetworkAcl()))
	case p.GetRoute() != nil:
		c.Route, err = pointer(parseRoute(p.GetRoute()))
	case p.GetEdge() != nil:
		c.Edge, err = pointer(parseEdge(p.GetEdge()))
	default:
		return asStored(p)
	}
	return c, err
}

// asStored is the change to p, read as what the state has is read.
func asStored(p *meshgatev1.ObjectState) (c mesh.Change, err error) {
	switch {
	case p.GetRole() != nil:
		c.Role, err = pointer(mesh.RoleFromProto(p.GetRole()))
	case p.GetRoleBinding() != nil:
		c.Binding, err = pointer(mesh.RoleBindingFromProto(p.GetRoleBinding()))
	case p.GetGroup() != nil:
		c.Group, err = pointer(mesh.GroupFromProto(p.GetGroup()))
	case p.GetNetworkAcl() != nil:
		c.ACL, err = pointer(mesh.ACLFromProto(p.GetNetworkAcl()))
	case p.GetRoute() != nil:
		c.Route, err = pointer(mesh.RouteFromProto(p.GetRoute()))
	case p.GetEdge() != nil:
		c.Edge, err = pointer(mesh.EdgeFromProto(p.GetEdge()))
	default:
		err = errNoObject
	}
	return c, err
}

// absent is the removal of the object of p, of which the name counts.
func absent(p *meshgatev1.ObjectState) (mesh.Change, error) {
	c := mesh.Change{Delete: true}
	switch {
	case p.GetRole() != nil:
		c.Role = &mesh.Role{Name: p.GetRole().GetName()}
		return c, objectName(c.Role.Name)
	case p.GetRoleBinding() != nil:
		c.Binding = &mesh.RoleBinding{Name: p.GetRoleBinding().GetName()}
		return c, objectName(c.Binding.Name)
	case p.GetGroup() != nil:
		c.Group = &mesh.Group{Name: p.GetGroup().GetName()}
		return c, objectName(c.Group.Name)
	case p.GetNetworkAcl() != nil:
		c.ACL = &mesh.ACL{Name: p.GetNetworkAcl().GetName()}
		return c, objectName(c.ACL.Name)
	case p.GetRoute() != nil:
		c.Route = &mesh.Route{Name: p.GetRoute().GetName()}
		return c, objectName(c.Route.Name)
	case p.GetEdge() != nil:
		e, err := edgeEnds(p.GetEdge())
		c.Edge = &e
		return c, err
	}
	return c, errNoObject
}

func pointer[T any](v T, err error) (*T, error) { return &v, err }

func effectToProto(e mesh.Effect) meshgatev1.Effect {
	switch e {
	case mesh.Created:
		return meshgatev1.Effect_EFFECT_CREATED
	case mesh.Replaced:
		return meshgatev1.Effect_EFFECT_REPLACED
	case mesh.Removed:
		return meshgatev1.Effect_EFFECT_REMOVED
	}
	return meshgatev1.Effect_EFFECT_NONE
}
