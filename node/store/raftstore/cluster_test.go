// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/node/store/raftstore/raftstoretest"
	"github.com/meshgate/meshgate/node/store/raftstore/wal"
	"github.com/meshgate/meshgate/node/store/storetest"
)

// cluster is some replicas on one network.
type cluster struct {
	t        testing.TB
	hub      *raftstoretest.Hub
	dir      string // empty: in memory
	replicas map[string]*raftstore.Store
	// configure may change how a replica is opened.
	configure func(*raftstore.Config)
	logs      map[string]*raftstore.FaultyLog
	// lag is how long a sync of a disk takes; nil: no time.
	lag  func() time.Duration
	lost int // entries that power cuts took
	// off holds the replicas, *raftstore.Store, whose power was cut.
	off sync.Map
}

// newCluster starts replicas with the given ids, the first of which makes the
// cluster and adds the others as voters.
func newCluster(t testing.TB, dir string, ids ...string) *cluster {
	return newClusterOf(t, dir, nil, ids...)
}

func newClusterOf(t testing.TB, dir string, configure func(*raftstore.Config), ids ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, hub: raftstoretest.NewHub(), dir: dir, replicas: map[string]*raftstore.Store{}, configure: configure,
		logs: map[string]*raftstore.FaultyLog{}}
	for i, id := range ids {
		s := c.open(id, i > 0)
		if i == 0 {
			c.sync(s)
			continue
		}
		if err := c.replicas[ids[0]].AddVoter(c.ctx(), id, address(id)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func address(id string) string { return id + ":1" }

// ctx ends a test that waits for something that does not come.
func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	c.t.Cleanup(cancel)
	return ctx
}

// open starts a replica at its usual address.
func (c *cluster) open(id string, join bool) *raftstore.Store {
	c.t.Helper()
	return c.openAt(id, address(id), join)
}

func (c *cluster) openAt(id, address string, join bool) *raftstore.Store {
	c.t.Helper()
	cfg := raftstore.Config{
		ID: id, Address: address, Network: c.hub.Endpoint(id, address), Join: join,
		Logger: slog.New(slog.NewTextHandler(c.t.Output(), nil)).With("on", id),
	}
	if c.dir != "" {
		cfg.Dir = filepath.Join(c.dir, id)
	}
	if c.configure != nil {
		c.configure(&cfg)
	}
	s, log, err := raftstore.OpenFaulty(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	log.Slow(c.lag)
	c.replicas[id], c.logs[id] = s, log
	c.t.Cleanup(func() {
		// A test that breaks a disk has seen that error before.
		if err := s.Close(); err != nil && !errors.Is(err, raftstore.ErrDisk) {
			c.t.Errorf("close %s: %v", id, err)
		}
	})
	return s
}

// kill stops a replica as a power cut does: what was not synced is gone, and
// the others notice nothing but that it is silent. It stays out of reach until
// heal.
func (c *cluster) kill(id string) {
	c.t.Helper()
	var others []string
	for other := range c.replicas {
		if other != id {
			others = append(others, other)
		}
	}
	c.hub.Part([]string{id}, others)
	s := c.replicas[id]
	c.off.Store(s, true)
	synced := c.logs[id].Synced() // nobody may hear of what comes after it
	delete(c.replicas, id)
	if err := s.Close(); err != nil {
		c.t.Errorf("close %s: %v", id, err)
	}
	if c.dir != "" {
		c.lose(filepath.Join(c.dir, id, "log"), synced)
	}
}

// lose removes the entries behind one from a log that is closed.
func (c *cluster) lose(dir string, synced uint64) {
	c.t.Helper()
	log, err := wal.Open(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err == nil && last > synced {
		err = log.DeleteRange(synced+1, last)
		c.lost += int(last - synced)
	}
	if err := errors.Join(err, log.Close()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) sync(stores ...*raftstore.Store) {
	c.t.Helper()
	for _, s := range stores {
		if err := s.Sync(c.ctx()); err != nil {
			c.t.Fatalf("sync: %v", err)
		}
	}
}

// put writes a key as its own value, again if need be.
func (c *cluster) put(s store.Store, key string) {
	c.t.Helper()
	for {
		_, err := s.Apply(c.ctx(), store.Batch{Ops: []store.Op{{Key: key, Value: []byte(key)}}})
		if err == nil {
			return
		}
		if !errors.Is(err, store.ErrUncertain) {
			c.t.Fatalf("apply: %v", err)
		}
	}
}

// leader waits until a replica leads, and all that can are told so.
func (c *cluster) leader() (string, *raftstore.Store) {
	c.t.Helper()
	ctx := c.ctx()
	for {
		for id, s := range c.replicas {
			if _, self := s.Leader(); self {
				if err := s.Sync(ctx); err != nil {
					c.t.Fatal(err)
				}
				return id, s
			}
		}
		c.pause(ctx)
	}
}

// follower returns a replica that does not lead and knows who does.
func (c *cluster) follower() (string, *raftstore.Store) {
	c.t.Helper()
	ctx := c.ctx()
	leading, _ := c.leader()
	for {
		for id, s := range c.replicas {
			if leader, self := s.Leader(); !self && leader == leading {
				return id, s
			}
		}
		c.pause(ctx)
	}
}

// until polls a condition.
func (c *cluster) until(what string, holds func() bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	for !holds() {
		if ctx.Err() != nil {
			c.t.Fatalf("not within 30 s: %s", what)
		}
		c.pause(ctx)
	}
}

func (c *cluster) pause(ctx context.Context) {
	c.t.Helper()
	timer := time.NewTimer(5 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		c.t.Fatal(ctx.Err())
	}
}

// calm is for tests on a real clock: a machine that is busy with other things
// for a second makes no election.
func calm(cfg *raftstore.Config) { cfg.ElectionTimeout = 10 * time.Second }

func TestConformance_Cluster(t *testing.T) {
	t.Run("Leader", func(t *testing.T) {
		storetest.Run(t, func(t testing.TB) store.Store {
			_, s := newClusterOf(t, "", calm, "a", "b", "c").leader()
			return s
		})
	})
	t.Run("Follower", func(t *testing.T) {
		storetest.Run(t, func(t testing.TB) store.Store {
			_, s := newClusterOf(t, "", calm, "a", "b", "c").follower()
			return s
		})
	})
	t.Run("Observer", func(t *testing.T) {
		storetest.Run(t, func(t testing.TB) store.Store {
			c := newClusterOf(t, "", calm, "a")
			s := c.open("o", true)
			if err := c.replicas["a"].AddObserver(c.ctx(), "o", address("o")); err != nil {
				t.Fatal(err)
			}
			return s
		})
	})
}

func TestCluster_EveryReplicaTakesWritesAndReads(t *testing.T) {
	c := newClusterOf(t, "", calm, "a", "b", "c")
	for i := range 10 {
		for id, s := range c.replicas {
			key := fmt.Sprintf("%s%d", id, i)
			put(t, s, store.Op{Key: key, Value: []byte(key)})
			if _, err := s.Get(t.Context(), key); err != nil {
				t.Fatalf("the replica that wrote: %v", err)
			}
			for other, r := range c.replicas {
				c.sync(r)
				if _, err := r.Get(t.Context(), key); err != nil {
					t.Fatalf("%s wrote, %s does not show it: %v", id, other, err)
				}
			}
		}
	}
	_, follower := c.follower()
	version, err := follower.Apply(t.Context(), store.Batch{If: []store.Condition{{Key: "a0"}}, Ops: []store.Op{{Key: "x"}}})
	if !errors.Is(err, store.ErrConflict) || version != follower.Version() {
		t.Errorf("got version %d, %v, want %d and ErrConflict", version, err, follower.Version())
	}
}
