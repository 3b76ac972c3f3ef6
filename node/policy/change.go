// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Names of the system objects: a mesh is made with them and keeps them, so that
// there is always a way back in. The registry writes them at bootstrap.
const (
	RoleAdmin     = "mesh-admin"
	RoleVoters    = "voters"
	BindingAdmin  = "mesh-admin"
	BindingVoters = "bootstrap-voters"
	GroupVoters   = "voters"
)

// Change is a proposed change of one object that policy is made of. Make one
// with PutRole and its siblings; the zero value changes nothing.
type Change struct {
	// kind and name are for messages, such as: role "mesh-admin".
	kind, name string
	// system says that the object is kept as it is.
	system bool
	// check, when set, says what else is wrong with the change.
	check func() error
	// apply makes the change in a snapshot whose lists it may replace, not write to.
	apply func(*mesh.Snapshot)
}

// PutRole proposes to write r.
func PutRole(r mesh.Role) Change {
	return Change{
		kind: "role", name: r.Name, system: r.Name == RoleAdmin || r.Name == RoleVoters,
		apply: func(s *mesh.Snapshot) { s.Roles = with(s.Roles, r, func(x mesh.Role) bool { return x.Name == r.Name }) },
	}
}

// DeleteRole proposes to remove the named role.
func DeleteRole(name string) Change {
	return Change{
		kind: "role", name: name, system: name == RoleAdmin || name == RoleVoters,
		apply: func(s *mesh.Snapshot) { s.Roles = without(s.Roles, func(x mesh.Role) bool { return x.Name == name }) },
	}
}

// PutRoleBinding proposes to write b.
func PutRoleBinding(b mesh.RoleBinding) Change {
	return Change{
		kind: "role binding", name: b.Name, system: b.Name == BindingAdmin || b.Name == BindingVoters,
		apply: func(s *mesh.Snapshot) {
			s.Bindings = with(s.Bindings, b, func(x mesh.RoleBinding) bool { return x.Name == b.Name })
		},
	}
}

// DeleteRoleBinding proposes to remove the named role binding.
func DeleteRoleBinding(name string) Change {
	return Change{
		kind: "role binding", name: name, system: name == BindingAdmin || name == BindingVoters,
		apply: func(s *mesh.Snapshot) {
			s.Bindings = without(s.Bindings, func(x mesh.RoleBinding) bool { return x.Name == name })
		},
	}
}

// PutGroup proposes to write g. The group of the voters may get other members,
// but not lose all, nor a gateway: gateways are believed because they are in it.
func PutGroup(g mesh.Group) Change {
	return Change{
		kind: "group", name: g.Name,
		check: func() error {
			if g.Name == GroupVoters && len(g.Subjects) == 0 {
				return fmt.Errorf("group %q needs a member: its members are the gateways that keep the mesh: %w", g.Name, mesh.ErrPrecondition)
			}
			return nil
		},
		apply: func(s *mesh.Snapshot) {
			s.Groups = with(s.Groups, g, func(x mesh.Group) bool { return x.Name == g.Name })
		},
	}
}

// DeleteGroup proposes to remove the named group.
func DeleteGroup(name string) Change {
	return Change{
		kind: "group", name: name, system: name == GroupVoters,
		apply: func(s *mesh.Snapshot) {
			s.Groups = without(s.Groups, func(x mesh.Group) bool { return x.Name == name })
		},
	}
}

// CheckChange reports whether s may be changed by c: not when that would change
// or remove a system object, not when a gateway would drop out of the voters or
// everybody get into them, and not when somebody has full rights before and nobody
// afterwards. A change that writes a system object as it is passes.
//
// Network ACLs need no check here: the API is served outside the mesh too, so that
// whoever has full rights can always take an ACL back.
//
// The error wraps mesh.ErrPrecondition and says what to do instead.
func CheckChange(s *mesh.Snapshot, c Change) error {
	if c.apply == nil {
		return nil
	}
	if err := CheckKept(s, c); err != nil {
		return err
	}
	after := *s
	c.apply(&after)
	if err := CheckLockOut(s, &after); err != nil {
		return fmt.Errorf("%s %q: %w", c.kind, c.name, err)
	}
	return nil
}

// CheckKept is what of CheckChange is about the object alone, and costs little:
// that a system object stays as it is.
func CheckKept(s *mesh.Snapshot, c Change) error {
	if c.system {
		after := *s
		c.apply(&after)
		if !sameRBAC(s, &after) {
			return fmt.Errorf("%s %q is part of the mesh itself and cannot be changed or deleted; make another one beside it: %w",
				c.kind, c.name, mesh.ErrPrecondition)
		}
	}
	if c.check != nil {
		return c.check()
	}
	return nil
}

// CheckLockOut is the rest of CheckChange, for one change or for several: it
// refuses those that make after of before and with which a gateway drops out of
// the voters, or the last one who may do everything loses that.
func CheckLockOut(before, after *mesh.Snapshot) error {
	if !indexGroups(before.Groups).group(GroupVoters).everyone && indexGroups(after.Groups).group(GroupVoters).everyone {
		return fmt.Errorf("everybody would be in the group %s, and might be a gateway; name its members: %w", GroupVoters, mesh.ErrPrecondition)
	}
	if lost := gatewaysLost(before, after); len(lost) > 0 {
		return fmt.Errorf("%s would drop out of the group %s and could reach neither gateways nor nodes; "+
			"name gateways beside those that are to be added (meshgate put groups %s --add --node ID), or take one out of the mesh first (meshgate cluster remove ID): %w",
			strings.Join(lost, ", "), GroupVoters, GroupVoters, mesh.ErrPrecondition)
	}
	if mastered(before) && !mastered(after) {
		return fmt.Errorf("nobody would have full rights any more; bind a role with all verbs on all resources to somebody first: %w", mesh.ErrPrecondition)
	}
	return nil
}

// gatewaysLost are the gateways that are voters before and not after a change.
func gatewaysLost(before, after *mesh.Snapshot) []string {
	was, is := indexGroups(before.Groups).group(GroupVoters), indexGroups(after.Groups).group(GroupVoters)
	var lost []string
	for name := range was.names {
		if before.Node(mesh.NodeID(name)).FollowsNone() && !is.has(name) {
			lost = append(lost, name)
		}
	}
	slices.Sort(lost)
	return lost
}

// mastered reports whether somebody may do everything.
func mastered(s *mesh.Snapshot) bool {
	if s.RBACDisabled {
		return true
	}
	everything := mesh.Action{Resource: v1.RuleResource_RESOURCE_ALL, Verb: v1.RuleVerb_VERB_ALL}
	groups := indexGroups(s.Groups)
	return slices.ContainsFunc(s.Bindings, func(b mesh.RoleBinding) bool {
		return roleGrants(s.Roles, b.Role, func(rule mesh.Rule) bool { return ruleGrants(rule, everything) }) && !groups.subjects(b.Subjects).empty()
	})
}

// sameRBAC reports whether two snapshots hold equal roles, bindings and groups.
func sameRBAC(a, b *mesh.Snapshot) bool {
	return reflect.DeepEqual(a.Roles, b.Roles) && reflect.DeepEqual(a.Bindings, b.Bindings) && reflect.DeepEqual(a.Groups, b.Groups)
}

// with returns list with v in the place of the element that is found, or at the end.
func with[T any](list []T, v T, found func(T) bool) []T {
	list = slices.Clone(list)
	if i := slices.IndexFunc(list, found); i >= 0 {
		list[i] = v
		return list
	}
	return append(list, v)
}

// without returns list without the elements that are found.
func without[T any](list []T, found func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(list), found)
}
