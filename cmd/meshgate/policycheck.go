// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/admin"
	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// foresee says what of policy put a mesh would refuse where the gateway does not say
// so itself: nil when it takes all, or when who puts may not read everything. The
// mesh decides about each object in any case.
func foresee(ctx context.Context, c calls, wishes []wish) error {
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	live, err := fetchPolicy(ctx, c.Public)
	if connect.CodeOf(err) == connect.CodePermissionDenied {
		return nil
	}
	if err != nil {
		return err
	}
	return refusedBy(live, wishes)
}

// refusedBy is why a mesh would refuse wishes; nil when it takes all.
func refusedBy(live *mesh.Snapshot, wishes []wish) error {
	var changes []mesh.Change
	for _, w := range wishes {
		c, err := changeTo(w.object)
		if w.gone {
			c, err = removalOf(w.object)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
		changes = append(changes, c)
	}
	return admin.Preview(live, changes)
}

// changeTo is the change that puts an object.
func changeTo(m proto.Message) (c mesh.Change, err error) {
	switch m := m.(type) {
	case *v1.Group:
		c.Group, err = pointer(mesh.GroupFromProto(m))
	case *v1.Role:
		c.Role, err = pointer(mesh.RoleFromProto(m))
	case *v1.RoleBinding:
		c.Binding, err = pointer(mesh.RoleBindingFromProto(m))
	case *v1.NetworkACL:
		c.ACL, err = pointer(mesh.ACLFromProto(m))
	case *v1.Route:
		c.Route, err = pointer(mesh.RouteFromProto(m))
	default:
		err = fmt.Errorf("%T is not put", m)
	}
	return c, err
}

func pointer[T any](v T, err error) (*T, error) { return &v, err }

// removalOf is the change that removes the object of that name.
func removalOf(m proto.Message) (mesh.Change, error) {
	c := mesh.Change{Delete: true}
	switch m := m.(type) {
	case *v1.Group:
		c.Group = &mesh.Group{Name: m.GetName()}
	case *v1.Role:
		c.Role = &mesh.Role{Name: m.GetName()}
	case *v1.RoleBinding:
		c.Binding = &mesh.RoleBinding{Name: m.GetName()}
	case *v1.NetworkACL:
		c.ACL = &mesh.ACL{Name: m.GetName()}
	case *v1.Route:
		c.Route = &mesh.Route{Name: m.GetName()}
	default:
		return c, fmt.Errorf("%T is not removed", m)
	}
	return c, nil
}
