// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// A round in which the machine was busy slows both sides of a ratio, and must
// not change it.
func TestReport_RatiosAreOfTheSameRound(t *testing.T) {
	r := newReport(options{rounds: 3})
	for _, machine := range []float64{1, 10, 2} {
		for _, d := range []direction{up, down} {
			r.add("Go", pathRaw, d, machine*100e6, 20.0/(1<<30))
			r.add("Go", pathRawTCP, d, machine*50e6, 22.0/(1<<30))
			r.add("Go", pathMeshgate, d, machine*95e6, 25.0/(1<<30))
		}
	}
	r.addOpens("Go", []opening{{10 * time.Millisecond, 12 * time.Millisecond}, {200 * time.Millisecond, 300 * time.Millisecond}})
	r.Connections = []connectionRate{{Parallel: 1, PerSecond: 400}}
	r.judge()
	got := r.find("Go", pathMeshgate, up)
	if got.OfRaw != .95 || got.OfRawTCP != 1.9 || got.Median != 1520 {
		t.Errorf("%+v", got)
	}
	met := map[string]bool{}
	for _, g := range r.Goals {
		met[g.Name] = g.Met
	}
	if !met["Go, up, of raw+TCP"] || met["request to open, p99"] || len(met) != 6 {
		t.Errorf("goals: %+v", r.Goals)
	}
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	if words := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(words, "Go, Meshgate 1520 0.95 1.90 25 1520 0.95 1.90 25") {
		t.Errorf("no row of the product in\n%s", &out)
	}
}
