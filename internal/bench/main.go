// SPDX-License-Identifier: Apache-2.0

// Command bench measures the whole product beside what it is built on, on one
// machine: the built binary, services and clients run in processes of their
// own, as they do in use.
//
//	go run ./internal/bench [-short] [-json] [-rounds N] [-chromium=false]
//
// Everything that is compared is measured in each of several rounds, in turns,
// so that a machine that is busy with something else slows all alike. Read the
// ratios: docs/benchmarks.md tells how.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/meshgate/meshgate/internal/child"
)

// options say how much is measured.
type options struct {
	rounds   int
	window   window
	opens    int           // peer connections in Go
	webOpens int           // the same in Chromium
	conns    time.Duration // how long connections are opened
	limit    time.Duration // for everything, building aside
	chromium bool
}

func main() {
	role := os.Getenv(roleEnv)
	if role != "" {
		if err := runRole(role); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", role, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	short := flag.Bool("short", false, "finish within 40 s; the numbers vary more")
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	rounds := flag.Int("rounds", 0, "how many rounds (default 5, with -short 2)")
	chromium := flag.Bool("chromium", true, "measure Chromium too; needs it, node and the modules of package.json")
	flag.Parse()
	o := options{
		rounds: 5, window: window{Warm: 300 * time.Millisecond, Count: time.Second},
		opens: 200, webOpens: 30, conns: 3 * time.Second, limit: 4 * time.Minute, chromium: *chromium,
	}
	if *short {
		o.rounds, o.window = 2, window{Warm: 200 * time.Millisecond, Count: 300 * time.Millisecond}
		o.opens, o.webOpens, o.conns, o.limit = 100, 10, time.Second, time.Minute
	}
	if *rounds > 0 {
		o.limit = time.Duration(*rounds) * o.limit / time.Duration(o.rounds)
		o.rounds = *rounds
	}
	r, err := measure(ctx, o)
	if err != nil {
		return err
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.print(os.Stdout)
}

// measure starts what is needed, measures everything and ends it again.
func measure(ctx context.Context, o options) (r *report, err error) {
	binary, remove, err := build(ctx)
	if err != nil {
		return nil, err
	}
	defer remove()
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	w, err := newWorld(ctx, binary, o.window)
	if err != nil {
		return nil, err
	}
	defer w.close()
	paths := w.goPaths()
	var b *browser
	if o.chromium {
		if b, err = startBrowser(ctx, w); err != nil {
			return nil, err
		}
		defer b.close()
		paths = append(paths, b.paths()...)
	}
	r = newReport(o)
	if err := r.throughput(ctx, o.rounds, o.window.all(), paths); err != nil {
		return nil, err
	}
	goOpens, err := w.opens(ctx, o.opens)
	if err != nil {
		return nil, fmt.Errorf("open peer connections: %w", err)
	}
	r.addOpens("Go", goOpens)
	if b != nil {
		webOpens, err := b.opens(ctx, o.webOpens)
		if err != nil {
			return nil, fmt.Errorf("open peer connections in Chromium: %w", err)
		}
		r.addOpens("Chromium", webOpens)
	}
	for _, parallel := range []int{1, 32} {
		rate, err := w.connections(ctx, parallel, o.conns)
		if err != nil {
			return nil, fmt.Errorf("open connections: %w", err)
		}
		r.Connections = append(r.Connections, connectionRate{Parallel: parallel, PerSecond: rate})
	}
	r.judge()
	return r, nil
}

// path is one way for bytes between a client and a service.
type path struct {
	client, name string
	server       *child.Process // where the DataChannel ends
	// measure returns bytes per second.
	measure func(ctx context.Context, d direction) (float64, error)
}

// direction is as the client sees it.
type direction string

const (
	up   direction = "up"
	down direction = "down"
)

// Names of paths, from the least to the most in between.
const (
	pathRaw       = "raw DataChannel"
	pathRawTCP    = "raw DataChannel and TCP"
	pathMeshgate  = "Meshgate"
	pathWireGuard = "Meshgate and WireGuard"
)

// run measures once, and tells the CPU time that it took the server.
func (p path) run(ctx context.Context, d direction) (rate float64, cpu time.Duration, err error) {
	before, err := p.server.CPU()
	if err != nil {
		return 0, 0, err
	}
	if rate, err = p.measure(ctx, d); err != nil {
		return 0, 0, err
	}
	after, err := p.server.CPU()
	return rate, after - before, err
}

// throughput measures each path in both directions once in each round, for as
// long as told. Every other round goes backwards, so that nobody is always
// behind the same one.
func (r *report) throughput(ctx context.Context, rounds int, all time.Duration, paths []path) error {
	type step struct {
		path
		d direction
	}
	var steps []step
	for _, p := range paths {
		steps = append(steps, step{p, up}, step{p, down})
	}
	for range rounds {
		for _, s := range steps {
			rate, cpu, err := s.run(ctx, s.d)
			if err != nil {
				return fmt.Errorf("%s, %s, %s: %w", s.client, s.name, s.d, err)
			}
			r.add(s.client, s.name, s.d, rate, cpu.Seconds()/(rate*all.Seconds()))
		}
		slices.Reverse(steps)
	}
	return nil
}
