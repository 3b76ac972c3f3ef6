// SPDX-License-Identifier: Apache-2.0

// Command bench-data measures the data plane on one machine: a plain veth pair,
// plain wireguard-go over it, and the same between nodes of Meshgate that know
// each other's address, that found a direct path, or that only a TURN server
// joins, in network namespaces of its own. Tunnels, senders and receivers are
// processes of their own; what passes the host of the gateways tells that packets
// go the way they have to.
//
//	sudo go run ./internal/bench-data [-short] [-json] [-rounds N] [-only WAY,...]
//
// It needs root, for the namespaces. Everything that is compared is measured in
// each of several rounds, in turns, so that a machine that is busy with
// something else slows all alike. Read the ratios: docs/benchmarks.md tells how.
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

	"github.com/meshgate/meshgate/internal/child"
)

// options say how much is measured.
type options struct {
	rounds int
	// warm is not counted of a transfer, count is.
	warm, count time.Duration
	// datagrams is the rate at which datagrams are sent, in bits per second.
	datagrams float64
	only      []string
	limit     time.Duration // for everything, building aside
}

// wants reports whether a way is to be measured. The plain ones always are: the
// others are held against them.
func (o options) wants(way string) bool {
	return len(o.only) == 0 || way == wayVeth || way == wayPlain || slices.Contains(o.only, way)
}

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		if err := runRole(role); err != nil {
			fmt.Fprintf(os.Stderr, "bench-data: %s: %v\n", role, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-data:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	short := flag.Bool("short", false, "finish within a minute; the numbers vary more, and goals that are missed are no error")
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	rounds := flag.Int("rounds", 0, "how many rounds (default 7, with -short 2)")
	only := flag.String("only", "", "measure these ways beside the plain ones only: "+strings.Join(ways, ", "))
	flag.Parse()
	o := options{rounds: 7, warm: 500 * time.Millisecond, count: 2 * time.Second, datagrams: 200e6, limit: 10 * time.Minute}
	if *short {
		o.rounds, o.warm, o.count, o.limit = 2, 300*time.Millisecond, 700*time.Millisecond, 2*time.Minute
	}
	o.rounds = cmp.Or(max(*rounds, 0), o.rounds)
	for way := range strings.SplitSeq(*only, ",") {
		if way == "" {
			continue
		}
		if !slices.Contains(ways, way) {
			return fmt.Errorf("-only %q: want some of %s", way, strings.Join(ways, ", "))
		}
		o.only = append(o.only, way)
	}
	if os.Geteuid() != 0 {
		return errors.New("making network namespaces needs root; try again with sudo")
	}
	r, err := measure(ctx, o)
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

// measure builds what is needed, measures everything and leaves nothing behind.
// With an error comes what was measured before, if anything was.
func measure(ctx context.Context, o options) (*report, error) {
	dir, err := os.MkdirTemp("", "meshgate-bench-data-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := binaries{dir: dir}
	if b.meshgate, err = child.Build(ctx, dir, "", "github.com/meshgate/meshgate/cmd/meshgate", "meshgate"); err != nil {
		return nil, err
	}
	if b.plain, err = child.Build(ctx, dir, "", "golang.zx2c4.com/wireguard", "wireguard-go"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	w, err := newWorld(ctx, b, o)
	if err != nil {
		return nil, err
	}
	defer w.close()
	r := newReport(o)
	defer r.judge()
	for i := range o.rounds {
		order := slices.Clone(w.ways)
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, way := range order {
			if err := way.measure(ctx, w, o, r); err != nil {
				return r, fmt.Errorf("%s: %w", way.name, err)
			}
		}
	}
	return r, nil
}

// binaries are the programs that are measured, and where they may keep files.
type binaries struct{ dir, meshgate, plain string }
