// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// The commands that ask how this host fares ask in one order: whom a flag names, the
// node of this host, the gateway of the current context.
func TestNear_TheNodeOfThisHostComesBeforeTheContext(t *testing.T) {
	dir := shortDir(t)
	contexts := filepath.Join(dir, "contexts.yaml")
	if err := os.WriteFile(contexts, []byte("current: work\ncontexts:\n  work: {server: \"https://gate.example:8443\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(dir, "nas")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := listenDoor(t.Context(), filepath.Join(home, doorFile))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const gate = "https://gate.example:8443"
	for name, tt := range map[string]struct {
		home    string
		flags   []string
		gateway string // that is asked; empty: the node
	}{
		"a node and a context":    {home: home},
		"a context that is named": {home: home, flags: []string{"--context", "work"}, gateway: gate},
		"a gateway that is named": {home: home, flags: []string{"--server", "https://other.example"}, gateway: "https://other.example"},
	} {
		c, f := &access{}, pflag.NewFlagSet("ping", pflag.ContinueOnError)
		c.registerNear(f)
		if err := f.Parse(append([]string{"--contexts-file", contexts}, tt.flags...)); err != nil {
			t.Fatal(err)
		}
		c.dataDir = tt.home // as if it was the usual one
		asked, err := c.dial(t.Context(), f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if asked.Close(); (tt.gateway == "") != (c.URL == "") || c.URL != tt.gateway {
			t.Errorf("%s: %q is asked, want %q", name, c.URL, tt.gateway)
		}
	}
	a := &app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	want := a.pingCommand().Flag("server").Usage
	for _, cmd := range []string{a.statusCommand().Flag("server").Usage, a.netcheckCommand().Flag("server").Usage} {
		if cmd != want || !strings.Contains(want, "the node of this host is asked, or else the gateway of the current context") {
			t.Errorf("one says %q, the other %q", cmd, want)
		}
	}
}
