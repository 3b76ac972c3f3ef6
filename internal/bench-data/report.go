// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/meshgate/meshgate/internal/sample"
)

// The goals of the data plane on one machine.
const (
	goalNative   = 1.0  // of plain wireguard-go
	goalFound    = 0.95 // of native
	goalNetstack = 0.5  // of plain wireguard-go
	goalRSS      = 1.2  // of plain wireguard-go
)

// report is all that was measured. Its JSON is for machines.
type report struct {
	Date   time.Time `json:"date"`
	Commit string    `json:"commit,omitempty"`
	Go     string    `json:"go"`
	CPUs   int       `json:"cpus"`
	Rounds int       `json:"rounds"`
	Ways   []*result `json:"ways"`
	Goals  []goal    `json:"goals"`
}

// result is what one way did; all but Rounds are medians.
type result struct {
	Way string `json:"way"`
	// Rounds are the rates of a TCP stream, in Mbit/s.
	Rounds []float64 `json:"rounds"`
	Median float64   `json:"median"`
	// OfPlain is the median of the ratios to plain wireguard-go of the same round.
	OfPlain float64 `json:"of_plain"`
	// CPU are seconds of the CPU time of both tunnels for each GB of the stream.
	CPU float64 `json:"cpu"`
	// Loss is the part of the datagrams that did not arrive, sent at Sent Mbit/s;
	// none are sent where only TCP goes.
	Loss float64 `json:"loss"`
	Sent float64 `json:"sent"`
	// RSS is what the larger of the two tunnels holds resident, in MB, and Anon
	// the part of it that is not of a file.
	RSS  float64 `json:"rss"`
	Anon float64 `json:"anon"`

	all []one
}

// one is what a way did in one round.
type one struct{ rate, cpu, loss, sent, rss, anon float64 }

type goal struct {
	Name string  `json:"name"`
	Want string  `json:"want"`
	Got  float64 `json:"got"`
	Met  bool    `json:"met"`
}

func newReport(o options) *report {
	r := &report{Date: time.Now().UTC().Truncate(time.Second), Go: runtime.Version(), CPUs: runtime.NumCPU(), Rounds: o.rounds}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				r.Commit = s.Value
			}
		}
	}
	return r
}

// of returns the result of a way; nil if it was not measured.
func (r *report) of(way string) *result {
	for _, w := range r.Ways {
		if w.Way == way {
			return w
		}
	}
	return nil
}

// add notes one round.
func (r *report) add(way string, o one) {
	w := r.of(way)
	if w == nil {
		w = &result{Way: way}
		r.Ways = append(r.Ways, w)
	}
	w.all = append(w.all, o)
	w.Rounds = append(w.Rounds, math.Round(o.rate))
}

// median is that of one value of all rounds.
func (w *result) median(of func(one) float64) float64 {
	list := make([]float64, 0, len(w.all))
	for _, o := range w.all {
		list = append(list, of(o))
	}
	return sample.Median(list)
}

// ratio is the median of the ratios of one value in the same rounds, to two
// digits.
func (w *result) ratio(to *result, of func(one) float64) float64 {
	if to == nil {
		return math.NaN()
	}
	var list []float64
	for i := range min(len(w.all), len(to.all)) {
		list = append(list, of(w.all[i])/of(to.all[i]))
	}
	return math.Round(100*sample.Median(list)) / 100
}

// judge computes what follows from the rounds, and holds it against the goals.
func (r *report) judge() {
	rate, rss := func(o one) float64 { return o.rate }, func(o one) float64 { return o.rss }
	plain := r.of(wayPlain)
	for _, w := range r.Ways {
		w.Median = math.Round(w.median(rate))
		w.CPU = w.median(func(o one) float64 { return o.cpu })
		w.Loss, w.Sent = w.median(func(o one) float64 { return o.loss }), w.median(func(o one) float64 { return o.sent })
		w.RSS, w.OfPlain = w.median(rss), w.ratio(plain, rate)
		w.Anon = w.median(func(o one) float64 { return o.anon })
	}
	native := r.of(wayNative)
	if native != nil {
		r.goal("native, of wireguard-go's rate", ">=", goalNative, native.OfPlain)
		r.goal("native, of wireguard-go's memory", "<=", goalRSS, native.ratio(plain, rss))
	}
	if w := r.of(wayFound); w != nil {
		if native != nil {
			r.goal("ice, of native's rate", ">=", goalFound, w.ratio(native, rate))
		}
		r.goal("ice, of wireguard-go's memory", "<=", goalRSS, w.ratio(plain, rss))
	}
	if w := r.of(wayNetstack); w != nil {
		r.goal("netstack, of wireguard-go's rate", ">=", goalNetstack, w.OfPlain)
	}
}

func (r *report) goal(name, is string, want, got float64) {
	met := got >= want
	if is == "<=" {
		met = got <= want
	}
	r.Goals = append(r.Goals, goal{Name: name, Want: fmt.Sprintf("%s %g", is, want), Got: got, Met: met})
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
	return errors.New("goals missed: " + strings.Join(names, "; "))
}

// print writes tables for people.
func (r *report) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s, %s, %d CPUs, %d rounds\n\n", r.Date.Format(time.RFC3339), r.Go, r.CPUs, r.Rounds)
	fmt.Fprintf(w, "way\tTCP Mbit/s\tof wireguard-go\tCPU s/GB\tUDP loss\tat Mbit/s\tRSS MB\tof it no file\trounds\n")
	for _, x := range r.Ways {
		loss, sent := "-", "-"
		if x.Sent > 0 {
			loss, sent = fmt.Sprintf("%.2f %%", 100*x.Loss), fmt.Sprintf("%.0f", x.Sent)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.2f\t%s\t%s\t%.1f\t%.1f\t%.0f\n", x.Way, x.Median, x.OfPlain, x.CPU, loss, sent, x.RSS, x.Anon, x.Rounds)
	}
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
