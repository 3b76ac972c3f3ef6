// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestCheckGain(t *testing.T) {
	get := v1.RuleVerb_VERB_GET
	del := v1.RuleVerb_VERB_DELETE
	routes, bindings := v1.RuleResource_RESOURCE_ROUTES, v1.RuleResource_RESOURCE_ROLE_BINDINGS
	s := bootstrapped()
	s.Roles = append(s.Roles,
		mesh.Role{Name: "lead", Rules: []mesh.Rule{
			named(rule(bindings, put), "team"), rule(routes, get), rule(routes, put), rule(routes, del), named(rule(routes, put), "r1", "r2"),
		}},
		mesh.Role{Name: "each", Rules: []mesh.Rule{rule(anything, get), rule(anything, put), rule(anything, del)}},
		mesh.Role{Name: "reader", Rules: []mesh.Rule{rule(routes, get)}},
		mesh.Role{Name: "router", Rules: []mesh.Rule{rule(routes, anyVerb)}},
		mesh.Role{Name: "free", Rules: []mesh.Rule{rule(routes, get)}},
	)
	s.Groups = append(s.Groups,
		mesh.Group{Name: "team", Subjects: []mesh.Subject{user("ann")}},
		mesh.Group{Name: "masters", Subjects: []mesh.Subject{user("root"), group("inner")}},
		mesh.Group{Name: "inner"},
		mesh.Group{Name: "free"},
	)
	s.Bindings = append(s.Bindings,
		mesh.RoleBinding{Name: "lead", Role: "lead", Subjects: []mesh.Subject{user("bob")}},
		mesh.RoleBinding{Name: "each", Role: "each", Subjects: []mesh.Subject{user("carl")}},
		mesh.RoleBinding{Name: "masters", Role: policy.RoleAdmin, Subjects: []mesh.Subject{group("masters")}},
		mesh.RoleBinding{Name: "readers", Role: "reader", Subjects: []mesh.Subject{group("team")}},
	)
	bind := func(role string, subjects ...mesh.Subject) policy.Change {
		return policy.PutRoleBinding(mesh.RoleBinding{Name: "team", Role: role, Subjects: subjects})
	}
	for _, tt := range []struct {
		name   string
		change policy.Change
		want   string // "": allowed
	}{
		{"a role that he has", bind("lead", user("ann")), ""},
		{"a role with rights that he has", bind("reader", group("team")), ""},
		{"all verbs, each of which he has", bind("router", user("ann")), ""},
		{"a role that is not there", bind("absent", user("ann")), ""},
		{"himself to everything", bind(policy.RoleAdmin, user("bob")), `by role binding "team" it would give VERB_ALL on RESOURCE_ALL`},
		{"nobody to everything", bind(policy.RoleAdmin, group("free")), "RESOURCE_ALL"}, // until somebody is in the group
		{"a seat", bind(policy.RoleVoters, user("bob")), "VERB_PUT on RESOURCE_VOTES"},
		{"himself into a group of masters", policy.PutGroup(mesh.Group{Name: "masters", Subjects: []mesh.Subject{user("root"), user("bob")}}), `by role binding "masters"`},
		{"himself into a group of these", policy.PutGroup(mesh.Group{Name: "inner", Subjects: []mesh.Subject{user("bob")}}), "RESOURCE_ALL"},
		{"everybody into a group of masters", policy.PutGroup(mesh.Group{Name: "inner", Subjects: []mesh.Subject{user("*")}}), "RESOURCE_ALL"},
		{"somebody into the voters", policy.PutGroup(mesh.Group{Name: policy.GroupVoters, Subjects: []mesh.Subject{node("root"), node("gw"), user("bob")}}), "RESOURCE_VOTES"},
		{"somebody out of a group of masters", policy.PutGroup(mesh.Group{Name: "masters", Subjects: []mesh.Subject{user("root")}}), ""},
		{"a group that nothing is bound to", policy.PutGroup(mesh.Group{Name: "free", Subjects: []mesh.Subject{user("bob")}}), ""},
		{"a group of a role that he has", policy.PutGroup(mesh.Group{Name: "team", Subjects: []mesh.Subject{user("ann"), user("zoe")}}), ""},
		{"a role with less", policy.PutRole(mesh.Role{Name: "lead", Rules: []mesh.Rule{rule(routes, get)}}), ""},
		{"a role with more", policy.PutRole(mesh.Role{Name: "reader", Rules: []mesh.Rule{rule(routes, get), rule(votes, put)}}), `by role binding "readers"`},
		{"a role with names that he has", policy.PutRole(mesh.Role{Name: "reader", Rules: []mesh.Rule{named(rule(routes, put), "r2")}}), ""},
		{"a role with other names", policy.PutRole(mesh.Role{Name: "reader", Rules: []mesh.Rule{named(rule(routes, put), "r2", "r3")}}), `RESOURCE_ROUTES "r3"`},
		{"names that restrict nothing", policy.PutRole(mesh.Role{Name: "reader", Rules: []mesh.Rule{named(rule(anything, get), "r1")}}), "VERB_GET on RESOURCE_ALL"},
		{"everything by three verbs", policy.PutRole(mesh.Role{Name: "each", Rules: []mesh.Rule{rule(anything, anyVerb)}}), "VERB_ALL on RESOURCE_ALL"},
		{"a role that nobody has", policy.PutRole(mesh.Role{Name: "free", Rules: []mesh.Rule{rule(anything, anyVerb)}}), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := policy.CheckGain(s, policy.Changed(s, tt.change), "bob")
			if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, mesh.ErrDenied) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err := policy.CheckGain(s, policy.Changed(s, tt.change), "root"); err != nil {
				t.Errorf("of who may do everything: %v", err)
			}
			off := *s
			off.RBACDisabled = true
			if err := policy.CheckGain(&off, policy.Changed(&off, tt.change), "bob"); err != nil {
				t.Errorf("without RBAC: %v", err)
			}
		})
	}
}

// named restricts a rule.
func named(r mesh.Rule, names ...string) mesh.Rule {
	r.Names = names
	return r
}

// Whatever is put by whoever: nobody may do afterwards what neither they nor who
// put it might do before.
func TestCheckGain_NobodyGetsWhatTheGiverLacks(t *testing.T) {
	subjects := []string{"ann", "bob", "zoe", "*"}
	resources := []v1.RuleResource{v1.RuleResource_RESOURCE_ALL, v1.RuleResource_RESOURCE_ROUTES, v1.RuleResource_RESOURCE_VOTES}
	verbs := []v1.RuleVerb{v1.RuleVerb_VERB_ALL, v1.RuleVerb_VERB_PUT, v1.RuleVerb_VERB_GET, v1.RuleVerb_VERB_DELETE}
	names := []string{"", "x", "y"}
	var actions []mesh.Action
	for _, resource := range resources {
		for _, verb := range verbs {
			for _, name := range names {
				actions = append(actions, mesh.Action{Resource: resource, Verb: verb, Name: name})
			}
		}
	}
	some := func(t *rapid.T, prefix string) string {
		return rapid.SampledFrom([]string{prefix + "1", prefix + "2"}).Draw(t, prefix)
	}
	subject := rapid.Custom(func(t *rapid.T) mesh.Subject {
		if rapid.Bool().Draw(t, "group") {
			return group(some(t, "g"))
		}
		return user(rapid.SampledFrom(subjects).Draw(t, "subject"))
	})
	aRule := rapid.Custom(func(t *rapid.T) mesh.Rule {
		return mesh.Rule{
			Resources: rapid.SliceOfN(rapid.SampledFrom(resources), 1, 2).Draw(t, "resources"),
			Verbs:     rapid.SliceOfN(rapid.SampledFrom(verbs), 1, 2).Draw(t, "verbs"),
			Names:     rapid.SliceOfN(rapid.SampledFrom(names[1:]), 0, 2).Draw(t, "names"),
		}
	})
	aRole := func(t *rapid.T, name string) mesh.Role {
		return mesh.Role{Name: name, Rules: rapid.SliceOfN(aRule, 1, 3).Draw(t, "rules")}
	}
	aGroup := func(t *rapid.T, name string) mesh.Group {
		return mesh.Group{Name: name, Subjects: rapid.SliceOfN(subject, 0, 2).Draw(t, "members")}
	}
	aBinding := func(t *rapid.T, name string) mesh.RoleBinding {
		return mesh.RoleBinding{Name: name, Role: some(t, "r"), Subjects: rapid.SliceOfN(subject, 0, 2).Draw(t, "subjects")}
	}
	rapid.Check(t, func(t *rapid.T) {
		before := &mesh.Snapshot{
			Roles: []mesh.Role{aRole(t, "r1"), aRole(t, "r2")}, Groups: []mesh.Group{aGroup(t, "g1"), aGroup(t, "g2")},
			Bindings: []mesh.RoleBinding{aBinding(t, "b1"), aBinding(t, "b2")},
		}
		after := *before
		var change policy.Change
		switch rapid.IntRange(0, 2).Draw(t, "kind") {
		case 0:
			r := aRole(t, some(t, "r"))
			change, after.Roles = policy.PutRole(r), put1(before.Roles, r, func(x mesh.Role) bool { return x.Name == r.Name })
		case 1:
			g := aGroup(t, some(t, "g"))
			change, after.Groups = policy.PutGroup(g), put1(before.Groups, g, func(x mesh.Group) bool { return x.Name == g.Name })
		default:
			b := aBinding(t, some(t, "b"))
			change, after.Bindings = policy.PutRoleBinding(b), put1(before.Bindings, b, func(x mesh.RoleBinding) bool { return x.Name == b.Name })
		}
		giver := rapid.SampledFrom(subjects[:3]).Draw(t, "giver")
		if policy.CheckGain(before, policy.Changed(before, change), giver) != nil {
			return
		}
		for _, a := range actions {
			for _, who := range subjects[:3] {
				if policy.Allowed(&after, who, a) && !policy.Allowed(before, who, a) && !policy.Allowed(before, giver, a) && !eachVerb(before, giver, a) {
					t.Fatalf("%s made %s able to %v", giver, who, a)
				}
			}
		}
	})
}

// put1 is list with v in place of what is of its name.
func put1[T any](list []T, v T, same func(T) bool) []T {
	list = slices.Clone(list)
	list[slices.IndexFunc(list, same)] = v
	return list
}

// eachVerb reports whether who may do a, which is of all verbs, with every verb.
func eachVerb(s *mesh.Snapshot, who string, a mesh.Action) bool {
	if a.Verb != v1.RuleVerb_VERB_ALL || a.Resource == v1.RuleResource_RESOURCE_ALL {
		return false
	}
	return !slices.ContainsFunc([]v1.RuleVerb{v1.RuleVerb_VERB_GET, v1.RuleVerb_VERB_PUT, v1.RuleVerb_VERB_DELETE}, func(verb v1.RuleVerb) bool {
		return !policy.Allowed(s, who, mesh.Action{Resource: a.Resource, Name: a.Name, Verb: verb})
	})
}
