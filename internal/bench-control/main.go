// SPDX-License-Identifier: Apache-2.0

// Command bench-control measures the control plane on one machine: joins, the
// way of a change to a thousand subscribers, lists of ten thousand nodes, the
// memory that they take, and writes beside those of an embedded etcd. Gateways,
// replicas and members of etcd are processes of their own, with real sockets
// and disks.
//
//	go run ./internal/bench-control [-short] [-json] [-dir DIR] [-only hub-and-spoke|public|writes] [-nodes N,...] [-joins N] [-rounds N]
//
// It ends with 1 when something could not be measured, and, unless -short is
// given, when a goal is missed. What is compared is measured in alternating rounds, so that a machine that is
// busy with something else slows all alike: docs/benchmarks.md tells how to
// read it.
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
	"strconv"
	"strings"
	"time"

	"github.com/meshgate/meshgate/internal/child"
)

// options say how much is measured.
type options struct {
	sizes       []int // nodes in the mesh, growing
	joins       int   // that are timed at each size, one at a time and as many together
	subscribers int
	changes     int // that subscribers are told of
	reads       int
	rounds      int // of writes, behind one that does not count
	warm, count time.Duration
	value       int    // bytes
	dir         string // where all disks are
	only        string
	limit       time.Duration // for everything, building aside
}

// wants reports whether a part is to be measured.
func (o options) wants(part string) bool { return o.only == "" || o.only == part }

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		if err := runRole(role); err != nil {
			fmt.Fprintf(os.Stderr, "bench-control: %s: %v\n", role, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-control:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	short := flag.Bool("short", false, "small sizes: finish within a minute; goals that are missed are no error")
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	dir := flag.String("dir", "", "directory on the disk that is measured (default: that for temporary files)")
	only := flag.String("only", "", "measure one part only: hub-and-spoke, public or writes")
	nodes := flag.String("nodes", "", "how many nodes the mesh has, in growing order: 100,1000,10000")
	joins := flag.Int("joins", 0, "how many joins are timed at each size")
	rounds := flag.Int("rounds", 0, "how many rounds of writes")
	flag.Parse()
	o := options{
		sizes: []int{100, 1000, 10_000}, joins: 400, subscribers: 1000, changes: 5, reads: 10,
		rounds: 15, warm: 200 * time.Millisecond, count: 600 * time.Millisecond, value: 256, limit: 20 * time.Minute,
		dir: *dir, only: *only,
	}
	if *short {
		o.sizes, o.joins, o.subscribers, o.changes, o.reads = []int{20, 100}, 40, 50, 2, 3
		o.rounds, o.warm, o.count, o.limit = 2, 200*time.Millisecond, 500*time.Millisecond, 2*time.Minute
	}
	if *nodes != "" {
		o.sizes = nil
		for text := range strings.SplitSeq(*nodes, ",") {
			n, err := strconv.Atoi(text)
			if err != nil || n < batch || len(o.sizes) > 0 && n <= o.sizes[len(o.sizes)-1] {
				return fmt.Errorf("-nodes %q: want growing numbers of %d or more", *nodes, batch)
			}
			o.sizes = append(o.sizes, n)
		}
		o.subscribers = min(o.subscribers, o.sizes[len(o.sizes)-1])
	}
	o.joins, o.rounds = cmp.Or(max(*joins, 0), o.joins), cmp.Or(max(*rounds, 0), o.rounds)
	if *only != "" && *only != string(hub) && *only != string(public) && *only != onlyWrites {
		return fmt.Errorf("-only %q: want %s, %s or %s", *only, hub, public, onlyWrites)
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

// onlyWrites is the part that is no shape of a mesh.
const onlyWrites = "writes"

// measure builds what is needed, measures everything and leaves nothing behind.
// With an error comes what was measured before, if anything was.
func measure(ctx context.Context, o options) (*report, error) {
	dir, err := os.MkdirTemp(o.dir, "meshgate-bench-control-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b, err := build(ctx, dir, o.wants(onlyWrites))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	r := newReport(o)
	defer r.judge()
	for _, s := range []shape{hub, public} {
		if !o.wants(string(s)) {
			continue
		}
		if err := measureMesh(ctx, b, o, s, r); err != nil {
			return r, fmt.Errorf("mesh, %s: %w", s, err)
		}
	}
	if o.wants(onlyWrites) {
		if err := measureWrites(ctx, b, o, r); err != nil {
			return r, fmt.Errorf("writes: %w", err)
		}
	}
	return r, nil
}

// binaries are the programs that are measured, and where they may keep files.
type binaries struct{ dir, meshgate, etcd string }

func build(ctx context.Context, dir string, etcd bool) (b binaries, err error) {
	b.dir = dir
	if b.meshgate, err = child.Build(ctx, dir, "", "github.com/meshgate/meshgate/cmd/meshgate", "meshgate"); err != nil || !etcd {
		return b, err
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return b, err
	}
	b.etcd, err = child.Build(ctx, dir, root+"/internal/bench-control/etcd", ".", "etcd")
	return b, err
}
