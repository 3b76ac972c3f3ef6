// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/node/store/raftstore/wal"
)

// rewrite changes the log of a replica that is closed.
func (c *cluster) rewrite(id string, change func(log *wal.Log) error) {
	c.t.Helper()
	log, err := wal.Open(filepath.Join(c.dir, id, "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	if err := errors.Join(change(log), log.Close()); err != nil {
		c.t.Fatal(err)
	}
}

// leaveOut appends a configuration of other replicas to the log of one, as its
// leader did that went away before anybody else had it.
func (c *cluster) leaveOut(id string, others ...string) {
	c.t.Helper()
	c.rewrite(id, func(log *wal.Log) error {
		last, err := log.LastIndex()
		if err != nil {
			return err
		}
		var entry raft.Log
		if err := log.GetLog(last, &entry); err != nil {
			return err
		}
		var next raft.Configuration
		for _, other := range others {
			next.Servers = append(next.Servers, raft.Server{ID: raft.ServerID(other), Address: raft.ServerAddress(address(other))})
		}
		return log.StoreLogs([]*raft.Log{{Index: last + 1, Term: entry.Term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(next)}})
	})
}

// wantFailure waits until a store fails.
func (c *cluster) wantFailure(s *raftstore.Store) {
	c.t.Helper()
	select {
	case <-s.Failed():
	case <-c.ctx().Done():
		c.t.Fatal("it goes on")
	}
}

// TestRemove_TellsTheReplica has nobody let the removed one in any more as soon
// as Remove returns: it knows by then, or never has a chance to ask.
func TestRemove_TellsTheReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, "", o.configure, "a", "b", "c", "d")
		leading, leader := c.leader()
		for _, by := range []string{"a follower", "the leader"} {
			id, _ := c.follower()
			s := leader
			for other := range c.replicas {
				if by == "a follower" && other != id && other != leading {
					s = c.replicas[other]
				}
			}
			gone := c.replicas[id]
			start := time.Now()
			if err := s.Remove(c.ctx(), id); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if took := time.Since(start); took > time.Second {
				t.Errorf("removed by %s after %v, want at once", by, took)
			}
			if err := gone.Err(); !errors.Is(err, raftstore.ErrRemoved) || !strings.Contains(err.Error(), leading) {
				t.Errorf("removed by %s, it has failed with %v, want ErrRemoved that names %s", by, err, leading)
			}
			if lines := o.journals[id].lines("level=ERROR"); len(lines) > 0 {
				t.Errorf("whoever ends for it says so, but the log has %q, too", lines)
			}
			delete(c.replicas, id)
		}
		c.put(leader, "k")
	})
}

// TestRemoved_NotByAWordFromBefore has the word of a removal arrive when the
// replica was added again: it counts only as long as it is news.
func TestRemoved_NotByAWordFromBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "", "a", "b", "c")
		id, _ := c.follower()
		_, leader := c.leader()
		if err := leader.Remove(c.ctx(), id); err != nil {
			t.Fatal(err)
		}
		removal := leader.LastIndex()
		c.wantFailure(c.replicas[id])
		again := c.open(id, true)
		if err := leader.AddVoter(c.ctx(), id, address(id)); err != nil {
			t.Fatal(err)
		}
		c.sync(again)
		err := leader.TellRemoved(c.ctx(), id, address(id), removal)
		if !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), `replica "`+id+`" was added again since`) {
			t.Errorf("a word from before: got %v, want ErrInvalid that it was added again", err)
		}
		if err := again.Err(); err != nil {
			t.Fatalf("it failed with %v", err)
		}
		c.put(again, "k")
		_ = leader.TellRemoved(c.ctx(), id, address(id), again.LastIndex()+1) // news: it may end before it has answered
		c.wantFailure(again)
		if err := again.Err(); !errors.Is(err, raftstore.ErrRemoved) {
			t.Errorf("it failed with %v, want ErrRemoved", err)
		}
	})
}

// TestRemoved_FindsOutAlone starts a replica that was removed, and that nobody
// lets in to ask.
func TestRemoved_FindsOutAlone(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		c.sync(c.replicas["c"])
		c.kill("c")
		c.leaveOut("c", "a", "b")
		start := time.Now()
		s := c.open("c", false)
		c.wantFailure(s)
		if err := s.Err(); !errors.Is(err, raftstore.ErrRemoved) || !strings.Contains(err.Error(), `["a" "b"]`) {
			t.Errorf("failed with %v, want ErrRemoved that names the members", err)
		}
		if took := time.Since(start); took < 2*time.Second || took > time.Minute {
			t.Errorf("after %v, want some seconds", took)
		}
	})
}

// TestRemoved_NotIfItWasNeverCommitted has a leader that goes on without the
// removal: the replica hears of it in time, or at its next start.
func TestRemoved_NotIfItWasNeverCommitted(t *testing.T) {
	for _, late := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, dir, "a", "b", "c")
			if err := c.replicas["a"].Transfer(c.ctx(), "a"); err != nil {
				t.Fatal(err)
			}
			c.sync(c.replicas["c"])
			c.kill("c")
			c.leaveOut("c", "a", "b")
			if err := c.replicas["a"].Transfer(c.ctx(), "b"); err != nil { // a term in which nobody knows of the removal
				t.Fatal(err)
			}
			if late {
				s := c.open("c", false)
				c.wantFailure(s)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			c.hub.Heal()
			s := c.open("c", false)
			c.wantMembers("a b c")
			<-time.After(time.Minute)
			if err := s.Err(); err != nil {
				t.Errorf("late=%v: failed with %v", late, err)
			}
			c.put(s, "k")
		})
	}
}

// TestRemoved_NotWhileItJoins has the leader go away in the middle of letting a
// replica in, which then goes on waiting.
func TestRemoved_NotWhileItJoins(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a")
		c.open("o", true)
		if err := c.replicas["a"].AddObserver(c.ctx(), "o", address("o")); err != nil {
			t.Fatal(err)
		}
		c.put(c.replicas["a"], "behind its seat")
		c.sync(c.replicas["o"])
		c.kill("o")
		c.rewrite("o", func(log *wal.Log) error { // back to before it had its seat
			last, err := log.LastIndex()
			if err != nil {
				return err
			}
			for i := last; i > 1; i-- {
				var entry raft.Log
				if err := log.GetLog(i, &entry); err != nil {
					return err
				}
				if entry.Type == raft.LogConfiguration {
					return log.DeleteRange(i, last)
				}
			}
			return errors.New("its seat is not in the log")
		})
		s := c.open("o", true)
		<-time.After(5 * time.Minute)
		if err := s.Err(); err != nil {
			t.Errorf("failed with %v, want it to wait", err)
		}
		c.hub.Heal()
		c.sync(s)
	})
}
