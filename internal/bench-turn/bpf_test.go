// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Packets pass the programs at both ends of a cable, and the time of a program
// that the process has open is told.
func TestPassAll(t *testing.T) {
	w, err := newWorld(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	c, err := w.cableOf(t.Context(), pion)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.tell(t.Context(), order{Pass: c.name}); err != nil {
		t.Fatal(err)
	}
	s, err := w.serve(t.Context(), pion, c, serverConfig{Allocations: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	if _, err := w.connect(t.Context(), s, 1); err != nil {
		t.Fatal(err)
	}
	x := transferOrder{cell: cell{Size: small, Allocations: 1, Burst: 1}, Count: 10 * time.Millisecond, Window: 1, Kernel: true}
	if got, err := w.transfer(t.Context(), s, x); err != nil || got.Delivered == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	fd, err := countRuns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if r, err := runsOf(os.Getpid()); err != nil || r != (runs{}) {
		t.Errorf("a process without a program: %+v, %v", r, err)
	}
	before, err := runsOf(w.load.PID())
	if err != nil {
		t.Fatal(err)
	}
	x.Kernel = false
	if _, err := w.transfer(t.Context(), s, x); err != nil {
		t.Fatal(err)
	}
	after, err := runsOf(w.load.PID())
	if r := after.since(before); err != nil || r.count == 0 || r.time == 0 {
		t.Errorf("packets that pass a program: %+v, %v", r, err)
	}
}

func TestRuns_CountingIsNotTheirTime(t *testing.T) {
	for _, c := range []struct {
		name          string
		work, nothing runs
		want          time.Duration
	}{
		{"most is work", runs{100, 10_000}, runs{50, 1000}, 8000},
		{"all is counting", runs{100, 1000}, runs{50, 1000}, 0},
		{"nobody knows", runs{100, 1000}, runs{}, 1000},
	} {
		if got := c.work.less(c.nothing); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
