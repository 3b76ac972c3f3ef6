// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// settings say how much happens in a run.
type settings struct {
	// Dir is an empty directory for disks and logs.
	Dir string
	// Operations and Faults are how many there are at least; Limit is how long
	// that may take.
	Operations, Faults int
	Limit              time.Duration
	Clients            int
	// Pace is the longest pause of a client between two operations.
	Pace time.Duration
	// Length is how long a fault lasts at most, Calm the pause after it.
	Length, Calm time.Duration
	// LongStalls has disks hang for longer than a replica bears.
	LongStalls bool
	// Only are the kinds of faults that happen; none are all.
	Only []string
	Seed uint64
	// CheckLimit bounds the check of the history.
	CheckLimit time.Duration
	// StaleReads breaks the replicas: the run must fail.
	StaleReads bool
}

// outcome is what a run gave.
type outcome struct {
	Seed uint64
	// Took is the time during which clients and faults were at work.
	Took time.Duration
	// Acknowledged operations got an answer, for Unknown ones none came,
	// Refused ones surely did not happen.
	Acknowledged, Unknown, Refused int
	Median, P99, Longest           time.Duration
	// Gap is the longest time in which no write was acknowledged.
	Gap    time.Duration
	Faults map[string]int
	// Restarts is how often replicas ended by themselves and were started again.
	Restarts int
	Keys     int
	// ColdStart is the time from the start of all replicas, after all of them
	// lost their power at once, until each answered; FinalReads were made then.
	ColdStart  time.Duration
	FinalReads int
	Checked    time.Duration
	// Wrong is what is wrong with the history or the run; empty for nothing.
	Wrong string
}

// world is a cluster on three hosts of its own.
type world struct {
	cfg      settings
	network  *network
	replicas []*replica
	history  *history
	began    time.Time
	losing   sync.Mutex // held while a disk is lost
}

// logf tells of what happens.
func (w *world) logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%8.2f s  %s\n", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
}

// runWorld is the program that owns the namespaces, the disks and the replicas
// of a run: all of them are gone with it. It prints an outcome as JSON. It ends
// with its standard input.
func runWorld(cfg settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	w := &world{cfg: cfg, history: newHistory(), began: time.Now()}
	defer w.end()
	out, err := w.run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// end ends the replicas and lets go of the disks.
func (w *world) end() {
	for _, r := range w.replicas {
		r.signal(syscall.SIGCONT)
		r.kill()
		if err := r.disk.unmount(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
		}
	}
}

func (w *world) run(ctx context.Context) (*outcome, error) {
	if err := w.begin(ctx); err != nil {
		return nil, err
	}
	w.logf("three replicas are up")
	out := &outcome{Seed: w.cfg.Seed}
	c := &clients{history: w.history, pace: w.cfg.Pace}
	for _, r := range w.replicas {
		c.addresses = append(c.addresses, r.address)
	}
	if err := w.load(ctx, c, out); err != nil {
		return nil, err
	}
	if err := w.restart(ctx, c, out); err != nil {
		return nil, err
	}
	w.judge(c, out)
	return out, nil
}

// begin makes the cluster.
func (w *world) begin(ctx context.Context) error {
	ids := []string{"a", "b", "c"}
	var err error
	if w.network, err = newNetwork(ctx, ids); err != nil {
		return err
	}
	public, secret := map[string]string{}, map[string]string{}
	for _, id := range ids {
		key, err := mesh.GenerateKey()
		if err != nil {
			return err
		}
		public[id], secret[id] = key.Public().Encode(), key.Encode()
	}
	for i, id := range ids {
		r, err := newReplica(ctx, w.cfg.Dir, id, i, replicaConfig{Key: secret[id], Keys: public, StaleReads: w.cfg.StaleReads})
		if err != nil {
			return err
		}
		if err := r.start(); err != nil {
			return err
		}
		w.replicas = append(w.replicas, r)
	}
	first := w.replicas[0]
	if err := first.answers(ctx); err != nil {
		return err
	}
	for _, r := range w.replicas[1:] {
		if err := w.add(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// load has clients use the cluster while faults happen, and waits until all is
// well again.
func (w *world) load(ctx context.Context, c *clients, out *outcome) error {
	limited, cancel := context.WithTimeout(ctx, w.cfg.Limit)
	defer cancel()
	using, done := context.WithCancel(ctx)
	defer done()
	began := time.Now()
	var wg sync.WaitGroup
	for n := range w.cfg.Clients {
		one := c.newClient(w.cfg.Seed + uint64(n))
		wg.Go(func() { one.run(using) })
	}
	var err error
	out.Faults, err = w.disturb(limited)
	out.Took = time.Since(began)
	done()
	wg.Wait()
	if err != nil {
		return err
	}
	if worst := c.worst.Load(); worst != nil {
		return *worst
	}
	for _, r := range w.replicas {
		if err := r.answers(ctx); err != nil {
			return err
		}
		out.Restarts += r.restarts()
	}
	h := w.history
	out.Gap = h.gap()
	out.Acknowledged, out.Unknown, out.Refused = h.done, h.unknown, h.refused
	slices.Sort(h.latencies)
	if n := len(h.latencies); n > 0 {
		out.Median, out.P99, out.Longest = h.latencies[n/2], h.latencies[n*99/100], h.latencies[n-1]
	}
	return nil
}

// restart has all replicas lose their power at once, starts them again, and
// reads everything at each.
func (w *world) restart(ctx context.Context, c *clients, out *outcome) error {
	w.logf("all replicas lose their power")
	for _, r := range w.replicas {
		if err := r.disk.cut(); err != nil {
			return err
		}
	}
	for _, r := range w.replicas {
		r.kill()
		if err := r.disk.powerOn(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	for _, r := range w.replicas {
		if err := r.start(); err != nil {
			return err
		}
	}
	for _, r := range w.replicas {
		if err := r.answers(ctx); err != nil {
			return err
		}
	}
	out.ColdStart = time.Since(began)
	w.logf("all answer again")
	before := w.history.recorded()
	for i := range w.replicas {
		if err := c.readAll(ctx, i); err != nil {
			return err
		}
	}
	out.FinalReads, out.Keys = w.history.recorded()-before, len(c.keys.all())
	return nil
}

// judge checks the history.
func (w *world) judge(c *clients, out *outcome) {
	w.logf("checking %d steps on %d keys", w.history.recorded(), out.Keys)
	for _, r := range w.replicas {
		r.kill()
	}
	runtime.GC()
	began := time.Now()
	if err := check(w.history.steps, w.cfg.CheckLimit); err != nil {
		out.Wrong = err.Error()
	}
	out.Checked = time.Since(began)
}
