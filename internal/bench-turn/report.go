// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/meshgate/meshgate/internal/sample"
)

// report is all that was measured. Its JSON is for machines.
type report struct {
	Date   time.Time `json:"date"`
	Commit string    `json:"commit,omitempty"`
	Go     string    `json:"go"`
	CPUs   int       `json:"cpus"`
	Coturn string    `json:"coturn,omitempty"` // version
	// Load is that of the machine over a minute, before and after.
	Load        [2]string     `json:"load"`
	Rounds      int           `json:"rounds"`
	Relay       []*row        `json:"relay,omitempty"`
	Light       []*row        `json:"light,omitempty"`
	Allocations []*allocating `json:"allocations,omitempty"`
	Overload    []*overloaded `json:"overload,omitempty"`
	Flood       *underFlood   `json:"flood,omitempty"`
	Soak        *soaked       `json:"soak,omitempty"`
	// NoKernel is why channels in the kernel could not be measured.
	NoKernel string `json:"no_kernel,omitempty"`
	Goals    []goal `json:"goals"`
}

// row is what servers did in one cell.
type row struct {
	Cell    cell       `json:"cell"`
	Servers []*figures `json:"servers"`
}

// figures are the medians of what one server did in a cell.
type figures struct {
	Server string `json:"server"`
	// CPU is its CPU time for each packet in µs, Rate in packets per second.
	CPU  float64 `json:"cpu"`
	Rate float64 `json:"rate"`
	Loss float64 `json:"loss"`
	// Rounds are the CPU times of all rounds.
	Rounds []float64 `json:"rounds"`

	rates, losses []float64
}

// allocating is what allocations cost a server; all are medians.
type allocating struct {
	Server string `json:"server"`
	// CPU is that of one allocation, with the challenge before it, and BindCPU
	// that of binding a channel, in µs.
	CPU     float64 `json:"cpu"`
	BindCPU float64 `json:"bind_cpu"`
	// PerSecond is how many were made; the load has to do as much for it.
	PerSecond float64 `json:"per_second"`
	// Memory is what is resident for an allocation with a channel, in bytes.
	Memory float64 `json:"memory"`
	// Rounds are the CPU times of all rounds.
	Rounds []float64 `json:"rounds"`

	binds, rates, memories []float64
}

// overloaded is what a server does with too much; all are medians.
type overloaded struct {
	Server string `json:"server"`
	// Peak is the most that it relayed, in packets per second; Offered and
	// Delivered are those of the flood, as a part of that.
	Peak      float64 `json:"peak"`
	Offered   float64 `json:"offered"`
	Delivered float64 `json:"delivered"`

	peaks, offers, deliveries []float64
}

func newReport(o options) *report {
	r := &report{Date: time.Now().UTC().Truncate(time.Second), Go: runtime.Version(), CPUs: runtime.NumCPU(), Rounds: o.rounds}
	r.Load[0] = loadAverage()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				r.Commit = s.Value
			}
		}
	}
	return r
}

// loadAverage is how many threads wanted to run in the last minute
// (proc_loadavg(5)); empty where nobody knows.
func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(raw), " ")
	return first
}

// add notes one measurement of a cell.
func (r *report) add(part string, c cell, server string, t transferred) {
	rows := &r.Relay
	if part == partLight {
		rows = &r.Light
	}
	i := slices.IndexFunc(*rows, func(x *row) bool { return x.Cell == c })
	if i < 0 {
		i = len(*rows)
		*rows = append(*rows, &row{Cell: c})
	}
	f := (*rows)[i].of(server)
	if f == nil {
		f = &figures{Server: server}
		(*rows)[i].Servers = append((*rows)[i].Servers, f)
	}
	// Nothing at all is less than the clock tells.
	f.Rounds = append(f.Rounds, max(t.cpu(), leastCPU))
	f.rates, f.losses = append(f.rates, t.perSecond()), append(f.losses, t.loss())
}

// leastCPU is the smallest CPU time that is told, in µs: one can divide by it.
const leastCPU = .001

// of returns the figures of a server; nil if there are none.
func (x *row) of(server string) *figures {
	for _, f := range x.Servers {
		if f.Server == server {
			return f
		}
	}
	return nil
}

// made notes that a server made allocations.
func (r *report) made(server string, n int, c connected, memory int64) {
	a := r.allocating(server)
	if a == nil {
		a = &allocating{Server: server}
		r.Allocations = append(r.Allocations, a)
	}
	each := float64(n)
	a.Rounds = append(a.Rounds, c.AllocateCPU.Seconds()*1e6/each)
	a.binds = append(a.binds, c.BindCPU.Seconds()*1e6/each)
	a.rates = append(a.rates, each/c.Allocate.Seconds())
	a.memories = append(a.memories, float64(memory)/each)
}

func (r *report) allocating(server string) *allocating {
	for _, a := range r.Allocations {
		if a.Server == server {
			return a
		}
	}
	return nil
}

// overloaded notes what is left of the peak of a server.
func (r *report) overloaded(server string, peak float64, t transferred) {
	i := slices.IndexFunc(r.Overload, func(x *overloaded) bool { return x.Server == server })
	if i < 0 {
		i = len(r.Overload)
		r.Overload = append(r.Overload, &overloaded{Server: server})
	}
	x := r.Overload[i]
	x.peaks = append(x.peaks, peak)
	x.offers, x.deliveries = append(x.offers, t.offered()/peak), append(x.deliveries, t.perSecond()/peak)
}

// ratio is the median of the ratios of the same rounds; 0 if there is none.
func ratio(a, b []float64) float64 {
	var list []float64
	for i := range min(len(a), len(b)) {
		list = append(list, a[i]/b[i])
	}
	if len(list) == 0 {
		return 0
	}
	return sample.Median(list)
}

// cheaper is how many times the CPU time of a server another one takes for the
// same; 0 if one of them was not measured.
func (x *row) cheaper(server, than string) float64 {
	s, t := x.of(server), x.of(than)
	if s == nil || t == nil {
		return 0
	}
	return ratio(t.Rounds, s.Rounds)
}

// faster is how many times the packets of another one a server relays.
func (x *row) faster(server, than string) float64 {
	s, t := x.of(server), x.of(than)
	if s == nil || t == nil {
		return 0
	}
	return ratio(s.rates, t.rates)
}

// judge computes what follows from the rounds, and holds it against the goals.
func (r *report) judge() {
	r.Load[1] = loadAverage()
	for _, x := range slices.Concat(r.Relay, r.Light) {
		for _, f := range x.Servers {
			f.CPU, f.Rate, f.Loss = sample.Median(f.Rounds), sample.Median(f.rates), sample.Median(f.losses)
		}
	}
	for _, a := range r.Allocations {
		a.CPU, a.BindCPU = sample.Median(a.Rounds), sample.Median(a.binds)
		a.PerSecond, a.Memory = sample.Median(a.rates), sample.Median(a.memories)
	}
	for _, x := range r.Overload {
		x.Peak, x.Offered, x.Delivered = sample.Median(x.peaks), sample.Median(x.offers), sample.Median(x.deliveries)
	}
	r.judgeRelay()
	r.judgeKernel()
	r.judgeRest()
}

// print writes tables for people.
func (r *report) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s, %s, %d CPUs, load %s before and %s after, %d rounds", r.Date.Format(time.RFC3339), r.Go, r.CPUs, r.Load[0], r.Load[1], r.Rounds)
	if r.Coturn != "" {
		fmt.Fprintf(w, ", coturn %s", r.Coturn)
	}
	fmt.Fprintln(w)
	r.printRows(w, "µs CPU for each packet", r.Relay)
	r.printRows(w, fmt.Sprintf("light load, %d packets/s", lightRate), r.Light)
	if r.NoKernel != "" {
		fmt.Fprintf(w, "\nchannels in the kernel were not measured: %s\n", r.NoKernel)
	}
	if len(r.Allocations) > 0 {
		fmt.Fprintf(w, "\nallocations\tµs CPU each\tµs CPU of a channel\tmade/s\tkB each\n")
	}
	for _, a := range r.Allocations {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t%.1f\n", a.Server, a.CPU, a.BindCPU, a.PerSecond, a.Memory/1e3)
	}
	if len(r.Overload) > 0 {
		fmt.Fprintf(w, "\noverload\tpeak kpps\toffered of that\tdelivered of that\n")
	}
	for _, x := range r.Overload {
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.2f\n", x.Server, x.Peak/1e3, x.Offered, x.Delivered)
	}
	r.Flood.print(w)
	r.Soak.print(w)
	fmt.Fprintf(w, "\ngoal\twant\tgot\n")
	for _, g := range r.Goals {
		verdict := "met"
		if !g.Met {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "%s\t%s\t%.2f\t%s\n", g.Name, g.Want, g.Got, verdict)
	}
	return w.Flush()
}

// printRows writes the figures of cells: of each server the CPU time and the
// rate, and how many times our CPU time it takes.
func (r *report) printRows(w io.Writer, title string, rows []*row) {
	if len(rows) == 0 {
		return
	}
	var names []string
	for _, x := range rows {
		for _, f := range x.Servers {
			if !slices.Contains(names, f.Server) {
				names = append(names, f.Server)
			}
		}
	}
	fmt.Fprintf(w, "\n%s (kpps)", title)
	for _, name := range names {
		fmt.Fprintf(w, "\t%s", name)
		if name != meshgate {
			fmt.Fprint(w, "\tratio")
		}
	}
	fmt.Fprintln(w, "\tloss")
	for _, x := range rows {
		fmt.Fprint(w, x.Cell)
		var losses []string
		for _, name := range names {
			f := x.of(name)
			cell, times, loss := "-", "-", "-"
			if f != nil {
				cell, loss = fmt.Sprintf("%.2f (%.0f)", f.CPU, f.Rate/1e3), fmt.Sprintf("%.1f", 100*f.Loss)
				times = fmt.Sprintf("%.2f", x.cheaper(meshgate, name))
			}
			fmt.Fprintf(w, "\t%s", cell)
			if name != meshgate {
				fmt.Fprintf(w, "\t%s", times)
			}
			losses = append(losses, loss)
		}
		fmt.Fprintf(w, "\t%s %%\n", strings.Join(losses, " "))
	}
}

// print writes what a flood did; nil writes nothing.
func (u *underFlood) print(w io.Writer) {
	if u == nil {
		return
	}
	fmt.Fprintf(w, "\nflood of %.0f s\tbytes in\tbytes out\tof that\n", u.Seconds)
	for _, k := range floodKinds() {
		if t := u.Kinds[k]; t != nil {
			fmt.Fprintf(w, "%s\t%d\t%d\t%.2f\n", k, t.In, t.Out, t.factor())
		}
	}
	fmt.Fprintf(w, "%d packets/s; existing allocations sent %.2f of %.0f packets/s and got %.2f through; memory %.1f MB + %.1f MB; server %.0f %% of a CPU\n",
		int(float64(u.Sent)/u.Seconds), u.Offered, u.Wanted, u.Kept, float64(u.Memory)/1e6, float64(u.Growth)/1e6, 100*u.CPU)
}
