// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	found, err := asked()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	if found {
		os.Exit(0)
	}
	os.Exit(withProgram(m))
}

// program is the meshgate under test.
var program string

func withProgram(m *testing.M) int {
	dir, err := os.MkdirTemp("", "meshgate-chaos-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		program, err = buildProgram(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	return m.Run()
}

// Clients of three replicas see one state, whatever breaks, and nothing that
// was acknowledged is lost. `make chaos` is the same for longer, and asks for
// more.
func TestChaos_OneStateWhateverBreaks(t *testing.T) {
	var log bytes.Buffer
	out, err := explore(t.Context(), brief(1), &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, &log)
	}
	var text bytes.Buffer
	out.print(&text)
	t.Logf("\n%s", &text)
	if err := errors.Join(out.right(), out.complete()); err != nil {
		t.Errorf("%v\n%s", err, &log)
	}
	if n := out.Acknowledged; n < 1000 {
		t.Errorf("only %d operations were acknowledged", n)
	}
}

// Replicas whose reads may be stale are found out. Whether a client meets one is
// left to chance in each run.
func TestChaos_FindsStaleReads(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // what is kept of a run that failed
	const runs = 5
	for seed := range uint64(runs) {
		cfg := brief(seed + 2)
		cfg.StaleReads, cfg.Only, cfg.Faults, cfg.Operations = true, []string{"partition, two way"}, 3, 1000
		var log bytes.Buffer
		out, err := explore(t.Context(), cfg, &log)
		if err != nil {
			t.Fatalf("%v\n%s", err, &log)
		}
		if out.Wrong != "" {
			return
		}
		t.Logf("nobody met a stale read in run %d", seed+1)
	}
	t.Errorf("stale reads went unnoticed in %d runs", runs)
}
