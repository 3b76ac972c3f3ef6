// SPDX-License-Identifier: Apache-2.0

// Package policy decides, as pure functions of a mesh.Snapshot, what a caller
// may do (RBAC) and which addresses may talk (network ACLs). Everything that
// no role and no ACL grants is denied.
package policy

import (
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Allowed reports whether subject, the authenticated id of a node or user, may
// do a. A role grants it when it is bound to the subject, to "*" or to a group
// that holds one of them, and one of its rules matches. There are no denying
// rules. A binding to a missing role, an empty subject and an action without
// resource or verb get nothing. When RBAC is switched off, all is allowed.
func Allowed(s *mesh.Snapshot, subject string, a mesh.Action) bool {
	if s.RBACDisabled {
		return true
	}
	if subject == "" || a.Resource == v1.RuleResource_RESOURCE_UNKNOWN || a.Verb == v1.RuleVerb_VERB_UNKNOWN {
		return false
	}
	groups := indexGroups(s.Groups)
	for _, b := range s.Bindings {
		if roleGrants(s.Roles, b.Role, a) && groups.subjects(b.Subjects).has(subject) {
			return true
		}
	}
	return false
}

// roleGrants reports whether a rule of the named role grants a.
func roleGrants(roles []mesh.Role, name string, a mesh.Action) bool {
	return slices.ContainsFunc(roles, func(r mesh.Role) bool {
		return r.Name == name && slices.ContainsFunc(r.Rules, func(rule mesh.Rule) bool { return ruleGrants(rule, a) })
	})
}

// ruleGrants reports whether rule grants a. The names of a rule restrict only
// actions that carry a name, and do not restrict RESOURCE_ALL.
func ruleGrants(rule mesh.Rule, a mesh.Action) bool {
	if !slices.Contains(rule.Verbs, a.Verb) && !slices.Contains(rule.Verbs, v1.RuleVerb_VERB_ALL) {
		return false
	}
	if slices.Contains(rule.Resources, v1.RuleResource_RESOURCE_ALL) {
		return true
	}
	return slices.Contains(rule.Resources, a.Resource) && (a.Name == "" || slices.Contains(rule.Names, a.Name))
}

// Bound reports whether a role binding or a group names exactly name, as a node
// or as a user: whoever gets that name gets what it was given.
func Bound(s *mesh.Snapshot, name string) bool {
	named := func(x mesh.Subject) bool { return x.Name == name && x.Type != v1.SubjectType_SUBJECT_GROUP }
	return slices.ContainsFunc(s.Bindings, func(b mesh.RoleBinding) bool { return slices.ContainsFunc(b.Subjects, named) }) ||
		slices.ContainsFunc(s.Groups, func(g mesh.Group) bool { return slices.ContainsFunc(g.Subjects, named) })
}
