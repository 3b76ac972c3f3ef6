// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command chaos shows that the replicated state of a mesh keeps its promises
// while everything around it breaks.
//
//	go run ./internal/chaos [-short] [-seed N] [-faults N] [-operations N] [-rounds N]
//
// It needs root on Linux, and touches nothing outside of namespaces and
// temporary files of its own. Three replicas, each in a network namespace and
// on a file system of its own, are killed, paused, cut off, and lose packets,
// disk space and power, while clients use them; then all lose their power at
// once. What the clients saw has to be explained by one copy of each key,
// changed by one operation at a time. After that it kills the leader of three
// gateways again and again, and measures how long no change is taken.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"time"
)

func main() {
	found, err := asked()
	if !found {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	short := flag.Bool("short", false, "finish within a minute; such a run does not count")
	seed := flag.Uint64("seed", rand.Uint64(), "decides which faults happen to whom; not what comes of it")
	rounds := flag.Int("rounds", 20, "how often the leader of three gateways is killed")
	operations := flag.Int("operations", 0, "at least so many operations of clients; 0: as many as make the run count")
	wanted := flag.Int("faults", 0, "at least so many faults; 0: as many as make the run count")
	only := flag.String("only", "", "names of kinds of faults, with semicolons between them: no others happen, and the run does not count")
	stale := flag.Bool("stale-reads", false, "break the replicas, to see that the run fails")
	flag.Parse()
	cfg := long(*seed)
	if *short {
		cfg = brief(*seed)
	}
	cfg.StaleReads = *stale
	if *only != "" {
		if cfg.Only = strings.Split(*only, ";"); len(cfg.kinds()) < len(cfg.Only) {
			return fmt.Errorf("-only %q: the kinds are %q", *only, names(faults()))
		}
	}
	cfg.Operations, cfg.Faults = cmp.Or(*operations, cfg.Operations), cmp.Or(*wanted, cfg.Faults)
	out, err := explore(ctx, cfg, os.Stderr)
	if err != nil {
		return err
	}
	out.print(os.Stdout)
	if *short || *only != "" {
		err = out.right()
	} else {
		err = out.valid(cfg)
	}
	if err != nil {
		return err
	}
	return leaders(ctx, *rounds)
}

// long is a run that counts.
func long(seed uint64) settings {
	return settings{
		Operations: 150_000, Faults: 300, Limit: 21 * time.Minute, Clients: 8, Pace: 40 * time.Millisecond,
		Length: 4 * time.Second, Calm: 2500 * time.Millisecond, LongStalls: true, Seed: seed, CheckLimit: 3 * time.Minute,
	}
}

// brief is one that shows every kind of fault.
func brief(seed uint64) settings {
	return settings{
		Operations: 2000, Faults: len(faults()), Limit: 2 * time.Minute, Clients: 8, Pace: 10 * time.Millisecond,
		Length: time.Second, Calm: 500 * time.Millisecond, Seed: seed, CheckLimit: time.Minute,
	}
}
