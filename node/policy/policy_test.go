// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	channels = v1.RuleResource_RESOURCE_DATA_CHANNELS
	edges    = v1.RuleResource_RESOURCE_EDGES
	votes    = v1.RuleResource_RESOURCE_VOTES
	anything = v1.RuleResource_RESOURCE_ALL
	put      = v1.RuleVerb_VERB_PUT
	get      = v1.RuleVerb_VERB_GET
	anyVerb  = v1.RuleVerb_VERB_ALL
)

func node(name string) mesh.Subject {
	return mesh.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: name}
}

func user(name string) mesh.Subject {
	return mesh.Subject{Type: v1.SubjectType_SUBJECT_USER, Name: name}
}

func group(name string) mesh.Subject {
	return mesh.Subject{Type: v1.SubjectType_SUBJECT_GROUP, Name: name}
}

func all(name string) mesh.Subject {
	return mesh.Subject{Type: v1.SubjectType_SUBJECT_ALL, Name: name}
}

func rule(r v1.RuleResource, v v1.RuleVerb, names ...string) mesh.Rule {
	return mesh.Rule{Resources: []v1.RuleResource{r}, Verbs: []v1.RuleVerb{v}, Names: names}
}

// granted is a snapshot in which role holds rules, bound to subjects.
func granted(rules []mesh.Rule, subjects ...mesh.Subject) *mesh.Snapshot {
	return &mesh.Snapshot{
		Roles:    []mesh.Role{{Name: "other"}, {Name: "role", Rules: rules}},
		Bindings: []mesh.RoleBinding{{Name: "binding", Role: "role", Subjects: subjects}},
		Groups: []mesh.Group{
			{Name: "devs", Subjects: []mesh.Subject{user("alice"), group("staff")}},
			{Name: "everyone", Subjects: []mesh.Subject{all("*")}},
			{Name: "loop", Subjects: []mesh.Subject{group("loop"), group("pool"), node("looped")}},
			{Name: "pool", Subjects: []mesh.Subject{group("loop"), node("pooled")}},
			{Name: "staff", Subjects: []mesh.Subject{node("printer"), {Name: "nobody"}}},
		},
	}
}

func TestAllowed_MatchesSubjects(t *testing.T) {
	cases := []struct {
		name    string
		bound   mesh.Subject
		subject string
		want    bool
	}{
		{"node by name", node("alice"), "alice", true},
		{"user by name", user("alice"), "alice", true},
		{"all by name", all("alice"), "alice", true},
		{"another name", node("alice"), "alic", false},
		{"everyone", all("*"), "alice", true},
		{"every user", user("*"), "alice", true},
		{"nobody is not everyone", all("*"), "", false},
		{"unknown type", mesh.Subject{Name: "alice"}, "alice", false},
		{"undefined type", mesh.Subject{Name: "alice", Type: 7}, "alice", false},
		{"group member", group("devs"), "alice", true},
		{"member of a nested group", group("devs"), "printer", true},
		{"member of unknown type", group("devs"), "nobody", false},
		{"name of the group", group("devs"), "devs", false},
		{"not a member", group("staff"), "alice", false},
		{"group of everyone", group("everyone"), "zoe", true},
		{"missing group", group("missing"), "alice", false},
		{"no group is everyone", group("*"), "alice", false},
		{"all does not name groups", all("devs"), "alice", false},
		{"groups in a cycle", group("loop"), "pooled", true},
		{"groups in a cycle, other end", group("pool"), "looped", true},
		{"groups in a cycle, no member", group("pool"), "alice", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := granted([]mesh.Rule{rule(anything, anyVerb)}, node("unrelated"), c.bound)
			if got := allowed(t, s, c.subject, mesh.Action{Resource: edges, Verb: put}); got != c.want {
				t.Errorf("Allowed = %v", got)
			}
		})
	}
}

// allowed is Allowed, which is what Rights say, too.
func allowed(t *testing.T, s *mesh.Snapshot, subject string, a mesh.Action) bool {
	t.Helper()
	is := policy.Allowed(s, subject, a)
	if rights := policy.RightsOf(s, subject).Allow(a); rights != is {
		t.Errorf("Rights say %v, Allowed %v", rights, is)
	}
	return is
}

func TestAllowed_MatchesRules(t *testing.T) {
	cases := []struct {
		name   string
		rule   mesh.Rule
		action mesh.Action
		want   bool
	}{
		{"exact", rule(channels, put, "a"), mesh.Action{Resource: channels, Verb: put, Name: "a"}, true},
		{"other name", rule(channels, put, "a", "b"), mesh.Action{Resource: channels, Verb: put, Name: "c"}, false},
		{"one of the names", rule(channels, put, "a", "b"), mesh.Action{Resource: channels, Verb: put, Name: "b"}, true},
		{"other verb", rule(channels, put, "a"), mesh.Action{Resource: channels, Verb: get, Name: "a"}, false},
		{"any verb", rule(channels, anyVerb, "a"), mesh.Action{Resource: channels, Verb: get, Name: "a"}, true},
		{"other resource", rule(edges, put, "a"), mesh.Action{Resource: channels, Verb: put, Name: "a"}, false},
		{"no names do not mean all", rule(channels, put), mesh.Action{Resource: channels, Verb: put, Name: "a"}, false},
		{"no wildcard in names", rule(channels, put, "*"), mesh.Action{Resource: channels, Verb: put, Name: "a"}, false},
		{"action without a name", rule(votes, put), mesh.Action{Resource: votes, Verb: put}, true},
		{"action without a name, rule with", rule(votes, put, "a"), mesh.Action{Resource: votes, Verb: put}, false},
		{"action without a name, rule with an empty one", rule(votes, put, ""), mesh.Action{Resource: votes, Verb: put}, false},
		{"any resource ignores names", rule(anything, put, "a"), mesh.Action{Resource: channels, Verb: put, Name: "b"}, true},
		{"any resource, other verb", rule(anything, put), mesh.Action{Resource: channels, Verb: get}, false},
		{"any resource among others", mesh.Rule{
			Resources: []v1.RuleResource{edges, anything}, Verbs: []v1.RuleVerb{get, put},
		}, mesh.Action{Resource: channels, Verb: put, Name: "b"}, true},
		{"action on nothing", rule(anything, anyVerb), mesh.Action{Verb: put}, false},
		{"action that does nothing", rule(anything, anyVerb), mesh.Action{Resource: edges}, false},
		{"empty rule", mesh.Rule{}, mesh.Action{Resource: edges, Verb: put}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := granted([]mesh.Rule{{}, c.rule}, node("alice"))
			if got := allowed(t, s, "alice", c.action); got != c.want {
				t.Errorf("Allowed = %v", got)
			}
			if allowed(t, s, "bob", c.action) {
				t.Error("somebody else is allowed too")
			}
		})
	}
}

func TestAllowed_NothingWithoutRoles(t *testing.T) {
	action := mesh.Action{Resource: edges, Verb: get}
	if allowed(t, &mesh.Snapshot{}, "admin", action) {
		t.Error("an empty mesh allows something")
	}
	s := granted(nil, node("admin"))
	s.Bindings[0].Role = "missing"
	if allowed(t, s, "admin", action) {
		t.Error("a missing role allows something")
	}
	s.RBACDisabled = true
	if !allowed(t, s, "", mesh.Action{}) {
		t.Error("something is denied with RBAC switched off")
	}
}

func TestAllowedSome_TakesANameOrEverything(t *testing.T) {
	for name, tt := range map[string]struct {
		rule mesh.Rule
		want bool
	}{
		"one object":          {rule(channels, put, "web-1"), true},
		"no object":           {rule(channels, put), false},
		"an empty name":       {rule(channels, put, ""), false},
		"another verb":        {rule(channels, get, "web-1"), false},
		"any verb":            {rule(channels, anyVerb, "web-1"), true},
		"another resource":    {rule(edges, put, "web-1"), false},
		"everything":          {rule(anything, anyVerb), true},
		"everything by names": {rule(anything, put, "web-1"), true},
		"reading everything":  {rule(anything, get), false},
	} {
		s := granted([]mesh.Rule{rule(edges, get), tt.rule}, user("alice"))
		if got := policy.AllowedSome(s, "alice", channels, put); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
		if policy.AllowedSome(s, "bob", channels, put) || policy.AllowedSome(s, "", channels, put) {
			t.Errorf("%s: granted to somebody else", name)
		}
	}
	if !policy.AllowedSome(&mesh.Snapshot{RBACDisabled: true}, "bob", channels, put) {
		t.Error("roles are asked although RBAC is switched off")
	}
}
