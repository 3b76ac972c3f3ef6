// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/bench-control/writer"
)

// A round in which the machine was busy slows both sides of a ratio, and must
// not change it.
func TestReport_RatiosAreOfTheSameRound(t *testing.T) {
	r := newReport(options{rounds: 3})
	for _, machine := range []float64{1000, 300, 5000} {
		for _, clients := range clientCounts {
			r.addWrite(toEtcd, clients, writer.Result{Acked: machine, P50: 1, P99: 2}, time.Millisecond)
			r.addWrite(toReplicas, clients, writer.Result{Acked: machine * 1.2, P50: 1, P99: 2}, 2*time.Millisecond)
		}
	}
	r.judge()
	if w := r.writes(toReplicas, 64); w.OfEtcd != 1.2 || w.Median != 1200 || w.CPU != 2 {
		t.Errorf("%+v", w)
	}
	if err := r.missed(); err != nil {
		t.Error(err)
	}
	if len(r.Goals) != 2 || !r.Goals[0].Met || !r.Goals[1].Met {
		t.Errorf("%+v", r.Goals)
	}
}

// Goals are held against the largest mesh, and what grew against the smallest.
func TestReport_Goals(t *testing.T) {
	r := newReport(options{})
	r.Joins = []joins{
		{Shape: hub, Nodes: 100, P99: 4}, {Shape: hub, Nodes: 10_000, P99: 9},
		{Shape: public, Nodes: 100, P99: 20}, {Shape: public, Nodes: 10_000, P99: 30},
	}
	r.FanOuts = []fanOut{{Shape: hub, Change: changeACL, Nodes: 10_000, Subscribers: 1000, P50: 300, Most: 1001}}
	r.Memory = []memory{{Shape: hub, Nodes: 9999, Now: 299e6, Most: 400e6}}
	r.judge()
	want := map[string]bool{
		"join p99, hub-and-spoke, 10000 nodes, ms": true, "join p99, hub-and-spoke, 10000 nodes, of that at 100": false,
		"join p99, public, 10000 nodes, ms": false, "join p99, public, 10000 nodes, of that at 100": true,
		"last of 1000 subscribers, hub-and-spoke, 10000 nodes, network ACL, ms": false, "RSS, hub-and-spoke, 10000 nodes, MB": true,
	}
	for _, g := range r.Goals {
		if met, ok := want[g.Name]; !ok || met != g.Met {
			t.Errorf("goal %q: met is %v", g.Name, g.Met)
		}
		delete(want, g.Name)
	}
	for name := range want {
		t.Errorf("no goal %q", name)
	}
	err := r.missed()
	if err == nil {
		t.Fatal("goals are missed, and it is no error")
	}
	for _, text := range []string{"3 of 6 goals missed: ", "join p99, public, 10000 nodes, ms: 30.00, want <= 20", "1000 subscribers"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("no %q in %v", text, err)
		}
	}
	if strings.Contains(err.Error(), "RSS") {
		t.Errorf("a goal that was met is named: %v", err)
	}
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	words := strings.Join(strings.Fields(out.String()), " ")
	for _, text := range []string{"join p99, public, 10000 nodes, ms 30.00 <= 20 MISSED", "RSS, hub-and-spoke, 10000 nodes, MB 299.00 <= 300 met"} {
		if !strings.Contains(words, text) {
			t.Errorf("no %q in\n%s", text, &out)
		}
	}
}
