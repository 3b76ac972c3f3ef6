// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/child"
	"github.com/meshgate/meshgate/internal/netlab"
)

// Many nodes in one process hold a way to a gateway each, and some of them a pair,
// and nothing grows while they do: first over UDP, then over TURN, as their UDP
// does not get to the WireGuard port of the gateway. When they leave, nothing of
// them stays.
func TestMany_HoldTheirWays(t *testing.T) {
	t.Setenv("GOGC", "5") // what the gateway keeps is to be seen, not the garbage of minutes
	m := newLabMesh(t)
	os.Unsetenv("GOGC")
	side := m.lab.Side("crowd", netlab.Open) // NATs of labs hold some two hundred sockets
	before := m.gate.held(t)
	for _, way := range []string{"direct", "relayed"} {
		t.Run(way, func(t *testing.T) {
			if way == "relayed" {
				m.closeWireGuard(t)
			}
			good := func(r crowdReport) bool {
				ways := map[string]int{"direct": r.Direct, "relayed": r.Relayed}
				return ways[way] == manyNodes && r.Pairs == manyPairs
			}
			c := newCrowd(t, m, side, way)
			c.await(t, manyJoin, "all are in the mesh", func(r crowdReport) bool { return r.Up == manyNodes })
			c.await(t, manyJoin, "all have their ways", good)
			c.hold(t, manyFor, good)
			c.leave(t)
			eventually(t, patience, func() (bool, string) {
				now := m.gate.held(t)
				return now.relays == 0 && now.goroutines <= before.goroutines+20+2*manyLinger && now.fds <= before.fds+10+manyLinger,
					fmt.Sprintf("the gateway holds %+v, and held %+v before", now, before)
			})
		})
	}
}

// closeWireGuard loses what comes to the WireGuard port of the gateway from
// outside, as a firewall does.
func (m *labMesh) closeWireGuard(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := m.gate.side.Exec(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(`
table inet closed {
	chain in {
		type filter hook input priority 0
		iifname != "lo" udp dport 51820 drop
	}
}
`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("close the WireGuard port: %v: %s", err, out)
	}
}

// crowdProcess is a crowd in a process of its own.
type crowdProcess struct {
	*child.Process
	gate  *labNode
	began crowdReport
}

// newCrowd starts one on a side.
func newCrowd(t testing.TB, m *labMesh, side *netlab.Side, name string) *crowdProcess {
	t.Helper()
	token, err := os.ReadFile(m.joining[3])
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(crowdConfig{
		Name: name, Gateway: "https://" + net.JoinHostPort(m.gate.side.Addr4().String(), "443"),
		Pin: m.joining[1], Token: strings.TrimSpace(string(token)),
		Nodes: manyNodes, Pairs: manyPairs, Every: manyEvery,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := side.Exec(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crowdEnv+"="+string(config))
	c := &crowdProcess{gate: m.gate}
	if c.Process, err = child.Start(t.Context(), cmd, &c.began); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.End()
		if t.Failed() {
			t.Logf("log of the crowd:\n%s", c.Stderr())
		}
	})
	return c
}

// next waits for the next report.
func (c *crowdProcess) next(t testing.TB) (r crowdReport) {
	t.Helper()
	if err := c.Receive(t.Context(), &r); err != nil {
		t.Fatalf("the crowd does not report: %v\n%s", err, c.Stderr())
	}
	if r.Err != "" {
		t.Fatalf("the crowd ended: %s", r.Err)
	}
	return r
}

// await reads reports until one is as it is to be.
func (c *crowdProcess) await(t testing.TB, within time.Duration, what string, is func(crowdReport) bool) {
	t.Helper()
	began := time.Now()
	for {
		r := c.next(t)
		if is(r) {
			t.Logf("%s after %s: %+v", what, time.Since(began).Round(time.Millisecond), r)
			return
		}
		if time.Since(began) > within {
			t.Fatalf("not within %s: %s: %+v", within, what, r)
		}
	}
}

// hold reads reports for a time, each of which is to be as it was, and fails the
// test when the crowd or its gateway grow.
func (c *crowdProcess) hold(t testing.TB, dur time.Duration, is func(crowdReport) bool) {
	t.Helper()
	began := time.Now()
	var nodes, gate []held
	lost := -1
	for time.Since(began) < dur {
		r := c.next(t)
		if lost < 0 {
			lost = r.Lost // while they had no ways
		}
		if !is(r) || r.Lost > lost {
			t.Errorf("after %s: %+v", time.Since(began).Round(time.Second), r)
		}
		nodes = append(nodes, held{time.Now(), r.Goroutines, r.FDs, 0, r.RSS, r.CPU})
		gate = append(gate, c.gate.held(t))
	}
	t.Logf("%d nodes and %d pairs for %s:\n  nodes   %s\n  gateway %s", manyNodes, manyPairs, dur, growth(nodes), growth(gate))
	for name, list := range map[string][]held{"crowd": nodes, "gateway": gate} {
		if grown := grownBy(list); grown != "" {
			t.Errorf("the %s grows: %s", name, grown)
		}
	}
}

// leave has all nodes leave the mesh, of which nothing may stay.
func (c *crowdProcess) leave(t testing.TB) {
	t.Helper()
	began := time.Now()
	if err := c.Send("leave"); err != nil {
		t.Fatal(err)
	}
	for r := c.next(t); ; r = c.next(t) {
		if !r.Ended {
			if time.Since(began) > manyJoin {
				t.Fatalf("not all have left after %s: %+v", manyJoin, r)
			}
			continue
		}
		t.Logf("all have left after %s", time.Since(began).Round(time.Millisecond))
		if r.Goroutines > c.began.Goroutines+10 || r.FDs > c.began.FDs+5 {
			t.Errorf("when all have left, the process holds %d goroutines and %d files, before the first came %d and %d",
				r.Goroutines, r.FDs, c.began.Goroutines, c.began.FDs)
		}
		return
	}
}

// held is what a process holds at a time.
type held struct {
	at                      time.Time
	goroutines, fds, relays int
	rss                     int64
	cpu                     time.Duration
}

// held looks at a process of a lab.
func (n *labNode) held(t testing.TB) held {
	t.Helper()
	cpu, err := child.CPU(n.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	m := n.metrics(t)
	return held{time.Now(), int(m["go_goroutines"]), n.fds(), int(m["meshgate_turn_allocations"]), n.rss(), cpu}
}

// metrics are those of a process of a lab, whose --metrics.listen is
// 127.0.0.1:9090, with their labels.
func (n *labNode) metrics(t testing.TB) map[string]float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	text, err := n.side.Exec(ctx, "curl", "-sS", "--fail", "--max-time", "30", "http://127.0.0.1:9090/metrics").Output()
	if err != nil {
		t.Fatalf("metrics of %s: %v", n.id, err)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(line[at+1:], &v); err == nil {
			all[line[:at]] = v
		}
	}
	return all
}

// growth tells of the first and the last time.
func growth(list []held) string {
	first, last := list[0], list[len(list)-1]
	cpu := (last.cpu - first.cpu).Seconds() / max(last.at.Sub(first.at).Seconds(), 0.001)
	var memory []int64 // some of it, in MiB
	for i := 0; i < len(list); i += max(len(list)/10, 1) {
		memory = append(memory, list[i].rss>>20)
	}
	return fmt.Sprintf("%d to %d goroutines, %d to %d files, %d MiB (%+.1f KiB/s), %.1f %% of a CPU",
		first.goroutines, last.goroutines, first.fds, last.fds, memory, slope(list[len(list)/3:])/1024, 100*cpu)
}

// slope is that of the line that fits best through the memory, in bytes a second.
func slope(list []held) float64 {
	var n, x, y, xx, xy float64
	for _, h := range list {
		s, b := h.at.Sub(list[0].at).Seconds(), float64(h.rss)
		n, x, y, xx, xy = n+1, x+s, y+b, xx+s*s, xy+s*b
	}
	if n*xx == x*x {
		return 0
	}
	return (n*xy - x*y) / (n*xx - x*x)
}

// grownBy says what has grown from the first third of the time to the last, or
// nothing. Memory goes up and down with what is under way: the least of it counts,
// from the second third to the last, and only where there is time enough.
func grownBy(list []held) string {
	third := max(len(list)/3, 1)
	most := func(part []held, of func(held) int) int {
		m := 0
		for _, h := range part {
			m = max(m, of(h))
		}
		return m
	}
	early, late := list[:third], list[len(list)-third:]
	for name, of := range map[string]func(held) int{
		"goroutines": func(h held) int { return h.goroutines }, "files": func(h held) int { return h.fds },
	} {
		if a, b := most(early, of), most(late, of); b > a+a/50+10 {
			return fmt.Sprintf("from %d to %d %s", a, b, name)
		}
	}
	if manyGrowth == 0 {
		return ""
	}
	least := func(part []held) int64 {
		return slices.MinFunc(part, func(a, b held) int { return cmp.Compare(a.rss, b.rss) }).rss
	}
	if a, b := least(list[third:len(list)-third]), least(late); b > a+a*manyGrowth/100 {
		return fmt.Sprintf("from %d to %d bytes of memory at least", a, b)
	}
	return ""
}
