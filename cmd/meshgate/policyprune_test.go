// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// livePolicyOf is a mesh with what it was made with, and more of each kind.
func livePolicyOf() *mesh.Snapshot {
	group := func(name string, of ...string) mesh.Group {
		g := mesh.Group{Name: name, Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: "alice"}}}
		for _, inner := range of {
			g.Subjects = append(g.Subjects, mesh.Subject{Type: v1.SubjectType_SUBJECT_GROUP, Name: inner})
		}
		return g
	}
	lab := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
	return &mesh.Snapshot{
		Groups: []mesh.Group{group("a-outer", "inner"), group("inner"), group(registry.GroupVoters)},
		Roles:  []mesh.Role{{Name: registry.RoleAdmin}, {Name: "ops"}, {Name: registry.RoleVoters}},
		Bindings: []mesh.RoleBinding{
			{Name: registry.BindingVoters, Role: registry.RoleVoters}, {Name: registry.BindingAdmin, Role: registry.RoleAdmin}, {Name: "ops", Role: "ops"},
		},
		ACLs: []mesh.ACL{
			{Name: registry.ACLBootstrapNodes, Accept: true}, {Name: "no-ssh"}, {Name: "web", Accept: true},
			{Name: registry.ACLDefaultAccept, Accept: true}, {Name: registry.ACLGateways, Accept: true},
		},
		Routes: []mesh.Route{
			{Name: "lab", Node: "web-1", Destinations: lab}, {Name: registry.AutoRoute("web-1"), Node: "web-1", Destinations: lab},
			{Name: registry.AutoRoute("web-1") + "-auto", Node: "web-1", Destinations: lab},
		},
	}
}

func TestPolicySteps(t *testing.T) {
	removals := []policyStep{
		{stepRemove, "routes", "lab"}, {stepRemove, "routes", "web-1-auto-auto"},
		{stepRemove, "networkacls", "web"}, {stepRemove, "networkacls", "no-ssh"}, // what is denied is so until the end
		{stepRemove, "rolebindings", "ops"}, {stepRemove, "roles", "ops"},
		{stepRemove, "groups", "a-outer"}, {stepRemove, "groups", "inner"},
	}
	for name, tt := range map[string]struct {
		file  string
		prune bool
		want  []policyStep
	}{
		"nothing of it": {"tests: []\nnodes: []\nrbac: on", true, nil},
		"all empty":     {"groups: []\nroles: []\nrolebindings: []\nnetworkacls: []\nroutes: []", true, removals},
		"not pruned":    {"groups: []\nroles: []\nrolebindings: []\nnetworkacls: []\nroutes: []", false, nil},
		"one kind":      {"networkacls: []", true, removals[2:4]},
		"what is kept":  {"roles: [{name: ops}]\nrolebindings: [{name: ops, role: ops}]", true, nil},
		"all that one does": {
			"roles: [{name: ops, rules: [{verbs: [get], resources: [routes]}]}]\nnetworkacls: [{name: new, action: accept}]", true,
			[]policyStep{{stepReplace, "roles", "ops"}, {stepCreate, "networkacls", "new"}, removals[2], removals[3]},
		},
		"voters, who are no policy": {
			"groups: [{name: voters, subjects: [{type: node, name: gone}]}, {name: new, subjects: [{type: user, name: bob}]}]", false,
			[]policyStep{{stepCreate, "groups", "new"}},
		},
		"voters, for tests only":  {"voters: [{type: node, name: gone}]", true, nil},
		"names that are built in": {"roles: [{name: voters, rules: [{verbs: [get], resources: [routes]}]}]", false, []policyStep{{stepReplace, "roles", "voters"}}},
	} {
		file, err := parsePolicy([]byte(tt.file))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(tt.want, policySteps(file, livePolicyOf(), tt.prune)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
