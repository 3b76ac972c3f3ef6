// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

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
					s.SetFree(func(string) (uint64, error) { return raftstore.Reserve - 1, nil })
				} else {
					c.logs[id].Fail(store.ErrFull)
				}
				_, err := s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: "k"}}})
				if !errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrUncertain) {
					t.Fatalf("got %v, want ErrFull and nothing left open", err)
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

// TestDisk_OfOneReplica breaks the disk of the leader or of a follower: it is
// out, the others go on, and nothing that it did not keep is acknowledged.
func TestDisk_OfOneReplica(t *testing.T) {
	tests := []struct {
		name  string
		leads bool
		hangs bool
	}{
		{"the leader's fails", true, false},
		{"the leader's hangs", true, true},
		{"a follower's fails", false, false},
		{"a follower's hangs", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "", "a", "b", "c")
				id, s := c.follower()
				if tt.leads {
					id, s = c.leader()
				}
				if tt.hangs {
					defer c.logs[id].Hang()()
				} else {
					c.logs[id].Fail(syscall.EIO)
				}
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
