// SPDX-License-Identifier: Apache-2.0

package main

import (
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

// The goals of the product on one machine.
const (
	goalRatio = 0.9
	goalP50   = 30.0  // ms
	goalP99   = 150.0 // ms
)

// report is all that was measured. Its JSON is for machines.
type report struct {
	Date        time.Time        `json:"date"`
	Commit      string           `json:"commit,omitempty"`
	Go          string           `json:"go"`
	CPUs        int              `json:"cpus"`
	Rounds      int              `json:"rounds"`
	Transfers   []*transfer      `json:"transfers"`
	Opens       []openTimes      `json:"opens"`
	Connections []connectionRate `json:"connections"`
	Goals       []goal           `json:"goals"`
}

// transfer is one path in one direction.
type transfer struct {
	Client    string    `json:"client"`
	Path      string    `json:"path"`
	Direction direction `json:"direction"`
	// Rounds are in Mbit/s, and so is their median.
	Rounds []float64 `json:"rounds"`
	Median float64   `json:"median"`
	// CPU are seconds of CPU time for each GiB, of the process in which the
	// DataChannel ends: each round, and their median.
	CPU       []float64 `json:"cpu"`
	CPUMedian float64   `json:"cpu_median"`
	// OfRaw and OfRawTCP are medians of the ratios to the raw paths of the same round.
	OfRaw    float64 `json:"of_raw"`
	OfRawTCP float64 `json:"of_raw_tcp"`
}

// openTimes are in milliseconds from the request.
type openTimes struct {
	Client       string  `json:"client"`
	Runs         int     `json:"runs"`
	OpenP50      float64 `json:"open_p50"`
	OpenP99      float64 `json:"open_p99"`
	FirstByteP50 float64 `json:"first_byte_p50"`
	FirstByteP99 float64 `json:"first_byte_p99"`
}

// connectionRate is how many connections were opened, used and closed.
type connectionRate struct {
	Parallel  int     `json:"parallel"`
	PerSecond float64 `json:"per_second"`
}

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

// add notes a rate in bytes per second, and the CPU seconds for each byte.
func (r *report) add(client, path string, d direction, rate, cpu float64) {
	t := r.find(client, path, d)
	if t == nil {
		t = &transfer{Client: client, Path: path, Direction: d}
		r.Transfers = append(r.Transfers, t)
	}
	t.Rounds = append(t.Rounds, math.Round(rate*8/1e5)/10)
	t.CPU = append(t.CPU, math.Round(cpu*(1<<30)*10)/10)
}

func (r *report) find(client, path string, d direction) *transfer {
	for _, t := range r.Transfers {
		if t.Client == client && t.Path == path && t.Direction == d {
			return t
		}
	}
	return nil
}

func (r *report) addOpens(client string, all []opening) {
	ms := func(part func(opening) time.Duration, q float64) float64 {
		var list []float64
		for _, o := range all {
			list = append(list, part(o).Seconds()*1000)
		}
		return math.Round(sample.Quantile(list, q)*10) / 10
	}
	open := func(o opening) time.Duration { return o.open }
	first := func(o opening) time.Duration { return o.firstByte }
	r.Opens = append(r.Opens, openTimes{
		Client: client, Runs: len(all),
		OpenP50: ms(open, .5), OpenP99: ms(open, .99), FirstByteP50: ms(first, .5), FirstByteP99: ms(first, .99),
	})
}

// ratio is the median of the ratios of the same round.
func (t *transfer) ratio(to *transfer) float64 {
	var list []float64
	for i, rate := range t.Rounds {
		list = append(list, rate/to.Rounds[i])
	}
	return math.Round(sample.Median(list)*100) / 100
}

// judge computes what follows from the rounds, and holds it against the goals.
func (r *report) judge() {
	for _, t := range r.Transfers {
		t.Median = math.Round(sample.Median(t.Rounds)*10) / 10
		t.CPUMedian = math.Round(sample.Median(t.CPU)*10) / 10
		t.OfRaw = t.ratio(r.find(t.Client, pathRaw, t.Direction))
		t.OfRawTCP = t.ratio(r.find(t.Client, pathRawTCP, t.Direction))
		if t.Path == pathMeshgate {
			r.Goals = append(r.Goals, goal{
				Name: fmt.Sprintf("%s, %s, of raw+TCP", t.Client, t.Direction),
				Want: fmt.Sprintf(">= %.2f", goalRatio), Got: t.OfRawTCP, Met: t.OfRawTCP >= goalRatio,
			})
		}
	}
	for _, o := range r.Opens {
		if o.Client != "Go" {
			continue // a browser takes its own time
		}
		for _, g := range []struct {
			name      string
			got, want float64
		}{
			{"request to open, p50", o.OpenP50, goalP50}, {"request to open, p99", o.OpenP99, goalP99},
			{"request to first byte, p50", o.FirstByteP50, goalP50}, {"request to first byte, p99", o.FirstByteP99, goalP99},
		} {
			r.Goals = append(r.Goals, goal{Name: g.name, Want: fmt.Sprintf("<= %.0f ms", g.want), Got: g.got, Met: g.got <= g.want})
		}
	}
}

// print writes the report for people.
func (r *report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...string) {
		const columns = 9
		fmt.Fprintln(w, strings.Join(cells, "\t")+strings.Repeat("\t", columns+1-len(cells)))
	}
	row(fmt.Sprintf("Mbit/s, medians of %d rounds", r.Rounds),
		"up", "of raw", "of raw+TCP", "CPU s/GiB", "down", "of raw", "of raw+TCP", "CPU s/GiB")
	for _, t := range r.Transfers {
		if t.Direction == up {
			row(append(append([]string{t.Client + ", " + t.Path}, t.cells()...), r.find(t.Client, t.Path, down).cells()...)...)
		}
	}
	row()
	row("StartDataChannel, ms", "open p50", "p99", "first byte p50", "p99")
	for _, o := range r.Opens {
		row(fmt.Sprintf("%s, %d runs", o.Client, o.Runs), tenths(o.OpenP50), tenths(o.OpenP99), tenths(o.FirstByteP50), tenths(o.FirstByteP99))
	}
	row()
	row("connections in one peer connection", "per second")
	for _, c := range r.Connections {
		row(fmt.Sprintf("%d at a time", c.Parallel), fmt.Sprintf("%.0f", c.PerSecond))
	}
	row()
	row("goals", "got", "want")
	for _, g := range r.Goals {
		met := ""
		if !g.Met {
			met = "missed"
		}
		row(g.Name, fmt.Sprintf("%.2f", g.Got), g.Want, met)
	}
	return w.Flush()
}

// cells are the columns of one direction.
func (t *transfer) cells() []string {
	return []string{
		fmt.Sprintf("%.0f", t.Median), fmt.Sprintf("%.2f", t.OfRaw), fmt.Sprintf("%.2f", t.OfRawTCP), fmt.Sprintf("%.0f", t.CPUMedian),
	}
}

func tenths(ms float64) string { return fmt.Sprintf("%.1f", ms) }
