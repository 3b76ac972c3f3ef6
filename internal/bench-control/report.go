// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/meshgate/meshgate/internal/bench-control/writer"
	"github.com/meshgate/meshgate/internal/sample"
)

// The goals of the control plane on one machine.
const (
	goalSize      = 10_000 // nodes
	goalJoin      = 20.0   // ms
	goalGrowth    = 2.0    // times the p99 at the smallest size
	goalFanOut    = 1000.0 // ms
	goalRSS       = 300    // MB
	goalWrites    = 1.0    // of etcd
	bytesOfMB     = 1e6
	milliseconds  = 1e3
	hundredthPart = 100
)

// clientCounts are with how many clients writes are measured.
var clientCounts = []int{1, 64}

// report is all that was measured. Its JSON is for machines.
type report struct {
	Date   time.Time `json:"date"`
	Commit string    `json:"commit,omitempty"`
	Go     string    `json:"go"`
	CPUs   int       `json:"cpus"`
	// Load is that of the machine over a minute, before and after.
	Load    [2]string `json:"load"`
	Rounds  int       `json:"rounds"`
	Joins   []joins   `json:"joins,omitempty"`
	Memory  []memory  `json:"memory,omitempty"`
	Reads   []read    `json:"reads,omitempty"`
	FanOuts []fanOut  `json:"fan_outs,omitempty"`
	Writes  []*writes `json:"writes,omitempty"`
	Goals   []goal    `json:"goals"`
}

// joins are those into a mesh of a size.
type joins struct {
	Shape shape `json:"shape"`
	Nodes int   `json:"nodes"`
	// Fill is how many nodes joined per second until the mesh had its size.
	Fill float64 `json:"fill"`
	// P50 and P99 are those of one join at a time, in ms; PerSecond and
	// ManyP99 of many.
	P50       float64 `json:"p50"`
	P99       float64 `json:"p99"`
	PerSecond float64 `json:"per_second"`
	ManyP99   float64 `json:"many_p99"`
	// CPU is that of the gateway for one that joins and leaves again, in ms.
	CPU float64 `json:"cpu"`
	// SyncP50 and SyncP99 are those of a write and a sync of the disk, as one
	// join takes, measured in between.
	SyncP50 float64 `json:"sync_p50"`
	SyncP99 float64 `json:"sync_p99"`
}

// memory is what a gateway holds resident with a mesh, in bytes.
type memory struct {
	Shape shape `json:"shape"`
	Nodes int   `json:"nodes"`
	Now   int64 `json:"now"`
	Most  int64 `json:"most"`
}

// read is a list of the whole mesh; times are in ms.
type read struct {
	Shape shape   `json:"shape"`
	RPC   string  `json:"rpc"`
	Nodes int     `json:"nodes"`
	P50   float64 `json:"p50"`
	Most  float64 `json:"most"`
	Bytes int     `json:"bytes"`
}

// fanOut is the time until the last subscriber has a change and the CPU time that
// the gateway takes for one, in ms, and what it holds resident with all of them,
// in bytes.
type fanOut struct {
	Shape       shape   `json:"shape"`
	Change      string  `json:"change"`
	Nodes       int     `json:"nodes"`
	Subscribers int     `json:"subscribers"`
	P50         float64 `json:"p50"`
	Most        float64 `json:"most"`
	CPU         float64 `json:"cpu"`
	RSS         int64   `json:"rss"`
}

// writes are those to one cluster.
type writes struct {
	To      string `json:"to"`
	Clients int    `json:"clients"`
	// Rounds are acknowledged writes per second; the rest are medians: times in
	// ms, CPU in ms of all members for each write.
	Rounds []float64 `json:"rounds"`
	Median float64   `json:"median"`
	P50    float64   `json:"p50"`
	P99    float64   `json:"p99"`
	CPU    float64   `json:"cpu"`
	// OfEtcd is the median of the ratios of the same round.
	OfEtcd float64 `json:"of_etcd"`

	p50, p99, cpu []float64
}

type goal struct {
	Name string  `json:"name"`
	Want string  `json:"want"`
	Got  float64 `json:"got"`
	Met  bool    `json:"met"`
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

// addWrite notes one round.
func (r *report) addWrite(to string, clients int, one writer.Result, cpu time.Duration) {
	w := r.writes(to, clients)
	if w == nil {
		w = &writes{To: to, Clients: clients}
		r.Writes = append(r.Writes, w)
	}
	w.Rounds = append(w.Rounds, math.Round(one.Acked))
	w.p50, w.p99 = append(w.p50, one.P50), append(w.p99, one.P99)
	w.cpu = append(w.cpu, cpu.Seconds()*milliseconds)
}

func (r *report) writes(to string, clients int) *writes {
	for _, w := range r.Writes {
		if w.To == to && w.Clients == clients {
			return w
		}
	}
	return nil
}

// judge computes what follows from the rounds, and holds it against the goals.
func (r *report) judge() {
	r.Load[1] = loadAverage()
	for _, w := range r.Writes {
		w.Median, w.P50, w.P99, w.CPU = sample.Median(w.Rounds), sample.Median(w.p50), sample.Median(w.p99), sample.Median(w.cpu)
		if w.OfEtcd = w.ratio(r.writes(toEtcd, w.Clients)); w.To == toReplicas && w.OfEtcd > 0 {
			r.atLeast(fmt.Sprintf("writes, %d clients, of etcd's", w.Clients), goalWrites, w.OfEtcd)
		}
	}
	for _, j := range r.Joins {
		if j.Nodes != goalSize {
			continue
		}
		r.atMost(fmt.Sprintf("join p99, %s, %d nodes, ms", j.Shape, j.Nodes), goalJoin, j.P99)
		for _, small := range r.Joins {
			if small.Shape == j.Shape {
				r.atMost(fmt.Sprintf("join p99, %s, %d nodes, of that at %d", j.Shape, j.Nodes, small.Nodes), goalGrowth, j.P99/small.P99)
				break
			}
		}
	}
	for _, f := range r.FanOuts {
		r.atMost(fmt.Sprintf("last of %d subscribers, %s, %d nodes, %s, ms", f.Subscribers, f.Shape, f.Nodes, f.Change), goalFanOut, f.Most)
	}
	for _, m := range r.Memory {
		r.atMost(fmt.Sprintf("RSS, %s, %d nodes, MB", m.Shape, m.Nodes+1), goalRSS, float64(m.Now)/bytesOfMB)
	}
}

// ratio is the median of the ratios of the same round; 0 if there is none.
func (w *writes) ratio(to *writes) float64 {
	if to == nil {
		return 0
	}
	var list []float64
	for i := range min(len(w.Rounds), len(to.Rounds)) {
		list = append(list, w.Rounds[i]/max(to.Rounds[i], 1))
	}
	if len(list) == 0 {
		return 0
	}
	return math.Round(sample.Median(list)*hundredthPart) / hundredthPart
}

func (r *report) atLeast(name string, want, got float64) {
	r.Goals = append(r.Goals, goal{Name: name, Want: fmt.Sprintf(">= %g", want), Got: got, Met: got >= want})
}

func (r *report) atMost(name string, want, got float64) {
	r.Goals = append(r.Goals, goal{Name: name, Want: fmt.Sprintf("<= %g", want), Got: got, Met: got <= want})
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

// print writes the report for people.
func (r *report) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(format string, cells ...any) {
		const columns = 9
		line := fmt.Sprintf(format, cells...)
		fmt.Fprintln(t, line+strings.Repeat("\t", columns-strings.Count(line, "\t")))
	}
	row("%s, %d CPUs, load %s before and %s after", r.Go, r.CPUs, r.Load[0], r.Load[1])
	if len(r.Joins) > 0 {
		row("")
		row("joins, ms\tp50\tp99\tper second\tp99 of %d at a time\tfilling, per second\tsync p50\tp99\tCPU ms each", together)
	}
	for _, j := range r.Joins {
		row("%s, %d nodes\t%.1f\t%.1f\t%.0f\t%.1f\t%.0f\t%.1f\t%.1f\t%.1f",
			j.Shape, j.Nodes, j.P50, j.P99, j.PerSecond, j.ManyP99, j.Fill, j.SyncP50, j.SyncP99, j.CPU)
	}
	if len(r.Reads) > 0 {
		row("")
		row("reads, ms\tp50\tmost\tMB")
	}
	for _, d := range r.Reads {
		row("%s, %s, %d nodes\t%.0f\t%.0f\t%.1f", d.RPC, d.Shape, d.Nodes, d.P50, d.Most, float64(d.Bytes)/bytesOfMB)
	}
	if len(r.FanOuts) > 0 {
		row("")
		row("until the last subscriber has a change, ms\tp50\tmost\tCPU ms each\tRSS, MB")
	}
	for _, f := range r.FanOuts {
		row("%s, %d of %d nodes, %s\t%.0f\t%.0f\t%.0f\t%.0f", f.Change, f.Subscribers, f.Nodes, f.Shape, f.P50, f.Most, f.CPU, float64(f.RSS)/bytesOfMB)
	}
	if len(r.Memory) > 0 {
		row("")
		row("RSS of the gateway, MB\tnow\tmost")
	}
	for _, m := range r.Memory {
		row("%s, %d nodes\t%.0f\t%.0f", m.Shape, m.Nodes+1, float64(m.Now)/bytesOfMB, float64(m.Most)/bytesOfMB)
	}
	if len(r.Writes) > 0 {
		row("")
		row("acknowledged writes, medians of %d rounds\tof etcd\tper second\tp50 ms\tp99 ms\tCPU ms each", r.Rounds)
	}
	for _, w := range r.Writes {
		row("%s, %d clients\t%.2f\t%.0f\t%.2f\t%.2f\t%.2f", w.To, w.Clients, w.OfEtcd, w.Median, w.P50, w.P99, w.CPU)
	}
	row("")
	row("goals\tgot\twant")
	for _, g := range r.Goals {
		met := "met"
		if !g.Met {
			met = "MISSED"
		}
		row("%s\t%.2f\t%s\t%s", g.Name, g.Got, g.Want, met)
	}
	return t.Flush()
}
