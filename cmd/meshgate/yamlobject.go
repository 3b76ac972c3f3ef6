// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// object reads one object with readProto and makes a value of it.
func object[P proto.Message, V any](item *yaml.Node, p P, from func(P) (V, error)) (V, error) {
	var none V
	if err := readProto(item, p); err != nil {
		return none, err
	}
	return from(p)
}

// readProto reads one object in the JSON form of the API, whose enums may be
// written as words: "put", "accept", "user". lineOf has the line of its error.
func readProto(item *yaml.Node, m proto.Message) error {
	var value any
	if err := item.Decode(&value); err != nil {
		return err
	}
	raw, err := json.Marshal(withEnums("", value))
	if err != nil {
		return fmt.Errorf("a key is no text: %w", err)
	}
	if err = protojson.Unmarshal(raw, m); err == nil {
		return nil
	}
	line := item.Line
	var w lineWriter
	w.write("", item)
	if placed := protojson.Unmarshal(w.Bytes(), m.ProtoReflect().New().Interface()); placed != nil {
		err = placed
		if at := protojsonPlace.FindStringSubmatch(err.Error()); at != nil && at[1] != "" {
			line, _ = strconv.Atoi(at[1]) // the pattern has digits only
		}
	}
	return lineError{line, errors.New(protojsonPlace.ReplaceAllString(err.Error(), ""))}
}

// protojsonPlace is what protojson says of the place of an error, in JSON that
// nobody has seen.
var protojsonPlace = regexp.MustCompile(`^proto:[\s\x{a0}]*(?:\(line ([0-9]+):[0-9]+\):[\s\x{a0}]*)?`)

// lineError is an error that is about a line of a file.
type lineError struct {
	line int
	error
}

// lineOf is the line that err is about, or else that of the item that was read.
func lineOf(err error, item *yaml.Node) int {
	var at lineError
	if errors.As(err, &at) {
		return at.line
	}
	return item.Line
}

// lineWriter writes YAML as JSON in which everything stands on the line that it
// has in the YAML, so that what is said of one is true of the other. The YAML
// was decoded before, which bounds how often its aliases are followed.
type lineWriter struct {
	bytes.Buffer
	lines int // written so far
}

func (w *lineWriter) write(key string, n *yaml.Node) {
	n = resolve(n)
	for w.lines+1 < n.Line {
		w.WriteByte('\n')
		w.lines++
	}
	switch n.Kind {
	case yaml.MappingNode:
		w.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				w.WriteByte(',')
			}
			name := resolve(n.Content[i])
			w.write("", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: name.Value, Line: name.Line})
			w.WriteByte(':')
			w.write(name.Value, n.Content[i+1])
		}
		w.WriteByte('}')
	case yaml.SequenceNode:
		w.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				w.WriteByte(',')
			}
			w.write(key, item)
		}
		w.WriteByte(']')
	default:
		var value any
		_ = n.Decode(&value) // it was decoded before
		raw, _ := json.Marshal(withEnums(key, value))
		w.Write(raw)
	}
}

// withEnums spells the enums in an object as the API does.
func withEnums(key string, value any) any {
	switch v := value.(type) {
	case map[string]any:
		if key == "attributes" { // their names and values are free
			break
		}
		for k, inner := range v {
			v[k] = withEnums(k, inner)
		}
	case []any:
		for i, inner := range v {
			v[i] = withEnums(key, inner)
		}
	case string:
		switch key {
		case "verbs":
			return enumName(v, "VERB_", v1.RuleVerb_value)
		case "resources":
			return enumName(v, "RESOURCE_", v1.RuleResource_value)
		case "type":
			return enumName(v, "SUBJECT_", v1.SubjectType_value)
		case "action":
			return enumName(v, "ACTION_", v1.ACLAction_value)
		}
	}
	return value
}

// enumName returns the name that a word means: "put" is VERB_PUT, "network-acls"
// or "networkacls" is RESOURCE_NETWORK_ACLS, "*" is the one for all. Other words
// come back as they are.
func enumName(word, prefix string, names map[string]int32) string {
	if word == mesh.Everyone {
		return prefix + "ALL"
	}
	plain := func(s string) string { return strings.NewReplacer("_", "", "-", "").Replace(strings.ToUpper(s)) }
	for name := range names {
		if w := plain(word); w == plain(name) || w == plain(strings.TrimPrefix(name, prefix)) {
			return name
		}
	}
	return word
}

// resolve follows aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}
