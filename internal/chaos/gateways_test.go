// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package main

import "testing"

// startGates starts three gateways; they are gone at the end of the test, and
// their logs are shown when it failed.
func startGates(t *testing.T, extra ...string) gates {
	t.Helper()
	all, err := newGates(t.Context(), program, t.TempDir(), extra...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		all.kill()
		for _, g := range all {
			if t.Failed() {
				t.Logf("%s:\n%s", g.id, g.proc.log)
			}
		}
	})
	return all
}

// Changes are taken again soon after the leader was killed, with the default
// settings. `make chaos` does it 20 times and asks for less than two seconds in
// the median; here the machine may be busy.
func TestLeaderKilled_ChangesGoOn(t *testing.T) {
	all := startGates(t)
	took, err := measureFailovers(t.Context(), all, 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a change was acknowledged after %s in the median of %v", took.median(), took)
}
