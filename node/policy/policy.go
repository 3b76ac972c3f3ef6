// SPDX-License-Identifier: Apache-2.0

// Package policy decides, as pure functions of a mesh.Snapshot, what a caller
// may do (RBAC) and who may talk to whom (network ACLs). Everything that no role
// and no ACL grants is denied. Only Flows has a memory: who spoke first.
package policy

import (
	"fmt"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Grant is what the roles say of an action, and which of them says it.
type Grant struct {
	Allowed bool
	// Role and Binding are what grants the action; empty when nothing does, or
	// when nothing has to.
	Role, Binding string
	// RBACDisabled is true when roles were not asked.
	RBACDisabled bool
}

// String says why, such as: granted by role "ops" (binding "ops-team").
func (g Grant) String() string {
	switch {
	case g.RBACDisabled:
		return "RBAC is switched off"
	case !g.Allowed:
		return "no role grants it"
	default:
		return fmt.Sprintf("granted by role %q (binding %q)", g.Role, g.Binding)
	}
}

// Allowed reports whether subject, the authenticated id of a node or user, may
// do a. A role grants it when it is bound to the subject, to "*" or to a group
// that holds one of them, and one of its rules matches. There are no denying
// rules. A binding to a missing role, an empty subject and an action without
// resource or verb get nothing. When RBAC is switched off, all is allowed.
func Allowed(s *mesh.Snapshot, subject string, a mesh.Action) bool {
	return Explain(s, subject, a).Allowed
}

// Rights are what the roles of one subject grant, for more than one question. The
// zero value grants nothing.
type Rights struct {
	all   bool
	rules []mesh.Rule
}

// RightsOf collects what subject may do: Allow of it answers as Allowed does.
func RightsOf(s *mesh.Snapshot, subject string) Rights {
	if s.RBACDisabled {
		return Rights{all: true}
	}
	if subject == "" {
		return Rights{}
	}
	var r Rights
	groups, bound := indexGroups(s.Groups), map[string]bool{}
	for _, b := range s.Bindings {
		if !bound[b.Role] && groups.hold(b.Subjects, subject) {
			bound[b.Role] = true
		}
	}
	for _, role := range s.Roles {
		if bound[role.Name] {
			r.rules = append(r.rules, role.Rules...)
		}
	}
	return r
}

// Allow reports whether one of the rules grants a.
func (r Rights) Allow(a mesh.Action) bool {
	return r.all || known(a) && slices.ContainsFunc(r.rules, func(rule mesh.Rule) bool { return ruleGrants(rule, a) })
}

// AllowedSome reports whether subject may do verb to at least one named object of a
// resource, whether there is one of that name or not.
func AllowedSome(s *mesh.Snapshot, subject string, resource v1.RuleResource, verb v1.RuleVerb) bool {
	return explain(s, subject, func(rule mesh.Rule) bool {
		if slices.ContainsFunc(rule.Names, func(name string) bool {
			return ruleGrants(rule, mesh.Action{Resource: resource, Verb: verb, Name: name})
		}) {
			return true
		}
		// What grants an object that it does not name grants any.
		return slices.Contains(rule.Resources, v1.RuleResource_RESOURCE_ALL) && ruleGrants(rule, mesh.Action{Resource: resource, Verb: verb})
	}).Allowed
}

// Explain is Allowed, and says what grants the action: of several bindings the
// first by name.
func Explain(s *mesh.Snapshot, subject string, a mesh.Action) Grant {
	return explain(s, subject, func(rule mesh.Rule) bool { return known(a) && ruleGrants(rule, a) })
}

// known reports whether a is something that a rule can grant.
func known(a mesh.Action) bool {
	return a.Resource != v1.RuleResource_RESOURCE_UNKNOWN && a.Verb != v1.RuleVerb_VERB_UNKNOWN
}

// explain is what the roles say of actions that grants recognises the rules for.
func explain(s *mesh.Snapshot, subject string, grants func(mesh.Rule) bool) Grant {
	if s.RBACDisabled {
		return Grant{Allowed: true, RBACDisabled: true}
	}
	if subject == "" {
		return Grant{}
	}
	groups := indexGroups(s.Groups)
	for i := range s.Bindings {
		if b := &s.Bindings[i]; roleGrants(s.Roles, b.Role, grants) && groups.hold(b.Subjects, subject) {
			return Grant{Allowed: true, Role: b.Role, Binding: b.Name}
		}
	}
	return Grant{}
}

// roleGrants reports whether the named role has a rule that grants.
func roleGrants(roles []mesh.Role, name string, grants func(mesh.Rule) bool) bool {
	return slices.ContainsFunc(roles, func(r mesh.Role) bool { return r.Name == name && slices.ContainsFunc(r.Rules, grants) })
}

// ruleGrants reports whether rule grants a. A rule with names is about these
// objects and nothing else, one without about what has no name, such as lists;
// neither restricts RESOURCE_ALL. (In v1 a rule for one object also granted
// lists of all.)
func ruleGrants(rule mesh.Rule, a mesh.Action) bool {
	if !slices.Contains(rule.Verbs, a.Verb) && !slices.Contains(rule.Verbs, v1.RuleVerb_VERB_ALL) {
		return false
	}
	if slices.Contains(rule.Resources, v1.RuleResource_RESOURCE_ALL) {
		return true
	}
	return slices.Contains(rule.Resources, a.Resource) &&
		(a.Name == "" && len(rule.Names) == 0 || a.Name != "" && slices.Contains(rule.Names, a.Name))
}

// Bound reports whether a role binding or a group names exactly name, as a node
// or as a user: whoever gets that name gets what it was given.
func Bound(s *mesh.Snapshot, name string) bool {
	named := func(x mesh.Subject) bool { return x.Name == name && x.Type != v1.SubjectType_SUBJECT_GROUP }
	return slices.ContainsFunc(s.Bindings, func(b mesh.RoleBinding) bool { return slices.ContainsFunc(b.Subjects, named) }) ||
		slices.ContainsFunc(s.Groups, func(g mesh.Group) bool { return slices.ContainsFunc(g.Subjects, named) })
}
