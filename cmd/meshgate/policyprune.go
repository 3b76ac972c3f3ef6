// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// What policy put does to an object.
const (
	stepCreate  = "create"
	stepReplace = "replace"
	stepRemove  = "remove"
)

// policyStep is one thing that policy put does.
type policyStep struct {
	Action string `json:"action"`
	Kind   string `json:"kind"`
	Name   string `json:"name"`
}

// policySteps are what it takes to make live what the file says, in order: what is
// named is put before what names it, and removed after it. Only kinds of which the
// file has a list are pruned, so that a file of ACLs costs no role.
func policySteps(file policyFile, live *mesh.Snapshot, prune bool) []policyStep {
	var steps []policyStep
	want, have := putKinds(file), policyKinds(live)
	for i, k := range want {
		there := byName(have[i].objects)
		for _, m := range membersFirst(k.objects) {
			switch old, ok := there[objectName(m)]; {
			case !ok:
				steps = append(steps, policyStep{stepCreate, k.key, objectName(m)})
			case !proto.Equal(old, m):
				steps = append(steps, policyStep{stepReplace, k.key, objectName(m)})
			}
		}
	}
	for i, k := range slices.Backward(have) {
		if !prune || !file.lists[k.key] {
			continue
		}
		keep := byName(want[i].objects)
		for _, m := range removable(k) {
			if _, ok := keep[objectName(m)]; !ok {
				steps = append(steps, policyStep{stepRemove, k.key, objectName(m)})
			}
		}
	}
	return steps
}

func byName(objects []proto.Message) map[string]proto.Message {
	names := make(map[string]proto.Message, len(objects))
	for _, m := range objects {
		names[objectName(m)] = m
	}
	return names
}

// removable are the objects of a kind that may be pruned, in the order in which
// they are. What the mesh was made with is not, since without it members lose the
// gateways and people the mesh, nor what nodes said of themselves when they
// joined. ACLs that accept go before those that deny, so that nothing is open in
// between; groups that hold others before these.
func removable(k policyKind) []proto.Message {
	list := slices.DeleteFunc(slices.Clone(k.objects), builtIn)
	if k.key == "groups" {
		list = membersFirst(list)
		slices.Reverse(list)
	}
	slices.SortStableFunc(list, func(a, b proto.Message) int { return denies(a) - denies(b) })
	return list
}

func denies(m proto.Message) int {
	if a, ok := m.(*v1.NetworkACL); ok && a.GetAction() != v1.ACLAction_ACTION_ACCEPT {
		return 1
	}
	return 0
}

// builtIn reports whether the mesh, or a node, made an object by itself.
func builtIn(m proto.Message) bool {
	switch m := m.(type) {
	case *v1.Role:
		return m.GetName() == registry.RoleAdmin || m.GetName() == registry.RoleVoters
	case *v1.RoleBinding:
		return m.GetName() == registry.BindingAdmin || m.GetName() == registry.BindingVoters
	case *v1.Group:
		return m.GetName() == registry.GroupVoters
	case *v1.NetworkACL:
		return slices.Contains([]string{registry.ACLBootstrapNodes, registry.ACLGateways, registry.ACLDefaultAccept}, m.GetName())
	case *v1.Route:
		return m.GetName() == registry.AutoRoute(mesh.NodeID(m.GetNode()))
	}
	return false
}

// removals are the objects of which steps say that they go.
func removals(steps []policyStep) []wish {
	var out []wish
	for _, s := range steps {
		if s.Action == stepRemove {
			out = append(out, wish{kind: s.Kind, object: nameOnly(s.Kind, s.Name), gone: true})
		}
	}
	return out
}

// nameOnly is an object of a kind of a policy file, of which only the name is set.
func nameOnly(kind, name string) proto.Message {
	switch kind {
	case "groups":
		return &v1.Group{Name: name}
	case "roles":
		return &v1.Role{Name: name}
	case "rolebindings":
		return &v1.RoleBinding{Name: name}
	case "networkacls":
		return &v1.NetworkACL{Name: name}
	default:
		return &v1.Route{Name: name}
	}
}

// printSteps says what would be done.
func (a *app) printSteps(steps []policyStep) error {
	if a.structured() {
		return a.print(append([]policyStep{}, steps...))
	}
	if len(steps) == 0 {
		fmt.Fprintln(a.stderr, "nothing would change")
		return nil
	}
	rows := [][]string{{"WOULD", "KIND", "NAME"}}
	for _, s := range steps {
		rows = append(rows, []string{s.Action, s.Kind, s.Name})
	}
	return table(a.stdout, rows)
}
