// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// took is a transfer of a million packets in a second, with a CPU time for each
// in µs.
func took(cpu float64) transferred {
	return transferred{Sent: 1e6, Delivered: 1e6, Took: time.Second, CPU: time.Duration(cpu * 1e9)}
}

// Ratios are of the same round, so that a round in which the machine was slow
// does not count for one side only.
func TestReport_ComparesWithinARound(t *testing.T) {
	r := newReport(options{rounds: 3})
	burst, single := cell{Size: small, Allocations: 100, Burst: bursty}, cell{Size: small, Allocations: 1, Burst: 1}
	worst := burst
	worst.Down = true
	for _, slow := range []float64{1, 10, 1} {
		for c, ours := range map[cell]float64{burst: 1, worst: 2, single: 2} {
			r.add(partRelay, c, meshgate, took(ours*slow))
			r.add(partRelay, c, coturn, took(3*slow))
		}
		r.add(partRelay, burst, kernel, transferred{Sent: 3e6, Delivered: 3e6, Took: time.Second})
		r.add(partLight, single, meshgate, took(15*slow))
		r.add(partLight, single, coturn, took(14*slow))
		r.made(meshgate, 1000, connected{Allocate: time.Second, AllocateCPU: 100 * time.Millisecond}, 14e6)
		r.made(coturn, 1000, connected{Allocate: time.Second, AllocateCPU: 125 * time.Millisecond}, 20e6)
		r.overloaded(meshgate, 1e6, transferred{Sent: 3e6, Delivered: 950_000, Took: time.Second})
	}
	r.judge()
	for name, want := range map[string]goal{
		"coturn's CPU for a packet, of ours, bursts, median of 2 cells":              {Got: 2.25, Met: true},
		"the same, least of these cells":                                             {Got: 1.5},
		"the same, packets one by one, median of 1 cells":                            {Got: 1.5, Met: true},
		"the same, light load, lesser direction":                                     {Got: 14.0 / 15},
		"coturn's CPU for a packet, of that with channels in the kernel, least cell": {Got: 3 / leastCPU, Met: true},
		"packets/s with channels in the kernel, of coturn's, least cell":             {Got: 3, Met: true},
		"coturn's CPU for an allocation, of ours":                                    {Got: 1.25, Met: true},
		"memory of an allocation, kB":                                                {Got: 14},
		"delivered of the peak under overload":                                       {Got: .95, Met: true},
		"offered of the peak under overload":                                         {Got: 3, Met: true},
	} {
		got := r.find(name)
		if got == nil || math.Abs(got.Got-want.Got) > 1e-9*want.Got || got.Met != want.Met {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if err := r.missed(); err == nil || !strings.Contains(err.Error(), "3 of 11 goals missed") || !strings.Contains(err.Error(), "allocation, kB: 14.00, want <= 12") {
		t.Errorf("missed: %v", err)
	}
}

// find returns a goal; nil if there is none of that name.
func (r *report) find(name string) *goal {
	for i := range r.Goals {
		if r.Goals[i].Name == name {
			return &r.Goals[i]
		}
	}
	return nil
}

// What was not measured has no goals, but for channels in the kernel: that they
// are not there is no success.
func TestReport_JudgesWhatWasMeasured(t *testing.T) {
	r := newReport(options{})
	r.add(partRelay, relayCells()[0], meshgate, took(1))
	if r.judge(); r.missed() != nil || len(r.Goals) != 0 {
		t.Errorf("goals %+v", r.Goals)
	}
	r.Goals, r.NoKernel = nil, "no BPF here"
	if r.judge(); len(r.Goals) != 2 || r.missed() == nil {
		t.Errorf("goals %+v", r.Goals)
	}
}

func TestFlooded_TheWorstKindCounts(t *testing.T) {
	r := newReport(options{})
	r.Flood = &underFlood{Seconds: 1, Offered: 1, Kept: 1, Growth: 1e6}
	r.Flood.add(flooded{Sent: 50_000, Kinds: map[string]*traffic{"junk": {In: 1e6}, "binding": {In: 100, Out: 90}}})
	r.Flood.add(flooded{Sent: 50_000, Kinds: map[string]*traffic{"junk": {In: 1e6}, "binding": {In: 100, Out: 110}}})
	r.Flood.Worst, r.Flood.Factor = r.Flood.worst()
	r.judge()
	if g := r.find("bytes out for each byte in of a flood, binding"); g == nil || g.Got != 1 || g.Met || len(r.Goals) != 5 {
		t.Errorf("goals %+v", r.Goals)
	}
	if err := r.missed(); err == nil || !strings.Contains(err.Error(), "1 of 5 goals") {
		t.Errorf("missed: %v", err)
	}
}

func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		name   string
		series []point
		want   float64
	}{
		{"flat", []point{{1, 100}, {2, 100}, {3, 100}}, 0},
		{"rising", []point{{0, 90}, {10, 100}, {20, 110}}, .2},
		{"falling", []point{{0, 110}, {10, 100}, {20, 90}}, -.2},
		{"up and down", []point{{0, 100}, {1, 140}, {2, 60}, {3, 60}, {4, 140}, {5, 100}}, 0},
	} {
		if got := growth(c.series); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %g, want %g", c.name, got, c.want)
		}
	}
}

// The least of each run of looks counts: what is garbage for a while is no growth.
func TestFloors(t *testing.T) {
	series := []point{{1, 9}, {2, 5}, {3, 7}, {4, 8}, {5, 6}, {6, 6}, {7, 40}}
	for _, c := range []struct {
		n    int
		want []point
	}{
		{1, []point{{2, 5}}},
		{2, []point{{2, 5}, {5, 6}}},
		{3, []point{{2, 5}, {3, 7}, {5, 6}}},
		{7, series},
		{20, series},
	} {
		if got := floors(series, c.n); !slices.Equal(got, c.want) {
			t.Errorf("%d of them: %v, want %v", c.n, got, c.want)
		}
	}
	// What leaks rises in all of them.
	var leak []point
	for i := range 100 {
		leak = append(leak, point{float64(i), 100 + float64(i)/5 + float64(i%7)})
	}
	if got := 100 * growth(floors(leak, floorsOfSoak)); got < goalSlope {
		t.Errorf("a leak of a fifth of the memory is %g %%", got)
	}
}

// Packets that come too late are not lost.
func TestTransferred(t *testing.T) {
	x := transferred{Sent: 100, Delivered: 60, Late: 30, Took: 2 * time.Second, CPU: 120 * time.Microsecond}
	if x.perSecond() != 30 || x.offered() != 50 || x.cpu() != 2 || math.Abs(x.loss()-.1) > 1e-9 {
		t.Errorf("%g/s of %g/s, %g µs, loss %g", x.perSecond(), x.offered(), x.cpu(), x.loss())
	}
}

// The cells are those that the goals speak of.
func TestRelayCells(t *testing.T) {
	list := relayCells()
	seen := make(map[cell]bool)
	for _, c := range list {
		seen[c] = true
		if _, err := newSender(make([]byte, c.Size+header), c.Burst); err != nil || c.packets() < c.Burst {
			t.Errorf("%s: %v", c, err)
		}
	}
	if len(seen) != 24 || len(kernelCells()) != 4 {
		t.Errorf("%d cells, %d of the kernel's", len(seen), len(kernelCells()))
	}
	for _, c := range kernelCells() {
		if !seen[c] {
			t.Errorf("%s is not measured of coturn", c)
		}
	}
}
