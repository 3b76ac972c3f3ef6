// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// TestMain runs the roles, too: they are this program once more.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := runRole(role); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A run of everything, as short as it can be: numbers come out of all parts and
// for all servers.
func TestMeasure(t *testing.T) {
	o := brief()
	o.warm, o.count, o.lightCount, o.flood = 10*time.Millisecond, 30*time.Millisecond, 30*time.Millisecond, 100*time.Millisecond
	o.clients = 120
	o.cells = []cell{{Size: small, Allocations: 100, Burst: bursty}, {Down: true, Size: large, Allocations: 1, Burst: 1}}
	o.light = []cell{{Size: small, Allocations: 100, Burst: 1}}
	r, err := measure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Relay) < 2 || len(r.Light) != 1 || len(r.Allocations) != 3 || len(r.Overload) != 3 || r.Flood == nil {
		t.Fatalf("parts are missing: %+v", r)
	}
	for _, name := range []string{meshgate, coturn, pion} {
		for _, x := range r.Relay[:2] {
			if f := x.of(name); f == nil || f.CPU <= leastCPU || f.Rate <= 0 {
				t.Errorf("%s, %s: %+v", x.Cell, name, f)
			}
		}
		if a := r.allocating(name); a == nil || a.CPU <= 1 || a.Memory == 0 {
			t.Errorf("allocations of %s: %+v", name, a)
		}
	}
	for _, c := range kernelCells() {
		i := slices.IndexFunc(r.Relay, func(x *row) bool { return x.Cell == c })
		if r.NoKernel != "" || i < 0 || r.Relay[i].of(kernel) == nil || r.Relay[i].of(kernel).Rate <= 0 {
			t.Errorf("%s in the kernel: %s", c, r.NoKernel)
		}
	}
	if u := r.Flood; u.Sent == 0 || len(u.Kinds) != len(floodKinds()) || u.Kept <= 0 || u.Memory == 0 {
		t.Errorf("flood: %+v", u)
	}
	if err := r.print(t.Output()); err != nil {
		t.Error(err)
	}
}

func TestSoak(t *testing.T) {
	r, err := soak(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if k := r.Soak; k.Allocations < soakGroup || k.Packets == 0 || k.Files > 0 || k.Ports > 0 || k.Orphans > 0 || k.Restart > goalRestart {
		t.Errorf("%+v", k)
	}
	if err := r.print(t.Output()); err != nil {
		t.Error(err)
	}
}
