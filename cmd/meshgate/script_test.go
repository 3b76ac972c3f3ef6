// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshgate": main})
}

// TestScripts runs every command as a person types it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"await": await, "jsonenv": jsonenv, "manygroups": manyGroups},
	})
}

// await waits until a file is there: a command in the background has begun.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	deadline := time.After(time.Minute)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			ts.Fatalf("%s did not come", args[0])
		}
	}
}

// jsonenv sets a variable to a field of a JSON file.
func jsonenv(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: jsonenv VARIABLE FILE FIELD")
	}
	fields := map[string]any{}
	if err := json.Unmarshal([]byte(ts.ReadFile(args[1])), &fields); err != nil {
		ts.Fatalf("%v", err)
	}
	text, ok := fields[args[2]].(string)
	if !ok {
		ts.Fatalf("%s has no text %s", args[1], args[2])
	}
	ts.Setenv(args[0], text)
}

// manyGroups writes a policy file with so many groups, and a binding of a role to
// the last of them.
func manyGroups(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: manygroups FILE N ROLE")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	var text strings.Builder
	text.WriteString("groups:\n")
	for i := range n {
		fmt.Fprintf(&text, "- {name: many-%d, subjects: [{type: user, name: u%d}]}\n", i, i)
	}
	fmt.Fprintf(&text, "rolebindings:\n- {name: many, role: %s, subjects: [{type: group, name: many-%d}]}\n", args[2], n-1)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text.String()), 0o600))
}
