// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/node/store/raftstore/raftstoretest"
	"github.com/meshgate/meshgate/node/store/remote"
)

// raftCluster makes three gateways that keep a state by raft, in memory.
func raftCluster(t *testing.T) (*raftstoretest.Hub, map[string]*raftstore.Store) {
	t.Helper()
	hub, replicas := raftstoretest.NewHub(), map[string]*raftstore.Store{}
	for _, id := range []string{"gw-1", "gw-2", "gw-3"} {
		address := id + ":1"
		s, err := raftstore.Open(raftstore.Config{
			ID: id, Address: address, Network: hub.Endpoint(id, address), Join: len(replicas) > 0, ElectionTimeout: time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Errorf("close %s: %v", id, err)
			}
		})
		if replicas[id] = s; len(replicas) == 1 {
			err = s.Sync(testContext(t))
		} else {
			err = replicas["gw-1"].AddVoter(testContext(t), id, address)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return hub, replicas
}

// Changes and a watch go on through a cluster whose leaders are cut off, and whose
// gateways die, in turn. The watch sees what the log of the cluster has.
func TestStore_OverARaftCluster(t *testing.T) {
	hub, replicas := raftCluster(t)
	ids := []string{"gw-1", "gw-2", "gw-3"}
	gateways := map[string]*server{}
	var addrs []netip.AddrPort
	for _, id := range ids {
		gateways[id] = newServer(t, replicas[id], nil)
		addrs = append(addrs, gateways[id].addr)
	}
	c := newClient(t, func(cfg *remote.Config) { cfg.Timeout = time.Second }, addrs...)
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	watched := make(chan []string, 1)
	go func() {
		var lines []string
		for change, err := range c.Watch(ctx, "", 0) {
			if err != nil {
				lines = append(lines, err.Error())
				break
			}
			line := fmt.Sprint(change.Version, " ", change.Events[0].Key)
			if lines = append(lines, line); change.Events[0].Key == "end" {
				break
			}
		}
		watched <- lines
	}()

	for round := range 6 {
		var mend func()
		if round%2 == 0 {
			leader := leaderOf(t, replicas)
			others := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == leader })
			hub.Part([]string{leader}, others)
			mend = hub.Heal
		} else {
			g := gateways[ids[round/2]]
			g.kill()
			mend = g.start
		}
		for i := range 5 {
			write(t, c, fmt.Sprintf("k-%d-%d", round, i))
		}
		mend()
	}
	write(t, c, "end")

	got := <-watched
	var want []string
	log := replicas[leaderOf(t, replicas)]
	if err := log.Sync(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for change, err := range log.Watch(testContext(t), "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		if want = append(want, fmt.Sprint(change.Version, " ", change.Events[0].Key)); change.Events[0].Key == "end" {
			break
		}
	}
	if !slices.Equal(got, want) || len(want) < 31 {
		t.Errorf("the watch saw %q, the log has %q", got, want)
	}
}

// write puts a key, asking after every uncertain answer whether it is there.
func write(t *testing.T, c *client, key string) {
	t.Helper()
	for {
		_, err := c.Apply(testContext(t), store.Batch{If: []store.Condition{{Key: key}}, Ops: []store.Op{{Key: key}}})
		if err == nil || errors.Is(err, store.ErrConflict) { // an earlier one happened
			return
		}
		if !errors.Is(err, store.ErrUncertain) {
			t.Fatalf("put %s: %v", key, err)
		}
		if err := c.Sync(testContext(t)); err != nil {
			t.Fatalf("sync after an uncertain change: %v", err)
		}
		if _, err := c.Get(testContext(t), key); err == nil {
			return
		} else if !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("get after an uncertain change: %v", err)
		}
	}
}

// leaderOf waits for a replica that leads.
func leaderOf(t *testing.T, replicas map[string]*raftstore.Store) (leader string) {
	t.Helper()
	poll(t, func() bool {
		for id, s := range replicas {
			if _, self := s.Leader(); self {
				leader = id
				return true
			}
		}
		return false
	})
	return leader
}
