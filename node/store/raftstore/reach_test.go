// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// journal is what one replica logged for operators.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

// lines returns the lines that have all parts.
func (j *journal) lines(parts ...string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []string
next:
	for line := range strings.Lines(j.buf.String()) {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// observed are the journals and metrics of replicas.
type observed struct {
	journals map[string]*journal
	metrics  map[string]*prometheus.Registry
}

func newObserved() *observed {
	return &observed{map[string]*journal{}, map[string]*prometheus.Registry{}}
}

func (o *observed) configure(cfg *raftstore.Config) {
	j, r := &journal{}, prometheus.NewRegistry()
	o.journals[cfg.ID], o.metrics[cfg.ID] = j, r
	cfg.Logger, cfg.Registerer = slog.New(slog.NewTextHandler(j, nil)), r
}

// gauge returns a metric of a replica.
func (o *observed) gauge(t *testing.T, id, name string) float64 {
	t.Helper()
	families, err := o.metrics[id].Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("replica %s has no metric %s", id, name)
	return 0
}

// names are the metrics that a replica shows.
func (o *observed) names(t *testing.T, id string) []string {
	t.Helper()
	families, err := o.metrics[id].Gather()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range families {
		list = append(list, f.GetName())
	}
	return list
}

// elapse lets time pass in a bubble.
func elapse(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
}

// TestLeader_TellsWhoIsOutOfReach cuts off a voter, and then heals it: operators
// hear of both once, and can see it in the metrics meanwhile.
func TestLeader_TellsWhoIsOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, "", o.configure, "a", "b", "c")
		leader, s := c.leader()
		elapse(t, 10*time.Second)
		const out, lag = "meshgate_store_voters_out_of_reach", "meshgate_store_max_lag"
		for id := range c.replicas {
			if lines := o.journals[id].lines("out of reach"); len(lines) > 0 || o.gauge(t, id, out) != 0 {
				t.Errorf("all is well, but %s says %q, %v voters", id, lines, o.gauge(t, id, out))
			}
		}
		lost, _ := c.follower()
		var others []string
		for id := range c.replicas {
			if id != lost {
				others = append(others, id)
			}
		}
		c.hub.Part([]string{lost}, others)
		for range 3 {
			put(t, s, store.Op{Key: "k"})
		}
		if got := o.gauge(t, leader, lag); got < 3 {
			t.Errorf("the lag is %v, want 3 or more", got)
		}
		elapse(t, time.Minute)
		lines := o.journals[leader].lines("level=WARN", "out of reach: one more loss stops changes", "replica="+lost)
		if len(lines) != 1 || o.gauge(t, leader, out) != 1 {
			t.Errorf("the leader says %q, %v voters", lines, o.gauge(t, leader, out))
		}
		if got := o.gauge(t, leader, lag); got != 0 {
			t.Errorf("the lag is %v, of a voter that is out of reach", got)
		}
		for id := range c.replicas {
			if id != leader && (len(o.journals[id].lines("stops changes")) > 0 || o.gauge(t, id, out) != 0) {
				t.Errorf("%s, which does not lead, counts too", id)
			}
		}
		c.hub.Heal()
		c.sync(c.replicas[lost])
		elapse(t, 10*time.Second)
		if lines := o.journals[leader].lines("level=INFO", "in reach again", "replica="+lost); len(lines) != 1 {
			t.Errorf("the leader says %q", lines)
		}
		if out, lag := o.gauge(t, leader, out), o.gauge(t, leader, lag); out != 0 || lag != 0 {
			t.Errorf("afterwards %v are out of reach, the lag is %v", out, lag)
		}
	})
}

// TestLeader_MissesNobodyWhoJoins adds replicas long after the leader began to lead:
// nobody takes them for lost.
func TestLeader_MissesNobodyWhoJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, "", o.configure, "a")
		elapse(t, time.Minute)
		c.open("b", true)
		c.open("o", true)
		added := c.replicas["a"].AddVoter(c.ctx(), "b", address("b"))
		if err := errors.Join(added, c.replicas["a"].AddObserver(c.ctx(), "o", address("o"))); err != nil {
			t.Fatal(err)
		}
		elapse(t, time.Minute)
		for _, text := range []string{"out of reach", "stores nothing"} {
			if lines := o.journals["a"].lines(text); len(lines) > 0 {
				t.Errorf("it says %q", lines)
			}
		}
	})
}

// TestLeader_TellsHowMuchIsLeft loses an observer and a voter of four.
func TestLeader_TellsHowMuchIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, "", o.configure, "a", "b", "c", "d", "e")
		c.open("o", true)
		if err := c.replicas["a"].AddObserver(c.ctx(), "o", address("o")); err != nil {
			t.Fatal(err)
		}
		leader, _ := c.leader()
		lost, _ := c.follower()
		for lost == "o" {
			lost, _ = c.follower()
		}
		var others []string
		for id := range c.replicas {
			if id != lost && id != "o" {
				others = append(others, id)
			}
		}
		c.hub.Part([]string{lost, "o"}, others)
		elapse(t, time.Minute)
		j := o.journals[leader]
		if lines := j.lines("level=WARN", `msg="replica is out of reach"`, "replica="+lost, "spare_voters=1"); len(lines) != 1 {
			t.Errorf("of the voter the leader says %q", lines)
		}
		if lines := j.lines("level=WARN", `msg="observer is out of reach"`, "replica=o"); len(lines) != 1 {
			t.Errorf("of the observer the leader says %q", lines)
		}
		if got := o.gauge(t, leader, "meshgate_store_voters_out_of_reach"); got != 1 {
			t.Errorf("%v voters are out of reach, want 1", got)
		}
		if err := c.replicas[leader].Remove(c.ctx(), lost); err != nil {
			t.Fatal(err)
		}
		elapse(t, time.Minute)
		if lines := j.lines("in reach again"); len(lines) != 0 {
			t.Errorf("it was removed, but the leader says %q", lines)
		}
	})
}

// TestJoinAndRemove_WarnNobody adds two replicas and removes one: nothing about
// that is for operators to look into.
func TestJoinAndRemove_WarnNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, "", o.configure, "a", "b", "c")
		put(t, c.replicas["a"], store.Op{Key: "k"})
		elapse(t, 10*time.Second)
		if err := c.replicas["a"].Remove(c.ctx(), "c"); err != nil {
			t.Fatal(err)
		}
		elapse(t, 10*time.Second)
		for id, j := range o.journals {
			for _, line := range j.lines("level=WARN") {
				t.Errorf("%s warns: %s", id, line)
			}
		}
	})
}

// TestFollower_TellsThatThereIsNoLeader cuts a follower off, and later heals it.
func TestFollower_TellsThatThereIsNoLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, "", o.configure, "a", "b", "c")
		id, s := c.follower()
		j, has := o.journals[id], "meshgate_store_has_leader"
		var others []string
		for other := range c.replicas {
			if other != id {
				others = append(others, other)
			}
		}
		slices.Sort(others)
		elapse(t, 10*time.Second)
		if lines := j.lines("level=WARN"); len(lines) > 0 || o.gauge(t, id, has) != 1 {
			t.Errorf("all is well, but it says %q, has a leader %v", lines, o.gauge(t, id, has))
		}
		c.hub.Part([]string{id}, others)
		elapse(t, time.Minute)
		out := fmt.Sprintf(`out_of_reach="[%s]"`, strings.Join(others, " "))
		if lines := j.lines("level=WARN", "there is no leader", out); len(lines) != 1 || o.gauge(t, id, has) != 0 {
			t.Errorf("cut off it says %q, has a leader %v", lines, o.gauge(t, id, has))
		}
		if lines := j.lines("level=WARN"); len(lines) != 1 {
			t.Errorf("it warns more than once: %q", lines)
		}
		c.hub.Heal()
		c.sync(s)
		elapse(t, 10*time.Second)
		if lines := j.lines("level=INFO", "there is a leader again"); len(lines) != 1 || o.gauge(t, id, has) != 1 {
			t.Errorf("healed it says %q, has a leader %v", lines, o.gauge(t, id, has))
		}
	})
}

// TestNoLeader_NamesWhoIsMissing loses two of five and then one more, so that
// those who are left reach each other, but are too few.
func TestNoLeader_NamesWhoIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, "", o.configure, "a", "b", "c", "d", "e")
		c.leader()
		c.hub.Part([]string{"a", "b"}, []string{"c", "d", "e"})
		c.hub.Part([]string{"c"}, []string{"d", "e"})
		c.hub.Part([]string{"d"}, []string{"e"})
		elapse(t, time.Minute)
		for id, out := range map[string]string{"a": "[c d e]", "b": "[c d e]", "c": "[a b d e]"} {
			if lines := o.journals[id].lines("there is no leader", `out_of_reach="`+out+`"`); len(lines) != 1 {
				t.Errorf("%s says %q, want that %s are missing", id, o.journals[id].lines("there is no leader"), out)
			}
		}
	})
}

// What a leader knows of a replica from an earlier time as the leader says nothing of
// how long that is gone: others led meanwhile, or the replica itself.
func TestMembers_TimesBeginWithTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const deadAfter = 30 * time.Second
		c := newClusterOf(t, "", func(cfg *raftstore.Config) { cfg.DeadAfter = deadAfter }, "a", "b", "c", "d")
		for _, id := range []string{"b", "a"} {
			if err := c.replicas["c"].Transfer(c.ctx(), id); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(2 * deadAfter)
		c.kill("a")
		c.leader()
		if err := c.replicas["c"].Transfer(c.ctx(), "b"); err != nil {
			t.Fatal(err)
		}
		led := time.Now()
		at := func(id string) raftstore.Replica {
			for _, m := range c.replicas["b"].Members(c.ctx()) {
				if m.ID == id {
					return m
				}
			}
			return raftstore.Replica{}
		}
		c.until("c and d have answered", func() bool { return !at("c").LagUnknown && !at("d").LagUnknown && at("d").Stored > 0 })
		if m := at("a"); !m.Known || m.LastContact > time.Since(led)+time.Second || !m.LagUnknown || m.Lag != 0 {
			t.Errorf("%+v, want that b has led for %v, and no more", m, time.Since(led))
		}
		<-time.After(deadAfter / 2)
		if m := at("a"); m.ID == "" || m.LastContact < deadAfter/2 {
			t.Errorf("%+v after half the time that makes it dead", m)
		}
		<-time.After(deadAfter / 2)
		c.until("a is removed", func() bool { return at("a").ID == "" })
	})
}

// slowNetwork takes its time for what is large, while slow is true.
type slowNetwork struct {
	raftstore.Network
	slow *atomic.Bool
}

func (n slowNetwork) Dial(ctx context.Context, id, address string) (net.Conn, error) {
	conn, err := n.Network.Dial(ctx, id, address)
	return slowConn{conn, n.slow}, err
}

type slowConn struct {
	net.Conn
	slow *atomic.Bool
}

func (c slowConn) Write(p []byte) (int, error) {
	if c.slow.Load() && len(p) > 16<<10 {
		<-time.After(200 * time.Millisecond)
	}
	return c.Conn.Write(p)
}

// TestLeader_DoesNotMissWhoTakesASnapshot has a replica come back, and sends it a
// snapshot that takes longer than it may need to store something: no disk is full
// for that.
func TestLeader_DoesNotMissWhoTakesASnapshot(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		var slow atomic.Bool
		c := newClusterOf(t, dir, func(cfg *raftstore.Config) {
			o.configure(cfg)
			cfg.TrailingLogs, cfg.Network = 10, slowNetwork{cfg.Network, &slow}
		}, "a", "b", "c")
		id, s := c.follower()
		c.hub.Part([]string{id}, []string{"a", "b", "c"})
		leader, led := c.leader()
		value := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(value)
		for i := range 4 {
			put(t, led, store.Op{Key: fmt.Sprint(i), Value: value})
		}
		for range 20 {
			put(t, led, store.Op{Key: "k"})
		}
		for _, r := range c.replicas {
			if r != s {
				if err := r.Snapshot(); err != nil {
					t.Fatal(err)
				}
			}
		}
		elapse(t, 57*time.Second) // raft tries more and more seldom: it is in reach before it is sent anything
		slow.Store(true)
		c.hub.Heal()
		start := time.Now()
		c.sync(s)
		if took := time.Since(start); took < 3*time.Second {
			t.Errorf("it took %v only", took)
		}
		elapse(t, 10*time.Second)
		if lines := o.journals[leader].lines("stores nothing"); len(lines) > 0 {
			t.Errorf("the leader says %q", lines)
		}
	})
}
