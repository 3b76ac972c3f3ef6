// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A refusal says which capability is missing, and nothing else is held against
// capabilities.
func TestExplain_NamesWhatIsMissing(t *testing.T) {
	const all, root = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON, 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN
	refused := fmt.Errorf("load: %w", unix.EACCES)
	for held, want := range map[uint64]string{
		all: "", root: "", 0: "lacks CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON:",
		all &^ (1 << unix.CAP_PERFMON):    "lacks CAP_PERFMON:",
		root &^ (1 << unix.CAP_NET_ADMIN): "lacks CAP_NET_ADMIN:",
	} {
		err := lacking(refused, held)
		if _, said, _ := strings.Cut(err.Error(), "the process "); !errors.Is(err, unix.EACCES) || !strings.HasPrefix(said, want) || (want == "") != (said == "") {
			t.Errorf("with %#x: %v", held, err)
		}
	}
	if other := errors.New("other"); explain(other) != other {
		t.Errorf("explained as %v", explain(other))
	}
}

// What operators are told to give is what it takes: in docs/turn.md, and with what
// the unit has in the drop-in there, on both lines.
func TestRights_AreThoseOfTheDocuments(t *testing.T) {
	read := func(path string) string {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	doc, unit, pkg := read("../../docs/turn.md"), read("../../deploy/systemd/meshgate.service"), read("xdp.go")
	_, doc, _ = strings.Cut(doc, "## Channels in the kernel")
	doc, _, _ = strings.Cut(doc, "\n## ")
	for _, set := range []string{"AmbientCapabilities", "CapabilityBoundingSet"} {
		lines := regexp.MustCompile(`(?m)^`+set+`=.*$`).FindAllString(doc+"\n"+unit, -1)
		if len(lines) != 2 {
			t.Errorf("%d lines of %s, want that of the drop-in and that of the unit", len(lines), set)
		}
		for _, c := range needed() {
			if !regexp.MustCompile(`\b` + c.name + `\b`).MatchString(strings.Join(lines, "\n")) {
				t.Errorf("neither the drop-in nor the unit has %s in %s", c.name, set)
			}
		}
	}
	for _, c := range needed() {
		for where, text := range map[string]string{"docs/turn.md": doc, "the unit": unit, "the package": pkg} {
			name := c.name
			if where == "the unit" {
				name = strings.TrimPrefix(name, "CAP_") // NET_ADMIN in its prose
			}
			if !strings.Contains(text, name) {
				t.Errorf("%s does not name %s", where, c.name)
			}
		}
	}
	if !regexp.MustCompile(`(?m)^SystemCallFilter=.*\bbpf\b`).MatchString(unit) {
		t.Error("the unit lets nobody call bpf")
	}
}
