// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshgate/meshgate/internal/sample"
)

// The goals of the TURN server on one machine.
const (
	goalBursts      = 1.9 // of what coturn relays with the same CPU time: the median of all cells with bursts
	goalBurstsFloor = 1.6 // and the least of them
	goalSingles     = 1.2 // the same without bursts: the median of all these cells
	goalSinglesLow  = 1.0 // and the least of them
	goalLight       = 1.0 // at light load
	goalKernel      = 20  // with channels in the kernel
	goalKernelRate  = 2.4 // and of its packets per second
	goalAllocations = 1.2 // of the allocations that coturn makes with the same CPU time
	goalMemory      = 12  // kB for each allocation
	goalOverload    = .9  // of the peak
	goalFactor      = 1   // byte out for each byte in of a flood, less than that
	goalKept        = .9  // of what existing allocations relay
	goalGrowth      = 8   // MB more than before a flood: garbage that is not collected yet
	goalSlope       = 5   // percent of its memory that a server may grow by while it runs
	goalRestart     = 5   // seconds until a server that was killed serves again
	// enough is the part of tooMuch that has to be offered for an overload to be one.
	enough = .9
)

type goal struct {
	Name string  `json:"name"`
	Want string  `json:"want"`
	Got  float64 `json:"got"`
	Met  bool    `json:"met"`
}

// judgeRelay judges the CPU time for each packet beside coturn's.
func (r *report) judgeRelay() {
	var bursts, singles, light []float64
	for _, x := range r.Relay {
		switch ratio := x.cheaper(meshgate, coturn); {
		case ratio == 0:
		case x.Cell.Burst > 1:
			bursts = append(bursts, ratio)
		default:
			singles = append(singles, ratio)
		}
	}
	for _, x := range r.Light {
		if ratio := x.cheaper(meshgate, coturn); ratio > 0 {
			light = append(light, ratio)
		}
	}
	if len(bursts) > 0 {
		r.atLeast(fmt.Sprintf("coturn's CPU for a packet, of ours, bursts, median of %d cells", len(bursts)), goalBursts, sample.Median(bursts))
		r.atLeast("the same, least of these cells", goalBurstsFloor, least(bursts))
	}
	if len(singles) > 0 {
		r.atLeast(fmt.Sprintf("the same, packets one by one, median of %d cells", len(singles)), goalSingles, sample.Median(singles))
		r.atLeast("the same, least of these cells one by one", goalSinglesLow, least(singles))
	}
	if len(light) > 0 {
		r.atLeast("the same, light load, lesser direction", goalLight, least(light))
	}
}

// judgeKernel judges channels in the kernel beside coturn.
func (r *report) judgeKernel() {
	var cpu, rate []float64
	for _, x := range r.Relay {
		if ratio := x.cheaper(kernel, coturn); ratio > 0 {
			cpu, rate = append(cpu, ratio), append(rate, x.faster(kernel, coturn))
		}
	}
	if len(cpu) == 0 && r.NoKernel == "" {
		return
	}
	// Of what could not be measured nothing was reached.
	r.atLeast("coturn's CPU for a packet, of that with channels in the kernel, least cell", goalKernel, least(cpu))
	r.atLeast("packets/s with channels in the kernel, of coturn's, least cell", goalKernelRate, least(rate))
}

// least is the smallest value of a list, 0 of an empty one.
func least(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	return slices.Min(list)
}

// judgeRest judges all other parts.
func (r *report) judgeRest() {
	if a := r.allocating(meshgate); a != nil {
		if c := r.allocating(coturn); c != nil {
			r.atLeast("coturn's CPU for an allocation, of ours", goalAllocations, ratio(c.Rounds, a.Rounds))
		}
		r.atMost("memory of an allocation, kB", goalMemory, a.Memory/1e3)
	}
	for _, x := range r.Overload {
		if x.Server == meshgate {
			r.atLeast("delivered of the peak under overload", goalOverload, x.Delivered)
			r.atLeast("offered of the peak under overload", tooMuch*enough, x.Offered)
		}
	}
	if u := r.Flood; u != nil {
		r.below("bytes out for each byte in of a flood, "+u.Worst, goalFactor, u.Factor)
		r.atLeast("flood, of what was wanted", enough, float64(u.Sent)/u.Seconds/floodRate)
		r.atLeast("offered by existing allocations during a flood, of what was wanted", enough, u.Offered)
		r.atLeast("relayed by existing allocations during a flood, of before", goalKept, u.Kept)
		r.atMost("memory that a flood takes, MB", goalGrowth, float64(u.Growth)/1e6)
	}
	if s := r.Soak; s != nil {
		r.atMost("growth of memory over the run, %", goalSlope, s.Slope)
		r.atMost("files that are left open", 0, float64(s.Files))
		r.atMost("relay ports that are left open", 0, float64(s.Ports))
		r.atMost("relay ports that are left open by a kill", 0, float64(s.Orphans))
		r.atMost("seconds until a server that was killed serves again", goalRestart, s.Restart)
	}
}

func (r *report) atLeast(name string, want, got float64) {
	r.Goals = append(r.Goals, goal{Name: name, Want: fmt.Sprintf(">= %g", want), Got: got, Met: got >= want})
}

func (r *report) atMost(name string, want, got float64) {
	r.Goals = append(r.Goals, goal{Name: name, Want: fmt.Sprintf("<= %g", want), Got: got, Met: got <= want})
}

func (r *report) below(name string, want, got float64) {
	r.Goals = append(r.Goals, goal{Name: name, Want: fmt.Sprintf("< %g", want), Got: got, Met: got < want})
}

// missed is an error that names the goals which were not met; nil if all were.
func (r *report) missed() error {
	var names []string
	for _, g := range r.Goals {
		if !g.Met {
			names = append(names, fmt.Sprintf("%s: %.2f, want %s", g.Name, g.Got, g.Want))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d goals missed: %s", len(names), len(r.Goals), strings.Join(names, "; "))
}
