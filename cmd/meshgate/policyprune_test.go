// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
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

// What the mesh would refuse is found before anything is done, upon what comes
// before it in the file.
func TestPolicyRefused_ByWhatTheFileDoes(t *testing.T) {
	const routes = "routes:\n- {name: low, node: web-1, destination_cidrs: [0.0.0.0/2]}\n- {name: middle, node: web-1, destination_cidrs: [64.0.0.0/2]}\n" +
		"- {name: high, node: web-1, destination_cidrs: [128.0.0.0/2]}"
	for name, tt := range map[string]struct {
		file  string
		prune bool
		want  string // "" when it is taken
	}{
		"all in its order": {
			"groups: [{name: new, subjects: [{type: user, name: bob}]}]\nroles: [{name: new, rules: [{verbs: [get], resources: [routes]}]}]\n" +
				"rolebindings: [{name: new, role: new, subjects: [{type: group, name: new}]}]\nnetworkacls: [{name: new, source_nodes: ['group:new']}]", true, "",
		},
		"half of everything, twice": {routes, false, "put route"},
		"a group that an ACL names": {"groups: []", true, `delete group "inner"`},
		"a role that is not there":  {"rolebindings: [{name: new, role: absent, subjects: [{type: user, name: bob}]}]", false, `there is no role "absent"`},
		"the admin's role":          {"roles: [{name: mesh-admin, rules: [{verbs: [get], resources: [routes]}]}]", false, `"mesh-admin" is part of the mesh itself`},
	} {
		file, err := parsePolicy([]byte(tt.file))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		live := livePolicyOf()
		live.Nodes = mesh.NodesOf(&mesh.Node{ID: "web-1"})
		live.Routes = nil
		live.ACLs = append(live.ACLs, mesh.ACL{Name: "no-inner", SourceNodes: []string{"group:inner"}})
		err = refusedBy(live, append(fileWishes(file), removals(policySteps(file, live, tt.prune))...))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
