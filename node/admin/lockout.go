// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

// checkLockOut refuses what would leave nobody with full rights, and changes of
// the objects that a mesh is run with.
func checkLockOut(s *mesh.Snapshot, c mesh.Change) error {
	switch {
	case c.Role != nil && c.Delete:
		return policy.CheckChange(s, policy.DeleteRole(c.Role.Name))
	case c.Role != nil:
		return policy.CheckChange(s, policy.PutRole(*c.Role))
	case c.Binding != nil && c.Delete:
		return policy.CheckChange(s, policy.DeleteRoleBinding(c.Binding.Name))
	case c.Binding != nil:
		return policy.CheckChange(s, policy.PutRoleBinding(*c.Binding))
	case c.Group != nil && c.Delete:
		return policy.CheckChange(s, policy.DeleteGroup(c.Group.Name))
	case c.Group != nil:
		return policy.CheckChange(s, policy.PutGroup(*c.Group))
	}
	return nil // what is left decides about packets, not about rights
}
