// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// host is a machine of docs/operations.md, in a directory of its own.
type host struct {
	*clustered
	home string
	said string // by the last command of meshgate
	pin  string // of the gateway
}

// lan is the machines by their names.
type lan map[string]*host

// step runs a command of the document on a host, as a shell there would.
func (l lan) step(t *testing.T, h *host, line string) {
	t.Helper()
	words := strings.Fields(line)
	switch {
	case line == "systemctl stop meshgate":
		select {
		case <-h.done: // it has ended by itself
		default:
			h.interrupt()
		}
	case strings.HasPrefix(line, "rm -r "):
		if err := os.RemoveAll(h.path(words[2])); err != nil {
			t.Fatal(err)
		}
	case words[0] == "scp":
		from, path, _ := strings.Cut(words[1], ":")
		raw, err := os.ReadFile(l[from].path(path))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.path(words[2]), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	case words[0] == "meshgate" && words[1] == "up":
		h.up(t, l["gw1"], words[2:])
	case words[0] == "meshgate":
		into := ""
		if n := len(words); words[n-2] == ">" {
			into, words = h.path(words[n-1]), words[:n-2]
		}
		cmd := exec.Command(program, append(words[1:], "--data-dir", h.dir)...)
		cmd.Dir = h.home
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Run(); err != nil {
			t.Fatalf("on %s: %s: %v\n%s%s", h.id, line, err, out.Bytes(), said.Bytes())
		}
		if into != "" {
			if err := os.WriteFile(into, out.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		h.said = out.String() + said.String()
	default:
		t.Fatalf("nobody knows how to run %q", line)
	}
}

// ends fails unless the gateway ends by itself.
func (h *host) ends(t *testing.T) {
	t.Helper()
	select {
	case <-h.done:
	case <-time.After(patience):
		t.Fatalf("%s goes on\n%s", h.id, h.log)
	}
	text := h.log.String()
	if strings.Count(text, "removed from its cluster") != 1 || !strings.Contains(text, "to let it in again, remove ") || strings.Contains(text, "level=ERROR") {
		t.Errorf("%s does not say once why it ended, and what to do:\n%s", h.id, text)
	}
}

// path is where the host keeps a file of the document.
func (h *host) path(name string) string {
	if rest, ok := strings.CutPrefix(name, "/var/lib/meshgate"); ok {
		return h.dir + rest
	}
	return filepath.Join(h.home, name)
}

// up starts the gateway with the flags of the document, beside those that let
// three of them run on one machine.
func (h *host) up(t *testing.T, first *host, flags []string) {
	t.Helper()
	args := append([]string{}, h.args...)
	for i, arg := range flags {
		switch {
		case arg == "sha256:PIN":
			arg = first.pin
		case i > 0 && flags[i-1] == "--cluster.token-file":
			arg = h.path(arg)
		}
		arg = strings.ReplaceAll(arg, "203.0.113.1:8443", first.args[8])
		args = append(args, strings.ReplaceAll(arg, "203.0.113.", "127.0.0."))
	}
	h.process = launch(t, nil, args...)
	h.await()
	_, h.pin = h.local(t)
}

// commands reads the blocks of commands of the document: pairs of host and
// command.
func commands(t *testing.T) (list [][2]string) {
	t.Helper()
	raw, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	inside, on := false, ""
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "```"):
			inside, on = line == "```sh", ""
		case !inside || line == "":
		case strings.HasPrefix(line, "# "):
			on = strings.TrimPrefix(line, "# ")
		default:
			list = append(list, [2]string{on, line})
		}
	}
	if len(list) < 20 {
		t.Fatalf("the document has %d commands only", len(list))
	}
	return list
}

// tells is what commands say that the document tells of.
func tells() map[string]string {
	return map[string]string{
		"meshgate policy put policy.yaml --prune --dry-run": "remove   groups   old-team",
		"meshgate policy put policy.yaml --prune":           "groups old-team: removed",
	}
}

// Every command of docs/operations.md does what the document says: what was in
// the mesh before is there after each start, at each gateway.
func TestOperations_CommandsOfTheDocument(t *testing.T) {
	l := lan{}
	for n, id := range []string{"gw1", "gw2", "gw3"} {
		l[id] = &host{clustered: newClustered(t, n+1), home: t.TempDir()}
	}
	gw1 := l["gw1"]
	gw1.up(t, gw1, []string{"--id", "gw1", "--public-address", "203.0.113.1"}) // alone
	gw1.put(t, "keepsake")
	for _, c := range commands(t) {
		h, ok := l[c[0]]
		if !ok {
			t.Fatalf("%q: on which host?", c[1])
		}
		l.step(t, h, c[1])
		t.Logf("%s: %s", c[0], c[1])
		if want, ok := tells()[c[1]]; ok && !strings.Contains(h.said, want) {
			t.Errorf("%s said %q, want %q in it", c[1], h.said, want)
		}
		if strings.HasPrefix(c[1], "meshgate cluster remove ") {
			l[strings.Fields(c[1])[3]].ends(t)
		}
		if strings.HasPrefix(c[1], "meshgate up") {
			shows(t, []*clustered{h.clustered}, "keepsake")
		}
	}
	gates := []*clustered{gw1.clustered, l["gw2"].clustered, l["gw3"].clustered}
	leader := lead(t, gates)
	eventually(t, patience, func() (bool, string) { // one that just came back is not heard of at once
		out, err := others(gates, leader)[0].run("cluster", "status")
		good := err == nil && strings.Count(out, "voter") == 2 && strings.Count(out, "leader") == 1 && !strings.Contains(out, "out of reach")
		return good, fmt.Sprintf("at the end: %v\n%s", err, out)
	})
	info, err := os.Stat(l["gw2"].path("mesh.backup"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v", info, err)
	}
}
