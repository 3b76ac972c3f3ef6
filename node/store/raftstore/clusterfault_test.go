// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// TestFollower_FullDisk shows that a follower without space holds up nobody,
// shows what it has, and catches up when there is space again.
func TestFollower_FullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		id, s := c.follower()
		put(t, s, store.Op{Key: "before"})
		c.logs[id].Fail(store.ErrFull)
		_, leader := c.leader()
		for range 20 {
			put(t, leader, store.Op{Key: "during"})
		}
		<-time.After(time.Minute)
		if _, err := s.Get(t.Context(), "before"); err != nil {
			t.Errorf("it shows nothing: %v", err)
		}
		if err := s.Err(); err != nil {
			t.Errorf("it failed: %v", err)
		}
		c.logs[id].Fail(nil)
		c.sync(s)
		if _, err := s.Get(t.Context(), "during"); err != nil {
			t.Errorf("it has not caught up: %v", err)
		}
	})
}

// TestFollower_FullDiskSaysSo shows that a follower that cannot keep up for want of
// space refuses at once what would need it to, says why and who can do better, and
// has nobody take a change for refused that happened.
func TestFollower_FullDiskSaysSo(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		id, s := c.follower()
		leading, leader := c.leader()
		c.logs[id].SetFree(func(string) (uint64, error) { return 0, nil })
		if err := s.Sync(c.ctx()); err != nil {
			t.Errorf("with nothing new to keep: %v", err)
		}
		c.logs[id].Fail(store.ErrFull)
		start := time.Now()
		refused := func(what string, err error) {
			t.Helper()
			want := fmt.Sprintf("such as %q, which leads", leading)
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("replica %q: ", id)) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", what, err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("%s took %v", what, took)
			}
		}
		// It learns that it has no space by this change, which happens.
		_, err := s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: "during"}}})
		if refused("the first change", err); !errors.Is(err, store.ErrUncertain) || errors.Is(err, store.ErrFull) {
			t.Errorf("the first change: %v, want ErrUncertain only", err)
		}
		err = s.Sync(c.ctx())
		if refused("a read", err); !errors.Is(err, store.ErrFull) {
			t.Errorf("a read: %v, want ErrFull", err)
		}
		_, err = s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: "after"}}})
		if refused("a change", err); !errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrUncertain) {
			t.Errorf("a change: %v, want ErrFull only", err)
		}
		rooms := map[bool]raftstore.Room{}
		for _, r := range leader.Survey(c.ctx()) {
			rooms[r.ID == id] = r.Room
		}
		if rooms[true] != raftstore.RoomNone || rooms[false] != raftstore.RoomEnough {
			t.Errorf("room here: %v, elsewhere: %v", rooms[true], rooms[false])
		}
		if _, err := leader.Get(t.Context(), "during"); err != nil {
			t.Errorf("the first change did not happen: %v", err)
		}
		if _, err := leader.Get(t.Context(), "after"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the change that was refused happened: %v", err)
		}
		c.logs[id].Fail(nil)
		c.logs[id].SetFree(func(string) (uint64, error) { return raftstore.Reserve, nil })
		c.put(s, "with room")
		c.sync(s)
	})
}

// TestMembers_DoNotCountOnAFullDisk fills the disk of one of three voters: no change
// is made after which the others would wait for it, and operators hear of it.
func TestMembers_DoNotCountOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, "", o.configure, "a", "b", "c")
		full, _ := c.follower()
		leader, s := c.leader()
		for id := range c.replicas {
			if id != full && id != leader {
				if err := s.Demote(c.ctx(), id); err != nil {
					t.Errorf("with room everywhere: %v", err)
				}
				if err := s.Promote(c.ctx(), id); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.logs[full].Fail(store.ErrFull)
		c.put(s, "k")
		for id := range c.replicas {
			if id == full {
				continue
			}
			err := s.Demote(c.ctx(), id)
			if !errors.Is(err, raftstore.ErrUnsafe) || !strings.Contains(err.Error(), fmt.Sprintf("[%q] are behind", full)) {
				t.Errorf("demote %s: %v, want ErrUnsafe that names %s", id, err, full)
			}
		}
		elapse(t, 5*time.Second)
		leader, s = c.leader()
		if n := o.gauge(t, leader, "meshgate_store_voters_out_of_reach"); n != 1 {
			t.Errorf("the leader counts %v voters that are of no use, want 1", n)
		}
		if lines := o.journals[leader].lines("level=WARN", "stores nothing of what it is sent", "one more loss stops changes", "replica="+full); len(lines) != 1 {
			t.Errorf("the leader says %q", lines)
		}
		c.logs[full].Fail(nil)
		elapse(t, time.Minute)
		if lines := o.journals[leader].lines("level=INFO", "stores again", "replica="+full); len(lines) != 1 {
			t.Errorf("with room again the leader says %q", lines)
		}
		if n := o.gauge(t, leader, "meshgate_store_voters_out_of_reach"); n != 0 {
			t.Errorf("with room again the leader counts %v", n)
		}
		if err := s.Remove(c.ctx(), full); err != nil {
			t.Error(err)
		}
	})
}

// TestLeader_FullDisk shows that a leader without space makes way for one that
// has some, and that nothing is left open meanwhile.
func TestLeader_FullDisk(t *testing.T) {
	for _, low := range []bool{true, false} {
		name := map[bool]string{true: "below the reserve", false: "no space at all"}[low]
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, dir, "a", "b", "c")
				id, s := c.leader()
				if low {
					c.logs[id].SetFree(func(string) (uint64, error) { return raftstore.Reserve - 1, nil })
				} else {
					c.logs[id].Fail(store.ErrFull)
				}
				_, err := s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: "k"}}})
				if !errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrUncertain) {
					t.Fatalf("got %v, want ErrFull and nothing left open", err)
				}
				if want := fmt.Sprintf("replica %q: ", id); !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say whose disk is full", err)
				}
				c.until("another one leads", func() bool { now, _ := c.leader(); return now != id })
				for other, r := range c.replicas {
					if other != id || low { // with no space at all it cannot show what it wrote
						c.put(r, "k")
					}
				}
				if s.Err() != nil {
					t.Errorf("it failed: %v", s.Err())
				}
				c.logs[id].Fail(nil)
				c.sync(s)
			})
		})
	}
}

// TestLeader_FullDiskThatNobodyAsks shows that a leader without room makes way
// before a change has to be refused, also when it is made the leader again, and
// that the leadership does not go round for ever when nobody has room.
func TestLeader_FullDiskThatNobodyAsks(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		full := func(string) (uint64, error) { return raftstore.Reserve - 1, nil }
		id, s := c.leader()
		c.logs[id].SetFree(full)
		moved := func() bool { now, _ := c.leader(); return now != id }
		c.until("another one leads", moved)
		elapse(t, time.Minute)
		if err := s.Transfer(c.ctx(), id); !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), fmt.Sprintf("replica %q has a full disk", id)) {
			t.Errorf("transfer to a full disk: %v", err)
		}
		if moved := moved(); !moved {
			t.Error("it leads again")
		}
		c.logs[id].SetFree(func(string) (uint64, error) { return raftstore.Reserve, nil })
		if err := s.Transfer(c.ctx(), id); err != nil {
			t.Fatal(err)
		}
		c.logs[id].SetFree(full)
		c.until("another one leads again", moved)
		for _, log := range c.logs {
			log.SetFree(full)
		}
		elapse(t, 5*time.Minute)
		moves, last := -1, ""
		for range 100 {
			if now, _ := c.leader(); now != last {
				moves, last = moves+1, now
			}
			elapse(t, time.Second)
		}
		if moves > len(c.replicas) {
			t.Errorf("the leadership moved %d times within 100 seconds, want once from each at most", moves)
		}
	})
}

// TestDisk_OfOneReplica breaks the disk of the leader or of a follower: it is
// out, the others go on, and nothing that it did not keep is acknowledged.
func TestDisk_OfOneReplica(t *testing.T) {
	fail := func(log *raftstore.FaultyLog) func() { log.Fail(syscall.EIO); return func() {} }
	failSync := func(log *raftstore.FaultyLog) func() { log.FailSync(syscall.EIO); return func() {} }
	hang := func(log *raftstore.FaultyLog) func() { return log.Hang() }
	hangWrite := func(log *raftstore.FaultyLog) func() { return log.HangWrite() }
	tests := []struct {
		name  string
		leads bool
		hangs bool
		harm  func(log *raftstore.FaultyLog) (heal func())
	}{
		{"the leader's fails", true, false, fail},
		{"the leader's fails later", true, false, failSync},
		{"the leader's hangs", true, true, hang},
		{"the leader's takes nothing", true, true, hangWrite},
		{"a follower's fails", false, false, fail},
		{"a follower's fails later", false, false, failSync},
		{"a follower's hangs", false, true, hang},
		{"a follower's takes nothing", false, true, hangWrite},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "", "a", "b", "c")
				id, s := c.follower()
				if tt.leads {
					id, s = c.leader()
				}
				defer tt.harm(c.logs[id])()
				start := time.Now()
				if tt.leads {
					if _, err := s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: "lost?"}}}); !errors.Is(err, store.ErrUncertain) {
						t.Errorf("a write to it: got %v, want ErrUncertain", err)
					}
				}
				delete(c.replicas, id)
				for _, other := range c.replicas {
					c.put(other, "k")
				}
				<-s.Failed()
				if err := s.Err(); !errors.Is(err, raftstore.ErrDisk) {
					t.Errorf("it failed with %v, want ErrDisk", err)
				}
				if err := s.Sync(context.WithoutCancel(t.Context())); !errors.Is(err, raftstore.ErrDisk) {
					t.Errorf("sync: got %v, want ErrDisk", err)
				}
				if took := time.Since(start); took > 8*time.Second {
					t.Errorf("took %v", took)
				}
				if err := s.Close(); tt.hangs != errors.Is(err, raftstore.ErrDisk) {
					t.Errorf("close: got %v", err)
				}
			})
		})
	}
}

// TestLeader_RunsAheadOfItsDisk shows that the others get an entry while the
// leader's disk writes it, and that it is acknowledged only when that is done.
func TestLeader_RunsAheadOfItsDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		id, s := c.leader()
		before := s.Version()
		last := func(id string) uint64 {
			index, err := c.logs[id].LastIndex()
			if err != nil {
				t.Fatal(err)
			}
			return index
		}
		was := last(id)
		release := sync.OnceFunc(c.logs[id].Hang())
		defer release()
		acknowledged := make(chan error, 1)
		go func() {
			_, err := s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: "k"}}})
			acknowledged <- err
		}()
		for other := range c.replicas {
			c.until("replica "+other+" has the entry", func() bool { return c.logs[other].Synced() > was || other == id })
		}
		for range 40 { // raft has time to count
			c.pause(c.ctx())
		}
		select {
		case err := <-acknowledged:
			t.Fatalf("acknowledged (%v) before it was on the leader's disk", err)
		default:
		}
		for other, s := range c.replicas {
			if s.Version() != before {
				t.Errorf("replica %s took it for committed", other)
			}
		}
		release()
		if err := <-acknowledged; err != nil {
			t.Errorf("got %v", err)
		}
	})
}

// TestLeader_NeverRunsAheadToALoneVoter takes one of two votes while the disk of
// the leader hangs. In the new configuration it asks nobody but itself, so it
// would commit what is on no disk.
func TestLeader_NeverRunsAheadToALoneVoter(t *testing.T) {
	tests := []struct {
		name string
		take func(s *raftstore.Store, ctx context.Context, id string) error
		left string
	}{
		{"demote", (*raftstore.Store).Demote, "a b-"},
		{"remove", (*raftstore.Store).Remove, "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "", "a", "b")
				if err := c.replicas["a"].Transfer(c.ctx(), "a"); err != nil {
					t.Fatal(err)
				}
				id, s := c.leader()
				if id != "a" {
					t.Fatalf("%s leads, want a", id)
				}
				release := sync.OnceFunc(c.logs["a"].Hang())
				defer release()
				acknowledged := make(chan error, 1)
				go func() { acknowledged <- tt.take(s, c.ctx(), "b") }()
				for range 40 { // raft has time to count
					c.pause(c.ctx())
				}
				select {
				case err := <-acknowledged:
					t.Fatalf("acknowledged (%v) before it was on a disk", err)
				default:
				}
				release()
				if err := <-acknowledged; err != nil {
					t.Fatal(err)
				}
				if got := strings.ReplaceAll(describe(s.Members(c.ctx())), "*", ""); got != tt.left {
					t.Errorf("the members are %q, want %q", got, tt.left)
				}
			})
		})
	}
}

// TestLeader_LosesWhatItsDiskHadNot cuts the power of a leader whose disk is
// slower than the network. What was acknowledged stays, and what it had sent
// ahead may: but every replica says the same of it.
func TestLeader_LosesWhatItsDiskHadNot(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		c.lag = func() time.Duration { return 300 * time.Millisecond }
		id, s := c.leader()
		c.put(s, "acknowledged")
		c.logs[id].Slow(c.lag)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := s.Apply(ctx, store.Batch{Ops: []store.Op{{Key: "ahead"}}}); !errors.Is(err, store.ErrUncertain) {
			t.Errorf("got %v, want ErrUncertain", err)
		}
		c.kill(id)
		if c.lost == 0 {
			t.Error("the power cut took nothing")
		}
		_, next := c.leader()
		want := list(t, next)
		c.hub.Heal()
		c.sync(c.open(id, false))
		for id, s := range c.replicas {
			c.sync(s)
			if _, err := s.Get(t.Context(), "acknowledged"); err != nil {
				t.Errorf("replica %s: %v", id, err)
			}
			if diff := cmp.Diff(want, list(t, s)); diff != "" {
				t.Errorf("replica %s (-leader +replica):\n%s", id, diff)
			}
		}
	})
}

// TestDisk_EachReplicaTellsOfItsOwn fills the disk of a follower, which nobody
// asks to change anything, and makes room again.
func TestDisk_EachReplicaTellsOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, dir, o.configure, "a", "b", "c")
		id, _ := c.follower()
		c.logs[id].SetFree(func(string) (uint64, error) { return raftstore.Reserve - 1, nil })
		elapse(t, time.Minute)
		if lines := o.journals[id].lines("level=WARN", "disk is full", "if it led"); len(lines) != 1 {
			t.Errorf("it says %q", lines)
		}
		c.logs[id].SetFree(func(string) (uint64, error) { return raftstore.Reserve, nil })
		elapse(t, time.Minute)
		if lines := o.journals[id].lines("level=INFO", "there is room on the disk again"); len(lines) != 1 {
			t.Errorf("with room it says %q", lines)
		}
		for other, j := range o.journals {
			if lines := j.lines("disk"); other != id && len(lines) > 0 {
				t.Errorf("%s speaks of a disk that is not its own: %q", other, lines)
			}
		}
	})
}
