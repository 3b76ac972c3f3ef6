// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
)

// checkRights refuses, by policy.CheckChange or a part of it, what would leave
// nobody with full rights, and changes of the objects that a mesh is run with.
func checkRights(s *mesh.Snapshot, c mesh.Change, refuses func(*mesh.Snapshot, policy.Change) error) error {
	switch {
	case c.Role != nil && c.Delete:
		return refuses(s, policy.DeleteRole(c.Role.Name))
	case c.Role != nil:
		return refuses(s, policy.PutRole(*c.Role))
	case c.Binding != nil && c.Delete:
		return refuses(s, policy.DeleteRoleBinding(c.Binding.Name))
	case c.Binding != nil:
		return refuses(s, policy.PutRoleBinding(*c.Binding))
	case c.Group != nil && c.Delete:
		return refuses(s, policy.DeleteGroup(c.Group.Name))
	case c.Group != nil:
		return refuses(s, policy.PutGroup(*c.Group))
	case c.ACL != nil && c.ACL.Name == registry.ACLBootstrapNodes:
		return keepBootstrapACL(s, c)
	}
	return nil // what is left decides about packets, not about rights
}

// keepBootstrapACL refuses a change of the ACL by which gateways reach each other.
func keepBootstrapACL(s *mesh.Snapshot, c mesh.Change) error {
	i := slices.IndexFunc(s.ACLs, func(a mesh.ACL) bool { return a.Name == c.ACL.Name })
	if i < 0 || !c.Delete && reflect.DeepEqual(s.ACLs[i], *c.ACL) {
		return nil
	}
	return fmt.Errorf("%w: network ACL %q is part of the mesh itself and cannot be changed or deleted: gateways reach each other by it; put another one beside it",
		mesh.ErrPrecondition, c.ACL.Name)
}
