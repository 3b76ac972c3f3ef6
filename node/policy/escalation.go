// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// CheckGain refuses what makes after of before when somebody would get rights by it
// that subject, who asks for it, does not have before: else who may put one role
// binding could bind itself to every role. The error wraps mesh.ErrDenied.
func CheckGain(before, after *mesh.Snapshot, subject string) error {
	if before.RBACDisabled {
		return nil
	}
	rights := RightsOf(before, subject)
	for b, rule := range gained(before, after) {
		if a, ok := rights.exceeded(rule); ok {
			return fmt.Errorf("%w: by role binding %q it would give %v on %v, which %q has no role for; nobody gives what they may not do themselves",
				mesh.ErrDenied, b.Name, a.Verb, object(a), subject)
		}
	}
	return nil
}

// object names what an action is about.
func object(a mesh.Action) string {
	if a.Name == "" {
		return a.Resource.String()
	}
	return fmt.Sprintf("%v %q", a.Resource, a.Name)
}

// gained yields the rules that a binding gives after a change and did not give
// before to each of those whom it names.
func gained(before, after *mesh.Snapshot) func(yield func(*mesh.RoleBinding, mesh.Rule) bool) {
	had, has := indexGroups(before.Groups), indexGroups(after.Groups)
	return func(yield func(*mesh.RoleBinding, mesh.Rule) bool) {
		for i := range after.Bindings {
			b := &after.Bindings[i]
			var old []mesh.Rule
			if j := slices.IndexFunc(before.Bindings, func(x mesh.RoleBinding) bool { return x.Name == b.Name }); j >= 0 {
				is := has.subjects(b.Subjects)
				if was := had.subjects(before.Bindings[j].Subjects); is.within(was) {
					old = rulesOf(before.Roles, before.Bindings[j].Role)
				}
			}
			for _, rule := range rulesOf(after.Roles, b.Role) {
				if !slices.ContainsFunc(old, func(x mesh.Rule) bool { return sameRule(x, rule) }) && !yield(b, rule) {
					return
				}
			}
		}
	}
}

func sameRule(a, b mesh.Rule) bool {
	return slices.Equal(a.Resources, b.Resources) && slices.Equal(a.Names, b.Names) && slices.Equal(a.Verbs, b.Verbs)
}

// rulesOf are the rules of the named role.
func rulesOf(roles []mesh.Role, name string) []mesh.Rule {
	if i := slices.IndexFunc(roles, func(r mesh.Role) bool { return r.Name == name }); i >= 0 {
		return roles[i].Rules
	}
	return nil
}

// exceeded returns an action that rule grants and r does not.
func (r Rights) exceeded(rule mesh.Rule) (mesh.Action, bool) {
	names := rule.Names
	if len(names) == 0 {
		names = []string{""}
	}
	for _, resource := range rule.Resources {
		for _, verb := range rule.Verbs {
			for _, name := range names {
				if resource == v1.RuleResource_RESOURCE_ALL {
					name = "" // which it does not restrict
				}
				a := mesh.Action{Resource: resource, Verb: verb, Name: name}
				if !known(a) || r.Allow(a) {
					continue
				}
				// All verbs on all resources are more than each: only who has them may
				// do what no resource stands for, such as making tokens.
				if verb != v1.RuleVerb_VERB_ALL || resource == v1.RuleResource_RESOURCE_ALL || !r.allowEach(a) {
					return a, true
				}
			}
		}
	}
	return mesh.Action{}, false
}

// allowEach reports whether r grants every single verb of a.
func (r Rights) allowEach(a mesh.Action) bool {
	for _, a.Verb = range []v1.RuleVerb{v1.RuleVerb_VERB_GET, v1.RuleVerb_VERB_PUT, v1.RuleVerb_VERB_DELETE} {
		if !r.Allow(a) {
			return false
		}
	}
	return true
}
