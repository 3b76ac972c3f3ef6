// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

const (
	// soakGroup is how many clients come at a time, soakStreams how many more over
	// TCP, and as many over TLS, and soakEvery how often. A group takes less than half
	// of that: a machine that has much else to do keeps the pace, too, or else there
	// would be fewer allocations at a time, and less memory, for a while.
	soakGroup   = 100
	soakStreams = 5
	soakEvery   = 500 * time.Millisecond
	// samplesOfSoak is how often memory is looked at, and leastSamples how often it
	// counts at least: a slow machine takes longer for that.
	samplesOfSoak = 120
	leastSamples  = 3
	// floorsOfSoak is of how many runs of looks the least counts: garbage that is not
	// collected yet is no growth.
	floorsOfSoak = 20
	// longestStep is less than the load may be silent.
	longestStep = 20 * time.Second
	// warmth is how long memory may take to reach its level: a sixth of a long run,
	// half of a short one.
	warmth = 30 * time.Second
)

// soaked tells what was left of a long run.
type soaked struct {
	Seconds     float64 `json:"seconds"`
	Allocations int     `json:"allocations"`
	Packets     uint64  `json:"packets"`
	Loss        float64 `json:"loss"`
	// Memory is what was resident at the first and the last look that count (floors),
	// in bytes, and Slope the growth over the run by the line through all of
	// them, in percent.
	Memory [2]int64 `json:"memory"`
	Slope  float64  `json:"slope"`
	// Levels are all looks that count, in bytes, and Pace the least and the most
	// groups in a second before one of them: where these differ much it was the
	// machine that changed.
	Levels []int64    `json:"levels"`
	Pace   [2]float64 `json:"pace"`
	// Files and Ports are how many more the server had open in the end than
	// before the first client.
	Files int `json:"files"`
	Ports int `json:"ports"`
	// Orphans are the ports that a server had open which was killed with all of its
	// clients, and that were still open when the next one at its address was there.
	Orphans int `json:"orphans"`
	// Restart is how long after the kill all of these clients had allocations again,
	// in seconds.
	Restart float64 `json:"restart"`

	series []point
}

// point is the memory of a server at a time.
type point struct{ at, bytes float64 }

// soak has allocations come and go for a while and looks at what stays.
func soak(ctx context.Context, length time.Duration) (*report, error) {
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer w.close()
	r := newReport(options{rounds: 1})
	r.Soak = &soaked{}
	if err := r.Soak.run(ctx, w, length); err != nil {
		return nil, fmt.Errorf("soak: %w", err)
	}
	r.judge()
	return r, nil
}

func (k *soaked) run(ctx context.Context, w *world, length time.Duration) (err error) {
	c, err := w.cableOf(ctx, meshgate)
	if err != nil {
		return err
	}
	// What falls silent ends often during the run.
	lifetime := min(max(length/12, time.Second), 30*time.Second).Truncate(time.Second)
	config := serverConfig{Allocations: 100_000, Answers: 1_000_000, Lifetime: lifetime, Secure: true}
	s, err := w.serve(ctx, meshgate, c, config)
	if err != nil {
		return err
	}
	defer s.end()
	files, err := s.files()
	if err != nil {
		return err
	}
	ports, err := s.sockets()
	if err != nil {
		return err
	}
	if err := k.churn(ctx, w, s, length, lifetime); err != nil {
		return s.blame(err)
	}
	if err := k.left(ctx, s, files, ports, lifetime); err != nil {
		return err
	}
	return k.restart(ctx, w, s, config, ports)
}

// restart kills a server while clients have allocations there, and lets them come to
// another one at its address, which needs what the first one had open.
func (k *soaked) restart(ctx context.Context, w *world, s *server, config serverConfig, ports int) error {
	if _, err := w.connect(ctx, s, soakGroup); err != nil {
		return err
	}
	s.kill()
	begin := time.Now()
	next, err := w.serve(ctx, meshgate, s.cable, config)
	if err != nil {
		return err
	}
	defer next.end()
	now, err := next.sockets()
	if err != nil {
		return err
	}
	k.Orphans = now - ports
	_, err = w.connect(ctx, next, soakGroup)
	k.Restart = time.Since(begin).Seconds()
	return err
}

// churn is the run itself, in steps.
func (k *soaked) churn(ctx context.Context, w *world, s *server, length, lifetime time.Duration) error {
	step := min(length/samplesOfSoak, longestStep)
	var all transferred
	for begin := time.Now(); time.Since(begin) < length || len(k.series) < leastSamples; {
		came := time.Now()
		r, err := w.tell(ctx, order{Server: s.name, Churn: &churnOrder{
			Login: s.login, PID: s.pid, Peers: s.cable.load, Group: soakGroup, Streams: soakStreams, Length: step, Every: soakEvery, Lifetime: lifetime,
		}})
		if err != nil {
			return err
		}
		all.Sent += r.Transferred.Sent
		all.Delivered += r.Transferred.Delivered
		k.Allocations += r.Groups * (soakGroup + 2*soakStreams)
		now, err := s.memory()
		if err != nil {
			return err
		}
		if k.Seconds = time.Since(begin).Seconds(); k.Seconds < max(length/6, min(warmth, length/2)).Seconds() {
			continue
		}
		k.series = append(k.series, point{k.Seconds, float64(now)})
		k.paced(float64(r.Groups) / time.Since(came).Seconds())
	}
	k.Packets, k.Loss = all.Delivered, all.loss()
	levels := floors(k.series, floorsOfSoak)
	k.Memory = [2]int64{int64(levels[0].bytes), int64(levels[len(levels)-1].bytes)}
	k.Slope = 100 * growth(levels)
	for _, p := range levels {
		k.Levels = append(k.Levels, int64(p.bytes))
	}
	return nil
}

// paced notes the pace of a step.
func (k *soaked) paced(pace float64) {
	if len(k.series) == 1 {
		k.Pace = [2]float64{pace, pace}
	}
	k.Pace = [2]float64{min(k.Pace[0], pace), max(k.Pace[1], pace)}
}

// floors cuts a series into n runs of neighbours, or fewer where it has fewer points,
// and returns the least point of each.
func floors(series []point, n int) []point {
	n = min(n, len(series))
	list := make([]point, n)
	for i := range list {
		run := series[i*len(series)/n : (i+1)*len(series)/n]
		list[i] = slices.MinFunc(run, func(a, b point) int { return cmp.Compare(a.bytes, b.bytes) })
	}
	return list
}

// growth is by what part of the mean the line through all points rises from the
// first to the last of them (least squares).
func growth(series []point) float64 {
	var at, bytes, both, squares float64
	n := float64(len(series))
	for _, p := range series {
		at, bytes = at+p.at/n, bytes+p.bytes/n
	}
	for _, p := range series {
		both += (p.at - at) * (p.bytes - bytes)
		squares += (p.at - at) * (p.at - at)
	}
	return both / squares * (series[len(series)-1].at - series[0].at) / bytes
}

// left waits until all allocations have ended, and sees what is still open.
func (k *soaked) left(ctx context.Context, s *server, files, ports int, lifetime time.Duration) error {
	for end := time.Now().Add(lifetime + 10*time.Second); ; {
		nowFiles, err := s.files()
		if err != nil {
			return err
		}
		nowPorts, err := s.sockets()
		if err != nil {
			return err
		}
		if k.Files, k.Ports = nowFiles-files, nowPorts-ports; k.Files <= 0 && k.Ports <= 0 || time.Now().After(end) {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// print writes what was left; nil writes nothing.
func (k *soaked) print(w io.Writer) {
	if k == nil {
		return
	}
	fmt.Fprintf(w, "\nsoak of %.0f s: %d allocations, %d packets, %.2f %% lost\n", k.Seconds, k.Allocations, k.Packets, 100*k.Loss)
	fmt.Fprintf(w, "memory %.1f to %.1f MB, %+.1f %% over the run; %d files and %d ports left open; serves %.1f s after a kill, with %d ports left open\n",
		float64(k.Memory[0])/1e6, float64(k.Memory[1])/1e6, k.Slope, k.Files, k.Ports, k.Restart, k.Orphans)
	fmt.Fprintf(w, "%.1f to %.1f groups a second; levels of memory in MB:", k.Pace[0], k.Pace[1])
	for _, level := range k.Levels {
		fmt.Fprintf(w, " %.1f", float64(level)/1e6)
	}
	fmt.Fprintln(w)
}
