// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// leave closes all replicas and returns the directory of one.
func (c *cluster) leave(id string) string {
	c.t.Helper()
	for other, r := range c.replicas {
		closeNow(c.t, r)
		delete(c.replicas, other)
	}
	return filepath.Join(c.dir, id)
}

// heldBy opens a replica that stays alone and returns what it holds.
func (c *cluster) heldBy(id string) (held store.Store, r *raftstore.Store) {
	c.t.Helper()
	r = c.open(id, false)
	held, err := r.Held()
	if err != nil {
		c.t.Fatal(err)
	}
	return held, r
}

// A replica that starts without a leader knows what it showed before it ended,
// with and without a snapshot, and shows no more.
func TestHeld_IsWhatAStoppedReplicaShowed(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, dir, "a", "b", "c")
			id, s := c.follower()
			fill(t, s)
			if snapshot {
				if err := s.Snapshot(); err != nil {
					t.Fatal(err)
				}
				put(t, s, store.Op{Key: "behind the snapshot"})
			}
			want, version := list(t, s), s.Version()
			c.leave(id)
			held, r := c.heldBy(id)
			if diff := cmp.Diff(want, list(t, held)); diff != "" {
				t.Errorf("snapshot %v (-shown +held):\n%s", snapshot, diff)
			}
			if _, got, err := held.List(t.Context(), ""); err != nil || got != version {
				t.Errorf("held is of version %d, %v, want %d", got, err, version)
			}
			if r.Version() >= version {
				t.Error("the replica shows it by itself: this test tests nothing")
			}
			if _, err := held.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: "x"}}}); !errors.Is(err, store.ErrNotLeader) {
				t.Errorf("a change of it: %v, want ErrNotLeader", err)
			}
			if err := held.Sync(t.Context()); !errors.Is(err, store.ErrNotLeader) {
				t.Errorf("a fresh read of it: %v, want ErrNotLeader", err)
			}
		})
	}
}

// What a leader wrote that no majority took is on its disk, and in no state that
// it shows after a start: others may have decided otherwise.
func TestHeld_HasNothingThatWasNotCommitted(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		id, s := c.leader()
		put(t, s, store.Op{Key: "committed"})
		others := []string{}
		for other := range c.replicas {
			if other != id {
				others = append(others, other)
			}
		}
		c.hub.Part([]string{id}, others)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Apply(ctx, store.Batch{Ops: []store.Op{{Key: "alone"}}}); !errors.Is(err, store.ErrUncertain) {
			t.Fatalf("a change without a majority: %v", err)
		}
		path := c.leave(id)
		var whole bytes.Buffer
		if _, err := raftstore.BackupDir(path, &whole); err != nil {
			t.Fatal(err)
		}
		if _, entries, err := raftstore.ReadBackup(&whole); err != nil || len(entries) != 2 {
			t.Fatalf("the disk has %d keys, %v, want both: this test tests nothing", len(entries), err)
		}
		c.hub.Part([]string{id}, others) // it stays alone
		held, _ := c.heldBy(id)
		if _, err := held.Get(t.Context(), "committed"); err != nil {
			t.Errorf("what was committed: %v", err)
		}
		if _, err := held.Get(t.Context(), "alone"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("what was not: %v, want ErrNotFound", err)
		}
	})
}

// A process that is killed noted a moment before how far it was.
func TestHeld_IsNotedWhileTheReplicaRuns(t *testing.T) {
	dir, copied := t.TempDir(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, "a", "b", "c")
		id, s := c.follower()
		put(t, s, store.Op{Key: "k"})
		<-time.After(2 * time.Second) // of the bubble: until the next note
		if err := os.CopyFS(filepath.Join(copied, id), os.DirFS(filepath.Join(dir, id))); err != nil {
			t.Fatal(err)
		}
		c.leave(id)
		c.dir = copied
		held, _ := c.heldBy(id)
		if _, err := held.Get(t.Context(), "k"); err != nil {
			t.Errorf("what was there when it was killed: %v", err)
		}
	})
}

// A note that is gone or damaged costs what is behind the last snapshot, and
// nothing else.
func TestHeld_WithoutItsNote(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"gone":    os.Remove,
		"short":   func(path string) error { return os.Truncate(path, 7) },
		"long":    func(path string) error { return os.Truncate(path, 64) },
		"flipped": func(path string) error { return flip(path, 15) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, dir, "a", "b", "c")
				id, s := c.follower()
				put(t, s, store.Op{Key: "k"})
				path := c.leave(id)
				if err := spoil(filepath.Join(path, "committed")); err != nil {
					t.Fatal(err)
				}
				r := c.open(id, false)
				if held, err := r.Held(); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("held %v, %v, want fs.ErrNotExist", held, err)
				}
			})
		})
	}
}

// flip changes one byte of a file.
func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, f.Close())
	}
	_, err = f.WriteAt([]byte{b[0] ^ 1}, at)
	return errors.Join(err, f.Close())
}

// A replica that starts without a leader does not show an empty state: what it does
// not know is left out.
func TestMetrics_LeaveOutWhatIsNotKnown(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newObserved()
		c := newClusterOf(t, dir, o.configure, "a", "b", "c")
		id, s := c.follower()
		put(t, s, store.Op{Key: "k"})
		version := s.Version()
		c.leave(id)
		alone := c.open(id, false)
		elapse(t, 10*time.Second)
		const keys, held, voters = "meshgate_store_keys", "meshgate_store_version", "meshgate_store_voters"
		if names := o.names(t, id); slices.Contains(names, keys) || slices.Contains(names, held) {
			t.Errorf("it is alone and shows %v", names)
		}
		if got := o.gauge(t, id, voters); got != 3 {
			t.Errorf("it is alone and shows %v voters", got)
		}
		for _, other := range []string{"a", "b", "c"} {
			if other != id {
				c.open(other, false)
			}
		}
		c.sync(alone)
		if k, v := o.gauge(t, id, keys), o.gauge(t, id, held); k != 1 || v != float64(version) {
			t.Errorf("with the others it shows %v keys at %v, want 1 at %d", k, v, version)
		}
	})
}
