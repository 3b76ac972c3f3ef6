// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// bootstrapped is a mesh as it is made, with the admin called root.
func bootstrapped() *mesh.Snapshot {
	return &mesh.Snapshot{
		Roles: []mesh.Role{
			{Name: policy.RoleAdmin, Rules: []mesh.Rule{rule(anything, anyVerb)}},
			{Name: policy.RoleVoters, Rules: []mesh.Rule{rule(votes, put)}},
		},
		Bindings: []mesh.RoleBinding{
			{Name: policy.BindingVoters, Role: policy.RoleVoters, Subjects: []mesh.Subject{group(policy.GroupVoters)}},
			{Name: policy.BindingAdmin, Role: policy.RoleAdmin, Subjects: []mesh.Subject{node("root"), user("root")}},
		},
		Groups: []mesh.Group{{Name: policy.GroupVoters, Subjects: []mesh.Subject{node("root"), node("gw")}}},
	}
}

// clustered is a mesh of the gateways gw and gw2, of which gw2 is a voter through
// a group, and of a node that was named among the voters.
func clustered() *mesh.Snapshot {
	s := bootstrapped()
	s.Groups[0].Subjects = []mesh.Subject{node("root"), node("gw"), node("nas"), group("more")}
	s.Groups = append(s.Groups, mesh.Group{Name: "more", Subjects: []mesh.Subject{node("gw2")}})
	s.Nodes = mesh.NodesOf(
		&mesh.Node{ID: "gw", Features: []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP}}},
		&mesh.Node{ID: "gw2", Features: []mesh.Feature{{Kind: v1.Feature_STORAGE_PROVIDER}}},
		&mesh.Node{ID: "nas"},
	)
	return s
}

// byGroup is a mesh without system objects, whose only master is in a group of a group.
func byGroup() *mesh.Snapshot {
	return &mesh.Snapshot{
		Roles:    []mesh.Role{{Name: "all", Rules: []mesh.Rule{rule(anything, anyVerb)}}},
		Bindings: []mesh.RoleBinding{{Name: "all", Role: "all", Subjects: []mesh.Subject{group("outer")}}},
		Groups: []mesh.Group{
			{Name: "inner", Subjects: []mesh.Subject{user("alice")}},
			{Name: "outer", Subjects: []mesh.Subject{group("inner")}},
		},
	}
}

func TestCheckChange(t *testing.T) {
	const system, locked = "part of the mesh itself", "nobody would have full rights"
	off := byGroup()
	off.Bindings, off.RBACDisabled = nil, true
	lost := byGroup()
	lost.Bindings = nil
	cases := []struct {
		name   string
		s      *mesh.Snapshot
		change policy.Change
		refuse string
	}{
		{"nothing", bootstrapped(), policy.Change{}, ""},
		{"another role", bootstrapped(), policy.PutRole(mesh.Role{Name: "dev"}), ""},
		{"weaken the admin role", bootstrapped(), policy.PutRole(mesh.Role{Name: policy.RoleAdmin}), system},
		{"the admin role as it is", bootstrapped(), policy.PutRole(bootstrapped().Roles[0]), ""},
		{"delete the admin role", bootstrapped(), policy.DeleteRole(policy.RoleAdmin), system},
		{"widen the voters role", bootstrapped(), policy.PutRole(mesh.Role{Name: policy.RoleVoters, Rules: []mesh.Rule{rule(anything, anyVerb)}}), system},
		{"delete the voters role", bootstrapped(), policy.DeleteRole(policy.RoleVoters), system},
		{"delete another role", bootstrapped(), policy.DeleteRole("dev"), ""},
		{"rebind the admin", bootstrapped(), policy.PutRoleBinding(mesh.RoleBinding{Name: policy.BindingAdmin, Role: policy.RoleAdmin, Subjects: []mesh.Subject{user("eve")}}), system},
		{"the admin binding as it is", bootstrapped(), policy.PutRoleBinding(bootstrapped().Bindings[1]), ""},
		{"delete the admin binding", bootstrapped(), policy.DeleteRoleBinding(policy.BindingAdmin), system},
		{"delete the voters binding", bootstrapped(), policy.DeleteRoleBinding(policy.BindingVoters), system},
		{"rebind the voters", bootstrapped(), policy.PutRoleBinding(mesh.RoleBinding{Name: policy.BindingVoters, Role: policy.RoleAdmin}), system},
		{"another binding", bootstrapped(), policy.PutRoleBinding(mesh.RoleBinding{Name: "dev", Role: policy.RoleAdmin, Subjects: []mesh.Subject{user("a")}}), ""},
		{"delete the voters", bootstrapped(), policy.DeleteGroup(policy.GroupVoters), system},
		{"edit the voters", bootstrapped(), policy.PutGroup(mesh.Group{Name: policy.GroupVoters, Subjects: []mesh.Subject{node("gw2")}}), ""},
		{"empty the voters", bootstrapped(), policy.PutGroup(mesh.Group{Name: policy.GroupVoters}), "needs a member"},
		{"voters without two gateways", clustered(), policy.PutGroup(mesh.Group{Name: policy.GroupVoters, Subjects: []mesh.Subject{node("gw5")}}), "gw, gw2 would drop out"},
		{"voters without a gateway", clustered(), policy.PutGroup(mesh.Group{Name: policy.GroupVoters, Subjects: []mesh.Subject{node("gw2"), node("gw5")}}), "gw would drop out"},
		{"voters without a gateway's group", clustered(), policy.DeleteGroup("more"), "gw2 would drop out"},
		{"a gateway's group without it", clustered(), policy.PutGroup(mesh.Group{Name: "more", Subjects: []mesh.Subject{node("gw5")}}), "cluster remove"},
		{"voters with one more", clustered(), policy.PutGroup(mesh.Group{Name: policy.GroupVoters, Subjects: []mesh.Subject{node("gw"), group("more"), node("gw5")}}), ""},
		{"everyone votes", clustered(), policy.PutGroup(mesh.Group{Name: policy.GroupVoters, Subjects: []mesh.Subject{all("*")}}), "everybody would be in the group voters"},
		{"everyone votes by a group", clustered(), policy.PutGroup(mesh.Group{Name: "more", Subjects: []mesh.Subject{node("gw2"), all("*")}}), "everybody would be in the group voters"},
		{"empty another group", bootstrapped(), policy.PutGroup(mesh.Group{Name: "dev"}), ""},
		{"RBAC off", bootstrapped(), policy.SwitchRBAC(false), ""},
		{"RBAC on with an admin", bootstrapped(), policy.SwitchRBAC(true), ""},
		{"RBAC on without one", off, policy.SwitchRBAC(true), locked},
		{"the last master's role", byGroup(), policy.DeleteRole("all"), locked},
		{"the last master's role, weakened", byGroup(), policy.PutRole(mesh.Role{Name: "all", Rules: []mesh.Rule{rule(anything, put)}}), locked},
		{"the last master's binding", byGroup(), policy.DeleteRoleBinding("all"), locked},
		{"the last master's group", byGroup(), policy.DeleteGroup("inner"), locked},
		{"the last master leaves the group", byGroup(), policy.PutGroup(mesh.Group{Name: "inner", Subjects: []mesh.Subject{group("outer")}}), locked},
		{"a master follows", byGroup(), policy.PutGroup(mesh.Group{Name: "inner", Subjects: []mesh.Subject{user("bob")}}), ""},
		{"what is lost cannot be lost again", lost, policy.DeleteRole("all"), ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := *c.s
			err := policy.CheckChange(c.s, c.change)
			switch {
			case c.refuse == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.refuse != "" && (!errors.Is(err, mesh.ErrPrecondition) || !strings.Contains(err.Error(), c.refuse)):
				t.Errorf("error = %v, want one that says %q", err, c.refuse)
			}
			if len(before.Roles) != len(c.s.Roles) || len(before.Groups) != len(c.s.Groups) {
				t.Error("the snapshot was changed")
			}
		})
	}
}

// The names are written by the registry and kept here.
func TestSystemNames_AreThoseThatTheRegistryWrites(t *testing.T) {
	for _, names := range [][2]string{
		{policy.RoleAdmin, registry.RoleAdmin},
		{policy.RoleVoters, registry.RoleVoters},
		{policy.BindingAdmin, registry.BindingAdmin},
		{policy.BindingVoters, registry.BindingVoters},
		{policy.GroupVoters, registry.GroupVoters},
	} {
		if names[0] != names[1] {
			t.Errorf("%q here, %q in the registry", names[0], names[1])
		}
	}
}

// However a mesh is changed, as long as every change was checked somebody keeps
// full rights.
func TestCheckChange_NoSequenceLocksOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := byGroup()
		if rapid.Bool().Draw(t, "system") {
			s = bootstrapped()
		}
		rights := mesh.Action{Resource: anything, Verb: anyVerb}
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			if c := drawChange(t); policy.CheckChange(s, c) == nil {
				s = policy.Changed(s, c)
			}
			allowed := false
			for _, who := range []string{"alice", "bob", "root", "gw"} {
				allowed = allowed || policy.Allowed(s, who, rights)
			}
			if !allowed {
				t.Fatalf("nobody has full rights in %+v", s)
			}
		}
	})
}

func drawChange(t *rapid.T) policy.Change {
	name := rapid.SampledFrom([]string{"all", "inner", "outer", policy.RoleAdmin, policy.RoleVoters, policy.BindingVoters}).Draw(t, "name")
	subjects := rapid.SliceOfN(rapid.SampledFrom([]mesh.Subject{
		user("alice"), user("bob"), node("gw"), all("*"), group("inner"), group("outer"), group("missing"),
	}), 0, 2).Draw(t, "subjects")
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		verb := rapid.SampledFrom([]mesh.Rule{rule(anything, anyVerb), rule(edges, put)}).Draw(t, "rule")
		return policy.PutRole(mesh.Role{Name: name, Rules: []mesh.Rule{verb}})
	case 1:
		return policy.DeleteRole(name)
	case 2:
		return policy.PutRoleBinding(mesh.RoleBinding{Name: name, Role: rapid.SampledFrom([]string{"all", "mesh-admin"}).Draw(t, "role"), Subjects: subjects})
	case 3:
		return policy.DeleteRoleBinding(name)
	case 4:
		return policy.PutGroup(mesh.Group{Name: name, Subjects: subjects})
	case 5:
		return policy.DeleteGroup(name)
	default:
		return policy.SwitchRBAC(rapid.Bool().Draw(t, "on"))
	}
}
