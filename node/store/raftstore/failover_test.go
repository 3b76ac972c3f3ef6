// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// TestFailover_IsQuick cuts the power of the leader again and again. It runs
// on a clock that stands still while anything is done: what it measures is
// waiting, which is most of a failover.
func TestFailover_IsQuick(t *testing.T) {
	const rounds = 20
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		var took []time.Duration
		for i := range rounds {
			old, s := c.leader()
			put(t, s, store.Op{Key: fmt.Sprintf("before%d", i)})
			c.hub.Part([]string{old}, []string{"a", "b", "c"})
			start := time.Now()
			delete(c.replicas, old)
			for _, other := range c.replicas {
				c.put(other, fmt.Sprintf("after%d", i))
			}
			took = append(took, time.Since(start))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.hub.Heal()
			c.sync(c.open(old, true))
		}
		slices.Sort(took)
		t.Logf("writes again after %v", took)
		if median := took[rounds/2]; median > 1500*time.Millisecond {
			t.Errorf("median is %v, want less than 1.5 s", median)
		}
	})
}

// TestClose_HandsOver stops a leader in good order: the others do not have to
// miss it first.
func TestClose_HandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		id, s := c.leader()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		delete(c.replicas, id)
		start := time.Now()
		for _, s := range c.replicas {
			put(t, s, store.Op{Key: "k"})
		}
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("writes again after %v, want no wait for a dead leader", took)
		}
	})
}

// TestForward_CommitIsHeardAtOnce shows that a forwarder does not wait for
// raft's next message to learn of its own commit.
func TestForward_CommitIsHeardAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		_, s := c.follower()
		put(t, s, store.Op{Key: "first"}) // dials
		start := time.Now()
		for range 100 {
			put(t, s, store.Op{Key: "k"})
		}
		if took := time.Since(start); took > raftstore.NoticeDelay {
			t.Errorf("100 forwarded writes waited %v, want next to nothing", took)
		}
		start = time.Now()
		for range 100 {
			c.sync(s)
		}
		if took := time.Since(start); took > raftstore.NoticeDelay {
			t.Errorf("100 forwarded reads waited %v, want next to nothing", took)
		}
	})
}

// TestCommit_IsToldWithWhatFollows shows that a commit for which nobody waits at
// a follower takes no message of its own while more is written, and that the
// last one is heard of long before raft's next message.
func TestCommit_IsToldWithWhatFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		leading, s := c.leader()
		for _, log := range c.logs { // the next write begins when all have the one before
			log.Slow(func() time.Duration { return time.Millisecond })
		}
		put(t, s, store.Op{Key: "first"})
		const writes, others, heartbeats = 100, 2, 20
		before, last := s.Requests(), uint64(0)
		for range writes {
			last = put(t, s, store.Op{Key: "k"})
		}
		if sent := s.Requests() - before; sent > writes*others+heartbeats {
			t.Errorf("%d writes took %d messages to %d followers, want one to each", writes, sent, others)
		}
		start := time.Now()
		for id, follower := range c.replicas {
			if id == leading {
				continue
			}
			if err := follower.Await(c.ctx(), last); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took > raftstore.NoticeDelay+time.Millisecond { // and a disk
			t.Errorf("followers heard of the last commit after %v, want %v", took, raftstore.NoticeDelay)
		}
	})
}

// TestPartition_TwoWay cuts the leader off: it acknowledges and answers
// nothing, while the others go on, and follows them afterwards.
func TestPartition_TwoWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		old, s := c.leader()
		put(t, s, store.Op{Key: "k", Value: []byte("1")})
		var others []string
		for id := range c.replicas {
			if id != old {
				others = append(others, id)
			}
		}
		c.hub.Part([]string{old}, others)
		synced := make(chan error, 1)
		go func() { synced <- s.Sync(c.ctx()) }()
		_, err := s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: "k", Value: []byte("lost?")}}})
		if !errors.Is(err, store.ErrUncertain) {
			t.Errorf("a write to a leader that is cut off: got %v, want ErrUncertain", err)
		}
		c.put(c.replicas[others[0]], "k")
		if _, self := s.Leader(); self {
			t.Error("the leader that is cut off still leads")
		}
		select {
		case err := <-synced:
			t.Errorf("a read of it ended with %v", err)
		default:
		}
		c.hub.Heal()
		if err := <-synced; err != nil {
			t.Errorf("its read after the cut: %v", err)
		}
		if e, err := s.Get(t.Context(), "k"); err != nil || string(e.Value) != "k" {
			t.Errorf("it shows %q, %v, want k", e.Value, err)
		}
	})
}

// TestPartition_OneWay cuts each direction between the leader and the rest in
// turn: there is always somebody who takes writes in the end.
func TestPartition_OneWay(t *testing.T) {
	for _, deaf := range []bool{true, false} {
		t.Run(fmt.Sprintf("deaf=%v", deaf), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "", "a", "b", "c")
				old, _ := c.leader()
				var other *raftstore.Store
				for id, s := range c.replicas {
					switch {
					case id == old:
					case deaf:
						c.hub.Cut(id, old)
						other = s
					default:
						c.hub.Cut(old, id)
						other = s
					}
				}
				start := time.Now()
				c.put(other, "k")
				t.Logf("writes again after %v", time.Since(start))
				c.hub.Heal()
				c.sync(c.replicas[old])
				if _, err := c.replicas[old].Get(t.Context(), "k"); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestApply_WithoutALeaderChangesNothing has a replica that is alone wait, and
// say in the end that surely nothing happened.
func TestApply_WithoutALeaderChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		id, s := c.follower()
		c.hub.Part([]string{id}, []string{"a", "b", "c"})
		c.until("no leader is known", func() bool { leader, _ := s.Leader(); return leader == "" })
		start := time.Now()
		_, err := s.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: "k"}}})
		if !errors.Is(err, store.ErrNotLeader) || errors.Is(err, store.ErrUncertain) {
			t.Errorf("got %v, want ErrNotLeader without ErrUncertain", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("gave up after %v, want 10 s", took)
		}
	})
}

// TestRestart_OfAll cuts the power of all replicas at once.
func TestRestart_OfAll(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		_, s := c.follower()
		fill(t, s)
		want, version := list(t, s), s.Version()
		for id := range c.replicas {
			c.kill(id)
		}
		c.hub.Heal()
		for _, id := range []string{"a", "b", "c"} {
			c.open(id, false)
		}
		for id, s := range c.replicas {
			c.sync(s)
			if got := list(t, s); len(got) != len(want) || s.Version() != version {
				t.Errorf("%s has %d entries at version %d, want %d at %d", id, len(got), s.Version(), len(want), version)
			}
		}
	})
}

// TestSync_ObserversDoNotCount leaves a leader with its observers only: it may
// not take their word for it that it still leads.
func TestSync_ObserversDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		old, s := c.leader()
		for _, id := range []string{"o", "p"} {
			c.open(id, true)
			if err := s.AddObserver(c.ctx(), id, address(id)); err != nil {
				t.Fatal(err)
			}
			c.sync(c.replicas[id])
		}
		for id := range c.replicas {
			if id != old && id != "o" && id != "p" {
				c.hub.Part([]string{old, "o", "p"}, []string{id})
			}
		}
		if err := s.Sync(c.ctx()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want no answer", err)
		}
	})
}
