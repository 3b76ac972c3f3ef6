// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"
)

// Ratios are of the same round, so that a round in which the machine was slow
// does not count for one side only.
func TestReport_ComparesWithinARound(t *testing.T) {
	r := newReport(options{rounds: 3})
	for i, slow := range []float64{1, 10, 1} {
		r.add(wayPlain, one{rate: 1000 / slow, cpu: 5, rss: 100})
		r.add(wayNative, one{rate: 1100 / slow, cpu: 6 + float64(i), rss: 130, loss: .5, sent: 200})
		r.add(wayFound, one{rate: 990 / slow, rss: 110})
		r.add(wayNetstack, one{rate: 400 / slow, rss: 50})
	}
	r.judge()
	native, netstack := r.of(wayNative), r.of(wayNetstack)
	if native.OfPlain != 1.1 || native.Median != 1100 || native.CPU != 7 || native.Loss != .5 || netstack.OfPlain != .4 {
		t.Errorf("native %+v, netstack %+v", native, netstack)
	}
	err := r.missed()
	if err == nil || !strings.Contains(err.Error(), "ice, of native's rate: 0.90, want >= 0.95") || strings.Contains(err.Error(), "ice, of wireguard-go's memory") ||
		!strings.Contains(err.Error(), "memory: 1.30, want <= 1.2") || !strings.Contains(err.Error(), "netstack, of wireguard-go's rate: 0.40, want >= 0.5") ||
		strings.Contains(err.Error(), "native, of wireguard-go's rate") {
		t.Errorf("goals missed: %v", err)
	}
}

// A way that was not measured has no goals.
func TestReport_JudgesWhatWasMeasured(t *testing.T) {
	r := newReport(options{})
	r.add(wayPlain, one{rate: 1})
	if r.judge(); r.missed() != nil || len(r.Goals) != 0 {
		t.Errorf("goals %v", r.Goals)
	}
}

// What the host of gateways receives tells which way packets go.
func TestRoute_Check(t *testing.T) {
	const carried = 1_000_000
	for _, c := range []struct {
		name  string
		route route
		gate  traffic
		ok    bool
	}{
		{"past the gateway, with a keepalive", pastGate, traffic{links: 500}, true},
		{"past the gateway, by way of it", pastGate, traffic{links: carried, mesh: carried}, false},
		{"past the gateway, over a relay", pastGate, traffic{links: carried}, false},
		{"relayed", overRelay, traffic{links: carried + carried/20, mesh: 100}, true},
		{"relayed, directly", overRelay, traffic{links: 500}, false},
		{"relayed, as packets of the mesh", overRelay, traffic{links: carried, mesh: carried}, false},
		{"to the gateway", endsAtGate, traffic{links: carried + carried/20, mesh: carried}, true},
		{"to the gateway, elsewhere", endsAtGate, traffic{}, false},
	} {
		if err := c.route.check(carried, c.gate); (err == nil) != c.ok || err != nil && !errors.Is(err, errStray) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
