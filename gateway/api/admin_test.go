// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestAdmin_ListsThatNameEveryoneCollapse(t *testing.T) {
	f := testFake(t)
	a := &adminService{state: f, objects: f}
	subjects := []*v1.Subject{{Name: "x", Type: v1.SubjectType_SUBJECT_USER}, {Name: "*", Type: v1.SubjectType_SUBJECT_ALL}}
	if _, err := a.PutGroup(t.Context(), connect.NewRequest(&v1.Group{Name: "g", Subjects: subjects})); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PutRoleBinding(t.Context(), connect.NewRequest(&v1.RoleBinding{Name: "b", Role: "r", Subjects: subjects})); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PutRole(t.Context(), connect.NewRequest(&v1.Role{Name: "r", Rules: []*v1.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_EDGES, v1.RuleResource_RESOURCE_ALL},
		Verbs:     []v1.RuleVerb{v1.RuleVerb_VERB_ALL, v1.RuleVerb_VERB_GET},
	}}})); err != nil {
		t.Fatal(err)
	}
	group, binding, rule := f.changes[0].Group, f.changes[1].Binding, f.changes[2].Role.Rules[0]
	for name, n := range map[string]int{
		"group": len(group.Subjects), "binding": len(binding.Subjects), "resources": len(rule.Resources), "verbs": len(rule.Verbs),
	} {
		if n != 1 {
			t.Errorf("%s: %d entries, want the one of everything", name, n)
		}
	}
	if group.Subjects[0].Name != "*" || rule.Resources[0] != v1.RuleResource_RESOURCE_ALL {
		t.Errorf("%v, %v", group, rule)
	}
}

// A node that follows a gateway knows a part of the mesh. It lists its nodes,
// as v1 nodes do, but does not answer for the registry.
func TestAdmin_OnANodeWithoutState(t *testing.T) {
	f := testFake(t)
	f.self = "phone"
	a := &adminService{state: f, objects: f}
	for name, err := range map[string]error{
		"get":      failed(a.GetRole(t.Context(), connect.NewRequest(&v1.Role{Name: "r"}))),
		"list":     failed(a.ListNetworkACLs(t.Context(), nil)),
		"get edge": failed(a.GetEdge(t.Context(), connect.NewRequest(&v1.MeshEdge{Source: "gw", Target: "phone"}))),
	} {
		if !errors.Is(err, mesh.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := &meshService{state: f}
	if res, err := m.ListNodes(t.Context(), connect.NewRequest(&emptypb.Empty{})); err != nil || len(res.Msg.GetNodes()) != 3 {
		t.Errorf("%v, %v", res, err)
	}
	f.snap = nil
	for name, err := range map[string]error{
		"list nodes": failed(m.ListNodes(t.Context(), nil)), "list": failed(a.ListRoles(t.Context(), nil)),
		"graph": failed(m.GetMeshGraph(t.Context(), nil)),
	} {
		if !errors.Is(err, mesh.ErrUnavailable) {
			t.Errorf("%s before the mesh: %v", name, err)
		}
	}
}

// A read is answered from the state that it was allowed by; without one it asks.
func TestCurrent(t *testing.T) {
	f := testFake(t)
	allowed := &mesh.Snapshot{Version: 2}
	if s, err := current(WithState(t.Context(), allowed), f); err != nil || s != allowed || f.syncs != 0 {
		t.Errorf("%v, %v after %d syncs", s, err, f.syncs)
	}
	if s, err := current(WithState(t.Context(), nil), f); err != nil || s != f.snap || f.syncs != 1 {
		t.Errorf("%v, %v after %d syncs", s, err, f.syncs)
	}
}

func failed[M any](_ *connect.Response[M], err error) error { return err }
