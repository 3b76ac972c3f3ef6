// SPDX-License-Identifier: Apache-2.0

package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// step is an operation on one key. Every write has a value of its own, so a
// condition on a version is one on a value.
type step struct {
	key, write string // write is empty for a read
	// swap is true when the write has a condition: the value is old, or the
	// key is absent when that is empty.
	swap bool
	old  string
}

// result is how a step ended; unknown steps have none.
type result struct {
	value    string // read; empty when the key is absent
	conflict bool
	unknown  bool
}

// register is the model of one key.
func register() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, op := range history {
				key := op.Input.(step).key
				byKey[key] = append(byKey[key], op)
			}
			return slices.Collect(maps.Values(byKey))
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			value, in, out := state.(string), input.(step), output.(result)
			holds := !in.swap || value == in.old
			switch {
			case in.write == "":
				return out.value == value, value
			case out.unknown && !holds:
				return true, value
			case out.conflict:
				return !holds, value
			}
			return holds, in.write
		},
	}
}

// history records steps. Their order is that of a counter: under synctest
// clocks stand still.
type history struct {
	clock atomic.Int64
	mu    sync.Mutex // guards the fields below
	steps []porcupine.Operation
	// done, unknown and refused count how steps ended.
	done, unknown, refused int
}

// record makes a step; one that surely did not happen leaves no trace.
func (h *history) record(client int, in step, do func() (result, error)) {
	call := h.clock.Add(1)
	out, err := do()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.done++
	case errors.Is(err, store.ErrConflict):
		h.done++
		out.conflict = true
	case errors.Is(err, store.ErrUncertain) && in.write != "":
		h.unknown++
		out.unknown = true
		// It may happen at any later time, or never.
		h.steps = append(h.steps, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: 1 << 60})
		return
	default:
		h.refused++
		return
	}
	h.steps = append(h.steps, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: h.clock.Add(1)})
}

// chaos is a cluster that is disturbed while clients use it.
type chaos struct {
	*cluster
	// lock guards replicas: clients read, the disturber restarts. Time passes
	// while it is held, which a mutex would not let it do.
	lock chan struct{}
	h    history
}

func (c *chaos) pick(random *rand.Rand) *raftstore.Store {
	c.lock <- struct{}{}
	defer func() { <-c.lock }()
	ids := slices.Sorted(maps.Keys(c.replicas))
	return c.replicas[ids[random.IntN(len(ids))]]
}

// client reads, writes and swaps through any replica until ctx ends.
func (c *chaos) client(ctx context.Context, id int) {
	random := rand.New(rand.NewPCG(7, uint64(id)))
	for n := 0; ctx.Err() == nil; n++ {
		c.step(id, n, random)
		wait(ctx, time.Duration(random.IntN(40))*time.Millisecond)
	}
}

func (c *chaos) step(id, n int, random *rand.Rand) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*time.Second)
	defer cancel()
	s, in := c.pick(random), step{key: fmt.Sprintf("k%d", random.IntN(3))}
	var entry store.Entry
	kind := random.IntN(3)
	if kind > 0 {
		in.write = fmt.Sprintf("%d/%d", id, n)
	}
	if kind == 2 { // swap what is seen here, however old
		entry, _ = s.Get(ctx, in.key)
		in.swap, in.old = true, string(entry.Value)
	}
	c.h.record(id, in, func() (out result, err error) {
		// What a replica says after its power was cut, no client hears.
		defer func() {
			if _, off := c.off.Load(s); off {
				err = store.ErrUncertain
			}
		}()
		if in.write == "" {
			if err := s.Sync(ctx); err != nil {
				return result{}, err
			}
			e, err := s.Get(ctx, in.key)
			if errors.Is(err, store.ErrNotFound) {
				err = nil
			}
			return result{value: string(e.Value)}, err
		}
		batch := store.Batch{Ops: []store.Op{{Key: in.key, Value: []byte(in.write)}}}
		if in.swap {
			batch.If = []store.Condition{{Key: in.key, Version: entry.Version}}
		}
		_, err = s.Apply(ctx, batch)
		return result{}, err
	})
}

// disturb does something to the cluster every second until ctx ends.
func (c *chaos) disturb(ctx context.Context) (faults int) {
	random := rand.New(rand.NewPCG(1, 1))
	all := []string{"a", "b", "c"}
	for ; ctx.Err() == nil; faults++ {
		id := all[random.IntN(len(all))]
		switch random.IntN(6) {
		case 0:
			c.hub.Part([]string{id}, all)
		case 1:
			c.hub.Cut(id, all[random.IntN(len(all))])
		case 2: // power cut and restart
			if leader, _ := c.pick(random).Leader(); leader != "" && random.IntN(2) == 0 {
				id = leader // its disk is behind what it sent
			}
			c.lock <- struct{}{}
			c.kill(id)
			c.hub.Heal()
			c.open(id, false)
			<-c.lock
		case 3:
			short, cancel := context.WithTimeout(c.t.Context(), time.Second)
			_ = c.pick(random).Transfer(short, id)
			cancel()
		case 4:
			short, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
			_ = c.pick(random).Demote(short, id)
			_ = c.pick(random).Promote(short, id)
			cancel()
		default:
			c.hub.Heal()
		}
		wait(ctx, time.Second)
	}
	return faults
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// source is a source of numbers for several goroutines.
type source struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (s *source) intN(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.IntN(n)
}

// TestLinearizable records what clients see of a cluster that is cut apart,
// restarted and reconfigured, and checks that one copy of each key explains it.
func TestLinearizable(t *testing.T) {
	const clients, length = 12, 20 * time.Second
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := &chaos{cluster: newCluster(t, dir, "a", "b", "c"), lock: make(chan struct{}, 1)}
		random, disk := rand.New(rand.NewPCG(2, 2)), &source{r: rand.New(rand.NewPCG(3, 3))}
		c.lag = func() time.Duration { return time.Duration(disk.intN(30)) * time.Millisecond }
		for _, log := range c.logs {
			log.Slow(c.lag)
		}
		c.hub.Lag(func() time.Duration { return time.Duration(random.IntN(25)) * time.Millisecond })
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		var wg sync.WaitGroup
		for id := range clients {
			wg.Go(func() { c.client(ctx, id) })
		}
		faults := c.disturb(ctx)
		wg.Wait()
		c.hub.Heal()
		for _, id := range []string{"a", "b", "c"} {
			if err := c.replicas["a"].Promote(c.ctx(), id); err != nil {
				t.Errorf("promote %s in the end: %v", id, err)
			}
		}
		for i := range 3 { // what is there in the end
			in := step{key: fmt.Sprintf("k%d", i)}
			for _, s := range c.replicas {
				c.h.record(clients, in, func() (result, error) {
					c.sync(s)
					e, _ := s.Get(t.Context(), in.key)
					return result{value: string(e.Value)}, nil
				})
			}
		}
		t.Logf("%d faults, %d entries lost; %d steps done, %d unknown, %d surely not done", faults, c.lost, c.h.done, c.h.unknown, c.h.refused)
		if c.h.done < 600 {
			t.Errorf("only %d steps were done", c.h.done)
		}
		if got := porcupine.CheckOperationsTimeout(register(), c.h.steps, 0); got != porcupine.Ok {
			t.Errorf("the history is %v", got)
		}
	})
}
