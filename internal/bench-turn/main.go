// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command bench-turn measures the TURN server of package turn beside Debian's
// coturn and the server of pion/turn/v3, on one machine.
//
//	sudo go run ./internal/bench-turn [-short] [-json] [-rounds N] [-only PART,...] [-without SERVER,...]
//	sudo go run ./internal/bench-turn -soak 1h [-json]
//
// It needs root, for network namespaces, and coturn. Servers are processes of
// their own, pinned to one CPU; all clients and peers are one process on another. What is
// compared is measured in each of several rounds, in turns, so that a machine
// that is busy with something else slows all alike. Read the CPU time for each
// packet: docs/benchmarks.md tells how. With -soak allocations come and go for so long,
// and nothing is compared: what the server holds must not grow.
//
// It ends with 1 when something could not be measured and, unless -short is
// given, when a goal is missed.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

// The parts that -only names.
const (
	partRelay       = "relay"       // CPU time for each packet, and packets per second
	partLight       = "light"       // the same at light load
	partAllocations = "allocations" // making allocations, and the memory of one
	partOverload    = "overload"    // three times what a server can relay
	partKernel      = "xdp"         // channels in the kernel
	partFlood       = "flood"       // a flood from forged addresses
)

func parts() []string {
	return []string{partRelay, partLight, partAllocations, partOverload, partKernel, partFlood}
}

// options say how much is measured.
type options struct {
	rounds int
	// warm is not counted of a transfer, count is.
	warm, count time.Duration
	// lightCount is that of light load, where few packets are counted.
	lightCount time.Duration
	// clients is how many allocations are made of each server. As many relay as
	// a cell says.
	clients int
	// flood is how long one lasts.
	flood        time.Duration
	cells, light []cell
	// only are parts and without servers; all parts and no servers when empty.
	only, without []string
	limit         time.Duration // for everything
}

func (o options) wants(part string) bool { return len(o.only) == 0 || slices.Contains(o.only, part) }

// full is what takes less than six minutes, brief less than one.
func full() options {
	return options{
		rounds: 5, warm: 100 * time.Millisecond, count: 400 * time.Millisecond, lightCount: time.Second,
		clients: 3000, flood: 10 * time.Second, cells: relayCells(), light: lightCells(), limit: 15 * time.Minute,
	}
}

func brief() options {
	o := full()
	o.rounds, o.warm, o.count, o.lightCount = 1, 50*time.Millisecond, 150*time.Millisecond, 300*time.Millisecond
	o.clients, o.flood, o.limit = many, time.Second, 2*time.Minute
	return o
}

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		if err := runRole(role); err != nil {
			fmt.Fprintf(os.Stderr, "bench-turn: %s: %v\n", role, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-turn:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	short := flag.Bool("short", false, "finish within a minute; the numbers vary more, and goals that are missed are no error")
	asJSON := flag.Bool("json", false, "print JSON instead of tables")
	rounds := flag.Int("rounds", 0, "how many rounds (default 5, with -short 1)")
	only := flag.String("only", "", "measure these parts only: "+strings.Join(parts(), ", "))
	without := flag.String("without", "", "leave out these servers: "+coturn+", "+pion)
	soakFor := flag.Duration("soak", 0, "have allocations come and go for so long instead")
	flag.Parse()
	o := full()
	if *short {
		o = brief()
	}
	o.rounds = cmp.Or(max(*rounds, 0), o.rounds)
	var err error
	if o.only, err = choose("-only", *only, parts()); err != nil {
		return err
	}
	if o.without, err = choose("-without", *without, []string{coturn, pion}); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("making network namespaces needs root; try again with sudo")
	}
	var r *report
	if *soakFor > 0 {
		r, err = soak(ctx, *soakFor)
	} else {
		r, err = measure(ctx, o)
	}
	if r == nil {
		return err
	}
	if !*short {
		err = errors.Join(err, r.missed())
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return errors.Join(err, e.Encode(r))
	}
	return errors.Join(err, r.print(os.Stdout))
}

// choose reads the list of a flag.
func choose(name, list string, from []string) (chosen []string, err error) {
	for one := range strings.SplitSeq(list, ",") {
		if one == "" {
			continue
		}
		if !slices.Contains(from, one) {
			return nil, fmt.Errorf("%s %q: want some of %s", name, one, strings.Join(from, ", "))
		}
		chosen = append(chosen, one)
	}
	return chosen, nil
}
