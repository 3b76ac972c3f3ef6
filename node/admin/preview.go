// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"fmt"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// Preview reports whether a mesh as s would take changes, one after another, each
// upon those before it; s stays as it is. The error is that of the first that
// Change would refuse, and names it.
//
// It knows what s has: where s lacks the networks of the mesh, or addresses of
// nodes and replicas, routes that touch them pass here and not there.
func Preview(s *mesh.Snapshot, changes []mesh.Change) error {
	after := *s
	for _, c := range changes {
		err := check(&after, c)
		if err == nil && c.Route != nil && !c.Delete {
			err = checkOutside(&after, c.Route, nil)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		apply(&after, c)
	}
	return nil
}

// apply makes c in s, whose lists it replaces and does not write to. No check is
// about edges that are there, so it leaves them.
func apply(s *mesh.Snapshot, c mesh.Change) {
	switch {
	case c.Role != nil:
		s.Roles = changed(s.Roles, *c.Role, c.Delete, func(x mesh.Role) string { return x.Name })
	case c.Binding != nil:
		s.Bindings = changed(s.Bindings, *c.Binding, c.Delete, func(x mesh.RoleBinding) string { return x.Name })
	case c.Group != nil:
		s.Groups = changed(s.Groups, *c.Group, c.Delete, func(x mesh.Group) string { return x.Name })
	case c.ACL != nil:
		s.ACLs = changed(s.ACLs, *c.ACL, c.Delete, func(x mesh.ACL) string { return x.Name })
	case c.Route != nil:
		s.Routes = changed(s.Routes, *c.Route, c.Delete, func(x mesh.Route) string { return x.Name })
	}
}

// changed is list with v in the place of what has its name, or without it.
func changed[T any](list []T, v T, gone bool, name func(T) string) []T {
	list = slices.DeleteFunc(slices.Clone(list), func(x T) bool { return name(x) == name(v) })
	if gone {
		return list
	}
	return append(list, v)
}
