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

// foresee reads the mesh and says what policy put does to it, and in refused what
// of that the mesh would not take. Who may put and not read everything puts
// without: the mesh decides about each object in any case.
func foresee(ctx context.Context, c calls, file policyFile, o policyPutOptions) (steps []policyStep, refused, err error) {
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	live, err := fetchPolicy(ctx, c.Public)
	if connect.CodeOf(err) == connect.CodePermissionDenied && !o.prune && !o.dryRun {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	steps = policySteps(file, live, o.prune)
	return steps, policyRefused(file, live, steps), nil
}

// policyRefused is why a mesh would refuse an object of the file, or a removal of
// steps after it; nil when it takes all.
func policyRefused(file policyFile, live *mesh.Snapshot, steps []policyStep) error {
	var changes []mesh.Change
	for _, k := range putKinds(file) {
		for _, m := range membersFirst(k.objects) {
			c, err := changeTo(m)
			if err != nil {
				return fmt.Errorf("put %s %s: %w", k.key, objectName(m), err)
			}
			changes = append(changes, c)
		}
	}
	for _, s := range steps {
		if s.Action == stepRemove {
			changes = append(changes, removalOf(s))
		}
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

// removalOf is the change of a step that removes.
func removalOf(s policyStep) mesh.Change {
	switch s.Kind {
	case "groups":
		return mesh.Change{Group: &mesh.Group{Name: s.Name}, Delete: true}
	case "roles":
		return mesh.Change{Role: &mesh.Role{Name: s.Name}, Delete: true}
	case "rolebindings":
		return mesh.Change{Binding: &mesh.RoleBinding{Name: s.Name}, Delete: true}
	case "networkacls":
		return mesh.Change{ACL: &mesh.ACL{Name: s.Name}, Delete: true}
	default:
		return mesh.Change{Route: &mesh.Route{Name: s.Name}, Delete: true}
	}
}
