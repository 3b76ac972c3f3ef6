// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"connectrpc.com/connect"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// readFile reads the file at path, "-" for standard input, of maxPolicyFile bytes
// at most.
func readFile(path string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usageError{err}
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxPolicyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(raw) > maxPolicyFile {
		return nil, usagef("%s is larger than %d bytes", path, maxPolicyFile)
	}
	return raw, nil
}

// parseObjects reads objects of one kind from YAML or JSON: one in the JSON form
// of the API, a list of them as get prints it, or those of a policy file. Each is
// of the type of like.
func parseObjects(raw []byte, kind string, like proto.Message) ([]proto.Message, error) {
	var document yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it is empty")
		}
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one document; put them one by one, or as a list")
	}
	if len(document.Content) == 0 {
		return nil, errors.New("it is empty")
	}
	root := resolve(document.Content[0])
	key, list := listOf(root, kind)
	if list == nil {
		m := like.ProtoReflect().New().Interface()
		if err := readProto(root, m); err != nil {
			return nil, fmt.Errorf("line %d: no %s: %w", lineOf(err, root), like.ProtoReflect().Descriptor().Name(), err)
		}
		return []proto.Message{m}, nil
	}
	var objects []proto.Message
	err := each(key, list, func(item *yaml.Node) error {
		m := like.ProtoReflect().New().Interface()
		objects = append(objects, m)
		return readProto(item, m)
	})
	if err == nil && len(objects) == 0 {
		err = fmt.Errorf("it holds no %s", kind)
	}
	return objects, err
}

// listOf is the list that a document is or holds, under the key of get or of a
// policy file; nil when the document is an object.
func listOf(root *yaml.Node, kind string) (key string, list *yaml.Node) {
	if root.Kind == yaml.SequenceNode {
		return kind, root
	}
	for i := 0; i+1 < len(root.Content) && root.Kind == yaml.MappingNode; i += 2 {
		if key := root.Content[i].Value; key == "items" || key == kind {
			return key, resolve(root.Content[i+1])
		}
	}
	return "", nil
}

// putObject creates or replaces an object.
func putObject(ctx context.Context, c calls, m proto.Message) error {
	switch m := m.(type) {
	case *v1.Role:
		return none(c.Admin().PutRole(ctx, connect.NewRequest(m)))
	case *v1.RoleBinding:
		return none(c.Admin().PutRoleBinding(ctx, connect.NewRequest(m)))
	case *v1.Group:
		return none(c.Admin().PutGroup(ctx, connect.NewRequest(m)))
	case *v1.NetworkACL:
		return none(c.Admin().PutNetworkACL(ctx, connect.NewRequest(m)))
	case *v1.Route:
		return none(c.Admin().PutRoute(ctx, connect.NewRequest(m)))
	case *v1.MeshEdge:
		return none(c.Admin().PutEdge(ctx, connect.NewRequest(m)))
	}
	return fmt.Errorf("%T is not put", m)
}

// removeObject removes the object of that name; that there is none is no error.
func removeObject(ctx context.Context, c calls, m proto.Message) error {
	switch m := m.(type) {
	case *v1.Role:
		return none(c.Admin().DeleteRole(ctx, connect.NewRequest(m)))
	case *v1.RoleBinding:
		return none(c.Admin().DeleteRoleBinding(ctx, connect.NewRequest(m)))
	case *v1.Group:
		return none(c.Admin().DeleteGroup(ctx, connect.NewRequest(m)))
	case *v1.NetworkACL:
		return none(c.Admin().DeleteNetworkACL(ctx, connect.NewRequest(m)))
	case *v1.Route:
		return none(c.Admin().DeleteRoute(ctx, connect.NewRequest(m)))
	}
	return fmt.Errorf("%T is not removed", m)
}

// objectName names an object: an edge by its ends.
func objectName(m proto.Message) string {
	switch m := m.(type) {
	case *v1.MeshEdge:
		return target{from: m.GetSource(), to: m.GetTarget()}.String()
	case interface{ GetName() string }:
		return m.GetName()
	}
	return ""
}

// membersFirst orders groups so that those that others hold come before them,
// because a group has to be there to be named; the rest stays as it is.
func membersFirst(objects []proto.Message) []proto.Message {
	byName := make(map[string]proto.Message)
	for _, m := range objects {
		if g, ok := m.(*v1.Group); ok {
			byName[g.GetName()] = g
		}
	}
	if len(byName) == 0 {
		return objects
	}
	ordered := make([]proto.Message, 0, len(objects))
	seen := make(map[proto.Message]bool)
	var add func(m proto.Message)
	add = func(m proto.Message) {
		if m == nil || seen[m] {
			return
		}
		seen[m] = true
		g, _ := m.(*v1.Group)
		for _, s := range g.GetSubjects() {
			if s.GetType() == v1.SubjectType_SUBJECT_GROUP {
				add(byName[s.GetName()])
			}
		}
		ordered = append(ordered, m)
	}
	for _, m := range slices.Clone(objects) {
		add(m)
	}
	return ordered
}
