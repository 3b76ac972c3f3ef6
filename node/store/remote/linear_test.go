// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/meshgate/meshgate/node/store"
)

// step is an operation on the one key of the history: a read, or a write that is
// unconditional or expects a value.
type step struct {
	write, old string // write is empty for a read
	swap       bool
}

type result struct {
	value             string
	conflict, unknown bool
}

func register() porcupine.Model {
	return porcupine.Model{
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

// history records what clients did.
type history struct {
	clock         atomic.Int64
	mu            sync.Mutex // guards the fields below
	steps         []porcupine.Operation
	done, unknown int
}

// record makes a step and notes it, unless it surely did not happen.
func (h *history) record(client int, in step, do func() (result, error)) {
	call := h.clock.Add(1)
	out, err := do()
	end := h.clock.Add(1)
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
		end = 1 << 60 // at any later time, or never
	default:
		return
	}
	h.steps = append(h.steps, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: end})
}

// made is how many steps were noted.
func (h *history) made() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.steps)
}

// worker reads and writes n times, each client with a store of its own.
func (h *history) worker(ctx context.Context, id, n int, s store.Store) {
	random := rand.New(rand.NewPCG(11, uint64(id)))
	for i := range n {
		var e store.Entry
		read := func() (result, error) {
			if err := s.Sync(ctx); err != nil {
				return result{}, err
			}
			var err error
			if e, err = s.Get(ctx, "k"); errors.Is(err, store.ErrNotFound) {
				e, err = store.Entry{}, nil
			}
			return result{value: string(e.Value)}, err
		}
		h.record(id, step{}, read)
		in := step{write: strconv.Itoa(id) + "." + strconv.Itoa(i), swap: random.IntN(3) > 0, old: string(e.Value)}
		b := store.Batch{Ops: []store.Op{{Key: "k", Value: []byte(in.write)}}}
		if in.swap {
			b.If = []store.Condition{{Key: "k", Version: e.Version}}
		}
		h.record(id, in, func() (result, error) {
			_, err := s.Apply(ctx, b)
			return result{}, err
		})
	}
}

// Clients read and write through three gateways that die, come back and are cut
// off from their leader: the history is that of one register, and a watcher beside
// them sees every version of it.
func TestStore_IsLinearizableWhileGatewaysFail(t *testing.T) {
	const clients, perClient = 4, 60
	m := newMemory(t)
	var replicas []*replica
	var gateways []*server
	for range 3 {
		r := newReplica(t, m)
		replicas, gateways = append(replicas, r), append(gateways, newServer(t, r, nil))
	}
	order := func(first int) *client {
		return newClient(t, nil, gateways[first%3].addr, gateways[(first+1)%3].addr, gateways[(first+2)%3].addr)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()

	watched := make(chan error, 1)
	var versions []uint64
	watchCtx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for c, err := range order(0).Watch(watchCtx, "", 0) {
			if err != nil {
				watched <- err
				return
			}
			versions = append(versions, c.Version)
			if c.Events[0].Key == "end" {
				break
			}
		}
		watched <- nil
	}()

	var h history
	var wait sync.WaitGroup
	for id := range clients {
		s := order(id)
		wait.Go(func() { h.worker(ctx, id, perClient, s) })
	}
	working := make(chan struct{})
	go func() { wait.Wait(); close(working) }()
	disturb(t, working, h.made, gateways, replicas)

	last := put(t, m, "end", "x")
	if err := <-watched; err != nil {
		t.Fatalf("watch: %v", err)
	}
	// Conflicts make no versions, so that the numbers have gaps: the state itself
	// tells which there were.
	i := 0
	for c, err := range m.Watch(ctx, "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		if i >= len(versions) || versions[i] != c.Version {
			t.Fatalf("the watch saw %v, and not version %d in place %d", versions, c.Version, i)
		}
		if i++; c.Version == last {
			break
		}
	}
	if i != len(versions) {
		t.Errorf("the watch saw %d changes, there were %d", len(versions), i)
	}
	t.Logf("%d steps were answered, %d have an unknown outcome", h.done, h.unknown)
	if h.done < clients*perClient || h.unknown > h.done/10 {
		t.Errorf("%d steps were answered, %d have an unknown outcome", h.done, h.unknown)
	}
	if got := porcupine.CheckOperationsTimeout(register(), h.steps, patience); got != porcupine.Ok {
		t.Errorf("history of %d steps: %s", len(h.steps), got)
	}
}

// disturb kills gateways and cuts replicas off, one at a time, until done. Between
// two faults some steps are made: on a slow machine most would fail otherwise.
func disturb(t *testing.T, done <-chan struct{}, made func() int, gateways []*server, replicas []*replica) {
	t.Helper()
	random := rand.New(rand.NewPCG(3, 5))
	pause := func(d time.Duration) bool {
		select {
		case <-done:
			return false
		case <-time.After(d):
			return true
		}
	}
	const stepsBetween = 12
	for next := 0; pause(20 * time.Millisecond); {
		if made() < next {
			continue
		}
		next = made() + stepsBetween
		i := random.IntN(3)
		if random.IntN(2) == 0 {
			gateways[i].kill()
			pause(40 * time.Millisecond)
			gateways[i].start()
			continue
		}
		mend := replicas[i].cut()
		pause(40 * time.Millisecond)
		mend()
	}
}
