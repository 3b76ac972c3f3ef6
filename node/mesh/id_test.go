// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/meshgate/meshgate/node/mesh"
)

func TestParseNodeID(t *testing.T) {
	cases := []struct {
		in   string
		rule string // a part of the error; "" = accepted
	}{
		{in: "a"},
		{in: "node-1.example.com"},
		{in: "a node with spaces"},
		{in: "alice@example.com"},
		{in: "knoten-ü"},
		{in: "selfish"},
		{in: "..."},
		{in: strings.Repeat("x", mesh.MaxNameLen)},
		{in: "", rule: "empty"},
		{in: strings.Repeat("x", mesh.MaxNameLen+1), rule: "longer than 253 bytes"},
		{in: "a\xffb", rule: "UTF-8"},
		{in: "a\x00b", rule: "control"},
		{in: "a\nb", rule: "control"},
		{in: "a\u0085b", rule: "control"},
		{in: "a/b", rule: "'/'"},
		{in: `a\b`, rule: `'\\'`},
		{in: "a:b", rule: "':'"},
		{in: "*", rule: "'*'"},
		{in: "a?", rule: "'?'"},
		{in: `"a"`, rule: `'"'`},
		{in: "it's", rule: `'\''`},
		{in: "<a", rule: "'<'"},
		{in: "a>", rule: "'>'"},
		{in: "a|b", rule: "'|'"},
		{in: "a,b", rule: "','"},
		{in: ".", rule: "path"},
		{in: "..", rule: "path"},
		{in: "self", rule: "reserved"},
		{in: "local", rule: "reserved"},
		{in: "localhost", rule: "reserved"},
		{in: "leader", rule: "reserved"},
		{in: "Leader", rule: "reserved"},
		{in: "voters", rule: "reserved"},
		{in: "observers", rule: "reserved"},
	}
	for _, c := range cases {
		id, err := mesh.ParseNodeID(c.in)
		if c.rule == "" {
			if err != nil || string(id) != c.in {
				t.Errorf("ParseNodeID(%q) = %q, %v", c.in, id, err)
			}
			continue
		}
		if !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), c.rule) || id != "" {
			t.Errorf("ParseNodeID(%q) = %q, %v, want an error that says %s", c.in, id, err, c.rule)
		}
	}
}

func TestValidName_KnowsNoReservedWords(t *testing.T) {
	for _, name := range []string{"voters", "leader", "node-a-auto"} {
		if err := mesh.ValidName(name); err != nil {
			t.Errorf("ValidName(%q): %v", name, err)
		}
	}
}

func TestClearName_ShowsAllThatItHolds(t *testing.T) {
	for _, name := range []string{"web-1", "a node with spaces", "knoten-ü", "alice@example.com", "ノード", "گره", "node-🚀", "e\u0301"} {
		if err := mesh.ClearName(name); err != nil {
			t.Errorf("ClearName(%q): %v", name, err)
		}
	}
	for _, name := range []string{
		"phone\u200b", "x\u202eevil", "\ufeffphone", "a\u00adb", "a\u2066b", "a\u00a0b", "a\u2003b", "a\u2028b", "\u3164", "a\ufe0f", "a\U000e0061", "a\nb", "",
	} {
		if err := mesh.ClearName(name); !errors.Is(err, mesh.ErrInvalid) || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("ClearName(%q): %v", name, err)
		}
	}
}

func TestGroupRef_RoundTrips(t *testing.T) {
	if name, ok := mesh.ParseGroupRef(mesh.GroupRef("ops")); !ok || name != "ops" {
		t.Errorf("got %q, %v", name, ok)
	}
	if name, ok := mesh.ParseGroupRef("ops"); ok {
		t.Errorf("a plain name is group %q", name)
	}
}

func FuzzParseNodeID(f *testing.F) {
	for _, seed := range []string{"node", "self", "", "a/b", "\xff", strings.Repeat("é", 127)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := mesh.ParseNodeID(s)
		if err != nil {
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Fatalf("error %v does not wrap ErrInvalid", err)
			}
			return
		}
		if string(id) != s || !utf8.ValidString(s) || len(s) > mesh.MaxNameLen || strings.ContainsAny(s, "/:*\x00") {
			t.Fatalf("accepted %q as %q", s, id)
		}
		if _, isGroup := mesh.ParseGroupRef(s); isGroup || s == mesh.Everyone {
			t.Fatalf("%q is a node id and something else", s)
		}
	})
}
