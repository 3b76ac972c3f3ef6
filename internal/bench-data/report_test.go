// SPDX-License-Identifier: Apache-2.0

package main

import (
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
		r.add(wayNetstack, one{rate: 400 / slow, rss: 50})
	}
	r.judge()
	native, netstack := r.of(wayNative), r.of(wayNetstack)
	if native.OfPlain != 1.1 || native.Median != 1100 || native.CPU != 7 || native.Loss != .5 || netstack.OfPlain != .4 {
		t.Errorf("native %+v, netstack %+v", native, netstack)
	}
	err := r.missed()
	if err == nil || !strings.Contains(err.Error(), "memory: 1.30, want <= 1.2") || !strings.Contains(err.Error(), "netstack, of wireguard-go's rate: 0.40, want >= 0.5") ||
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
