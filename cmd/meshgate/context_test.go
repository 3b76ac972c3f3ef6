// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestContexts_BadFiles(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"no YAML":         {"contexts: [", "mend the file"},
		"unknown key":     {"contexts:\n  a: {server: https://x, tokn: y}\n", "tokn"},
		"no server":       {"contexts:\n  a: {token: y}\n", `context "a" has no server`},
		"bad name":        {"contexts:\n  a/b: {server: https://x}\n", "a/b"},
		"current is none": {"current: b\ncontexts:\n  a: {server: https://x}\n", `no context "b"`},
		"endless":         {strings.Repeat("#", maxContexts+1), "longer than"},
	} {
		path := filepath.Join(t.TempDir(), "contexts.yaml")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readContexts(path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What was written is read again as it was.
func FuzzContexts(f *testing.F) {
	f.Add([]byte("current: a\ncontexts:\n  a:\n    server: https://gate\n    token: \"true\"\n"))
	f.Add([]byte("contexts: {a: {server: \"x\\ny\"}}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := &contexts{}
		if parseContexts(raw, c) != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "contexts.yaml")
		if err := c.write(path); err != nil {
			t.Fatal(err)
		}
		again, err := readContexts(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Error(diff)
		}
	})
}

// Every text survives the way through YAML and back.
func FuzzObjectAsYAML(f *testing.F) {
	for _, seed := range []string{"a", "true", "1", "null", "a: b", "- x", "#", "line\nline", "\u2028", "~", "0x1f", "2026-11-29", "'", `"`, " ", "é"} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if strings.ToValidUTF8(name, "") != name || strings.ToValidUTF8(value, "") != value {
			return
		}
		m := &v1.MeshEdge{Source: name, Target: "b", Weight: -3, Attributes: map[string]string{value: name}}
		var out bytes.Buffer
		a := &app{stdout: &out, output: "yaml"}
		if err := a.printProto(m); err != nil {
			t.Fatal(err)
		}
		got := &v1.MeshEdge{}
		objects, err := parseObjects(out.Bytes(), "edges", got)
		if err != nil {
			t.Fatalf("%v\n%s", err, out.Bytes())
		}
		got = objects[0].(*v1.MeshEdge)
		if !proto.Equal(m, got) {
			t.Errorf("%v became %v by\n%s", m, got, out.Bytes())
		}
	})
}

func FuzzParseObject(f *testing.F) {
	f.Add([]byte("name: ops\nrules:\n  - {resources: [RESOURCE_ALL], verbs: [VERB_ALL]}\n"))
	f.Add([]byte("{\"name\": \"x\"}"))
	f.Add([]byte("&a [*a]"))
	f.Fuzz(func(_ *testing.T, raw []byte) { _, _ = parseObjects(raw, "roles", &v1.Role{}) })
}
