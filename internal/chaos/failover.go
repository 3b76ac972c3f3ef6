// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// failoverLimit is how long the gateways that are left may take no change.
const failoverLimit = 15 * time.Second

// failovers are the times from the end of a leader until a change was
// acknowledged again.
type failovers []time.Duration

func (f failovers) median() time.Duration {
	sorted := slices.Sorted(slices.Values(f))
	return sorted[len(sorted)/2]
}

// print writes the times for people.
func (f failovers) print(w io.Writer) {
	fmt.Fprintf(w, "leader killed  a change is acknowledged again after %s in the median of %d, at most %s\n",
		f.median().Round(time.Millisecond), len(f), slices.Max(f).Round(time.Millisecond))
}

// measureFailovers kills the leader of three gateways with the default settings
// again and again. Two of them are always left, and both are asked for a change
// from the moment of the kill.
func measureFailovers(ctx context.Context, all gates, rounds int) (failovers, error) {
	var took failovers
	for n := range rounds {
		old, err := all.leader(ctx, nil)
		if err != nil {
			return took, err
		}
		for _, g := range all { // they are all there, and connected
			if err := g.change(ctx, fmt.Sprintf("before-%d", n)); err != nil {
				return took, fmt.Errorf("round %d: a change at %s: %w", n, g.id, err)
			}
		}
		old.kill()
		killed := time.Now()
		if err := all.changeAgain(ctx, old, fmt.Sprintf("after-%d", n)); err != nil {
			return took, fmt.Errorf("round %d, in which %s was killed: %w", n, old.id, err)
		}
		took = append(took, time.Since(killed))
		if err := old.start(ctx); err != nil {
			return took, err
		}
	}
	return took, nil
}

// changeAgain returns once one of the gateways that are left took a change.
func (all gates) changeAgain(ctx context.Context, but *gate, name string) error {
	ctx, cancel := context.WithTimeout(ctx, failoverLimit)
	defer cancel()
	done := make(chan error, len(all))
	n := 0
	for _, g := range all {
		if g == but {
			continue
		}
		n++
		go func() { done <- g.insist(ctx, name+"-"+g.id) }()
	}
	var errs []error
	for range n {
		err := <-done
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// insist makes a change until it is acknowledged.
func (g *gate) insist(ctx context.Context, name string) (err error) {
	for ctx.Err() == nil {
		if err = g.change(ctx, name); err == nil {
			return nil
		}
		pause(ctx, 10*time.Millisecond)
	}
	return fmt.Errorf("%s: %w", g.id, errors.Join(ctx.Err(), err))
}

// change makes a group.
func (g *gate) change(ctx context.Context, name string) error {
	p, err := g.public()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = p.Admin().PutGroup(ctx, connect.NewRequest(&v1.Group{
		Name: name, Subjects: []*v1.Subject{{Name: "alice", Type: v1.SubjectType_SUBJECT_USER}},
	}))
	return err
}

// leaders builds three gateways, measures and prints.
func leaders(ctx context.Context, rounds int) (err error) {
	if rounds == 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "meshgate-chaos-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	program, err := buildProgram(ctx, dir)
	if err != nil {
		return err
	}
	all, err := newGates(ctx, program, dir)
	if err != nil {
		return err
	}
	defer all.kill()
	took, err := measureFailovers(ctx, all, rounds)
	if len(took) > 0 {
		took.print(os.Stdout)
	}
	if err != nil {
		return err
	}
	if median := took.median(); median >= 2*time.Second {
		return fmt.Errorf("the median is %s, want less than 2 s", median)
	}
	return nil
}
