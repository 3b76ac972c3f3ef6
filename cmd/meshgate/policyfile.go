// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// maxPolicyFile bounds what is read of a file, in bytes: a mesh of 10 000 nodes
// takes a tenth.
const maxPolicyFile = 64 << 20

// policyFile is what a policy file holds.
type policyFile struct {
	// snapshot is nil when the file has tests only.
	snapshot *mesh.Snapshot
	tests    []expectation
	// lists are the keys that the file has, of an empty list, too.
	lists map[string]bool
}

// policy is what the file holds of a policy, perhaps nothing.
func (f policyFile) policy() *mesh.Snapshot {
	if f.snapshot == nil {
		return &mesh.Snapshot{}
	}
	return f.snapshot
}

// readPolicyFile reads the file at path; "-" is standard input.
func readPolicyFile(path string, stdin io.Reader) (policyFile, error) {
	raw, err := readFile(path, stdin)
	if err != nil {
		return policyFile{}, err
	}
	file, err := parsePolicy(raw)
	if err != nil {
		return policyFile{}, usagef("%s: %w", path, err)
	}
	return file, nil
}

// parsePolicy reads YAML, of which JSON is a part: a list of tests, or lists of
// tests and of the objects of the API. Errors name line and field.
func parsePolicy(raw []byte) (policyFile, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return policyFile{}, err
	}
	if len(doc.Content) == 0 {
		return policyFile{}, errors.New("the file is empty")
	}
	var p policyParser
	root := resolve(doc.Content[0])
	if root.Kind == yaml.SequenceNode {
		err := p.list("tests", root)
		return p.file, err
	}
	if root.Kind != yaml.MappingNode {
		return policyFile{}, fmt.Errorf("line %d: want a list of tests, or the keys %s", root.Line, policyKeys)
	}
	seen := make(map[string]bool)
	p.file.lists = seen
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := resolve(root.Content[i]), resolve(root.Content[i+1])
		if seen[key.Value] {
			return policyFile{}, fmt.Errorf("line %d: key %s appears twice", key.Line, key.Value)
		}
		seen[key.Value] = true
		if err := p.list(key.Value, value); err != nil {
			return policyFile{}, err
		}
	}
	if p.file.snapshot != nil {
		if err := finish(p.file.snapshot); err != nil {
			return policyFile{}, err
		}
	}
	return p.file, nil
}

// policyKeys are what a file may hold, for messages.
const policyKeys = "nodes, voters, groups, roles, rolebindings, networkacls, routes, rbac, tests"

// policyParser collects a file.
type policyParser struct{ file policyFile }

// list reads the value of a key.
func (p *policyParser) list(key string, value *yaml.Node) error {
	if key == "tests" {
		return each(key, value, func(item *yaml.Node) error {
			e, err := parseExpectation(item)
			p.file.tests = append(p.file.tests, e)
			return err
		})
	}
	if p.file.snapshot == nil {
		p.file.snapshot = &mesh.Snapshot{}
	}
	s := p.file.snapshot
	switch key {
	case "rbac":
		if value.Value != "on" && value.Value != "off" {
			return fmt.Errorf("line %d: rbac: %q is neither on nor off", value.Line, value.Value)
		}
		s.RBACDisabled = value.Value == "off"
		return nil
	case "nodes":
		return each(key, value, func(item *yaml.Node) error {
			n, err := object(item, new(v1.MeshNode), mesh.NodeFromProto)
			if err != nil {
				return err
			}
			if s.Node(n.ID) != nil {
				return fmt.Errorf("id: %q appears twice", n.ID)
			}
			s.Nodes = s.Nodes.With(n)
			return nil
		})
	case "voters":
		g := mesh.Group{Name: registry.GroupVoters}
		if err := objects(key, value, &g.Subjects, func() *v1.Subject { return new(v1.Subject) }, subjectFromProto); err != nil {
			return err
		}
		s.Groups = append(s.Groups, g)
		return nil
	case "groups":
		return objects(key, value, &s.Groups, func() *v1.Group { return new(v1.Group) }, mesh.GroupFromProto)
	case "roles":
		return objects(key, value, &s.Roles, func() *v1.Role { return new(v1.Role) }, mesh.RoleFromProto)
	case "rolebindings":
		return objects(key, value, &s.Bindings, func() *v1.RoleBinding { return new(v1.RoleBinding) }, mesh.RoleBindingFromProto)
	case "networkacls":
		return objects(key, value, &s.ACLs, func() *v1.NetworkACL { return new(v1.NetworkACL) }, mesh.ACLFromProto)
	case "routes":
		return objects(key, value, &s.Routes, func() *v1.Route { return new(v1.Route) }, mesh.RouteFromProto)
	}
	return fmt.Errorf("line %d: unknown key %q; want %s", value.Line, key, policyKeys)
}

// subjectFromProto reads a member of a group.
func subjectFromProto(p *v1.Subject) (mesh.Subject, error) {
	g, err := mesh.GroupFromProto(&v1.Group{Name: registry.GroupVoters, Subjects: []*v1.Subject{p}})
	if err != nil {
		return mesh.Subject{}, err
	}
	return g.Subjects[0], nil
}

// each calls f for the items of a list, and says where an error is. A null is
// the empty list.
func each(key string, list *yaml.Node, f func(*yaml.Node) error) error {
	if list.Kind == yaml.ScalarNode && list.Tag == "!!null" {
		return nil
	}
	if list.Kind != yaml.SequenceNode {
		return fmt.Errorf("line %d: %s: want a list", list.Line, key)
	}
	for i, item := range list.Content {
		if err := f(resolve(item)); err != nil {
			return fmt.Errorf("line %d: %s[%d]: %w", lineOf(err, item), key, i, err)
		}
	}
	return nil
}

// objects reads a list of objects of the API into list.
func objects[P proto.Message, V any](key string, value *yaml.Node, list *[]V, empty func() P, from func(P) (V, error)) error {
	return each(key, value, func(item *yaml.Node) error {
		v, err := object(item, empty(), from)
		*list = append(*list, v)
		return err
	})
}

// finish puts the lists of s in the order of a snapshot. No name may stand
// twice.
func finish(s *mesh.Snapshot) error {
	slices.SortFunc(s.ACLs, mesh.CompareACLs)
	names := make(map[string]bool, len(s.ACLs))
	for _, a := range s.ACLs {
		if names[a.Name] {
			return fmt.Errorf("networkacls: name %q appears twice", a.Name)
		}
		names[a.Name] = true
	}
	return errors.Join(
		sorted("groups", s.Groups, func(g mesh.Group) string { return g.Name }),
		sorted("roles", s.Roles, func(r mesh.Role) string { return r.Name }),
		sorted("rolebindings", s.Bindings, func(b mesh.RoleBinding) string { return b.Name }),
		sorted("routes", s.Routes, func(r mesh.Route) string { return r.Name }),
	)
}

// sorted sorts list by name and refuses names that stand twice.
func sorted[V any](key string, list []V, name func(V) string) error {
	slices.SortFunc(list, func(a, b V) int { return cmp.Compare(name(a), name(b)) })
	for i := 1; i < len(list); i++ {
		if name(list[i-1]) == name(list[i]) {
			return fmt.Errorf("%s: name %q appears twice", key, name(list[i]))
		}
	}
	return nil
}
