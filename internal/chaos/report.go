// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

const (
	// leastRate is how many operations per second have to be acknowledged for a
	// run to count, and mostUnknown which part of them may have no answer.
	leastRate   = 100
	mostUnknown = 0.01
	// longestGap is how long no write may be acknowledged. Two faults at a time
	// may leave no majority, for as long as a disk stalls and a little more.
	longestGap = 30 * time.Second
	// farewell is how long a world may take to end when it is told to.
	farewell = 30 * time.Second
)

// explore makes a world with namespaces of its own and returns what came of it.
// What happens there is told to log. When something went wrong the logs of the
// replicas are kept, and the error says where.
func explore(ctx context.Context, cfg settings, log io.Writer) (_ *outcome, err error) {
	if cfg.Dir, err = os.MkdirTemp("", "meshgate-chaos-"); err != nil {
		return nil, err
	}
	cmd, err := role(ctx, roleWorld, cfg)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = farewell
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, log
	stdin, err := cmd.StdinPipe() // its end tells the world that nobody waits any more
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	out := &outcome{}
	if err = cmd.Run(); err == nil {
		err = json.Unmarshal(stdout.Bytes(), out)
	}
	if ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), os.RemoveAll(cfg.Dir))
	}
	if err != nil || out.Wrong != "" {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New("it failed as told above")
		}
		fmt.Fprintf(log, "logs and disks are in %s\n", cfg.Dir)
		return out, err
	}
	return out, os.RemoveAll(cfg.Dir)
}

// rate is how many operations per second were acknowledged.
func (o *outcome) rate() float64 { return float64(o.Acknowledged) / o.Took.Seconds() }

// share is the part of the operations whose outcome is unknown.
func (o *outcome) share() float64 { return float64(o.Unknown) / float64(o.Acknowledged+o.Unknown) }

// sum is the number of faults.
func (o *outcome) sum() (n int) {
	for _, of := range o.Faults {
		n += of
	}
	return n
}

// right returns what is wrong with the history.
func (o *outcome) right() error {
	if o.Wrong != "" {
		return errors.New(o.Wrong)
	}
	return nil
}

// complete returns an error when a kind of fault did not happen.
func (o *outcome) complete() error {
	for _, f := range faults() {
		if o.Faults[f.name] == 0 {
			return fmt.Errorf("there was no %s", f.name)
		}
	}
	return nil
}

// valid also holds the run to what makes it count.
func (o *outcome) valid(cfg settings) error {
	if err := errors.Join(o.right(), o.complete()); err != nil {
		return err
	}
	switch {
	case o.Acknowledged+o.Unknown < cfg.Operations:
		return fmt.Errorf("only %d operations, want %d: the run does not count", o.Acknowledged+o.Unknown, cfg.Operations)
	case o.rate() < leastRate:
		return fmt.Errorf("%.0f acknowledged operations per second, want %d: the run does not count", o.rate(), leastRate)
	case o.Gap > longestGap:
		return fmt.Errorf("no write was acknowledged for %s, which is more than %s", o.Gap.Round(time.Second), longestGap)
	case o.share() > mostUnknown:
		return fmt.Errorf("%.2f %% of the outcomes are unknown, at most %.0f %% may be: the run does not count", 100*o.share(), 100*mostUnknown)
	}
	return nil
}

// print writes the outcome for people.
func (o *outcome) print(w io.Writer) {
	verdict := "linearizable"
	if o.Wrong != "" {
		verdict = o.Wrong
	}
	fmt.Fprintf(w, "history        %s (%d operations and %d last reads on %d keys, checked in %s; seed %d)\n",
		verdict, o.Acknowledged+o.Unknown, o.FinalReads, o.Keys, o.Checked.Round(time.Millisecond), o.Seed)
	fmt.Fprintf(w, "operations     %d acknowledged in %s, %.0f per second; %d (%.2f %%) unknown; %d refused\n",
		o.Acknowledged, o.Took.Round(time.Second), o.rate(), o.Unknown, 100*o.share(), o.Refused)
	fmt.Fprintf(w, "latency        median %s, p99 %s, longest %s; no write was acknowledged for %s at most\n",
		o.Median.Round(10*time.Microsecond), o.P99.Round(time.Millisecond), o.Longest.Round(time.Millisecond), o.Gap.Round(time.Millisecond))
	fmt.Fprintf(w, "faults         %d; replicas ended by themselves %d times\n", o.sum(), o.Restarts)
	for _, name := range slices.Sorted(maps.Keys(o.Faults)) {
		fmt.Fprintf(w, "  %-22s %d\n", name, o.Faults[name])
	}
	fmt.Fprintf(w, "cold start     all three answered %s after their start\n", o.ColdStart.Round(time.Millisecond))
}
