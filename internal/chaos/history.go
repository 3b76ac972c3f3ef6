// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// step is an operation on one key. Every write has a value of its own, so a
// condition on a version is one on a value.
type step struct {
	key string
	// read is true for a read; else write is the value that is written, and
	// empty for a removal.
	read  bool
	write string
	// swap is true when the write has a condition: the value is old, or the
	// key is absent when that is empty.
	swap bool
	old  string
}

// result is how a step ended; unknown steps have none.
type result struct {
	value    string // read; empty when the key is absent
	conflict bool   // the condition did not hold
	unknown  bool
}

// register is the model of one key: a value, which is empty while it is absent.
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
			case in.read:
				return out.value == value, value
			case out.unknown && !holds: // it was refused, and nobody heard of that
				return true, value
			case out.conflict:
				return !holds, value
			}
			return holds, in.write
		},
	}
}

// check decides whether one copy of each key, changed by one step at a time,
// explains a history. Not having decided within limit is an error as well.
func check(history []porcupine.Operation, limit time.Duration) error {
	switch verdict := porcupine.CheckOperationsTimeout(register(), history, limit); verdict {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("the history was not checked within %s", limit)
	default:
		return fmt.Errorf("the history is not linearizable: %s", culprits(history))
	}
}

// culprits names the keys whose histories are wrong, a few of them.
func culprits(history []porcupine.Operation) string {
	const most, each = 3, time.Second
	text, found := "", 0
	for _, ops := range register().Partition(history) {
		if porcupine.CheckOperationsTimeout(register(), ops, each) != porcupine.Illegal {
			continue
		}
		if found++; found > most {
			return text + " and more"
		}
		text += fmt.Sprintf("\nkey %s:", ops[0].Input.(step).key)
		slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		for _, op := range ops {
			text += fmt.Sprintf("\n  client %d, %s to %s: %s", op.ClientId, time.Duration(op.Call), ended(op.Return), describe(op.Input.(step), op.Output.(result)))
		}
	}
	return text
}

// describe says what an operation did.
func describe(in step, out result) string {
	text := fmt.Sprintf("write %q", in.write)
	switch {
	case in.read:
		return fmt.Sprintf("read %q", out.value)
	case in.swap:
		text += fmt.Sprintf(" in place of %q", in.old)
	}
	switch {
	case out.unknown:
		return text + ", no answer"
	case out.conflict:
		return text + ", refused"
	}
	return text
}

// never is when a step ends of which nobody knows whether and when it happens.
const never = int64(1) << 62

func ended(at int64) string {
	if at == never {
		return "never"
	}
	return time.Duration(at).String()
}

// history records steps. It is safe for concurrent use.
type history struct {
	began time.Time

	mu    sync.Mutex // guards the fields below
	steps []porcupine.Operation
	// done, unknown and refused count how steps ended: with an answer, without
	// one, or surely not done at all.
	done, unknown, refused int
	latencies              []time.Duration // of those that are done
}

func newHistory() *history { return &history{began: time.Now()} }

// now is the time of an event of the history.
func (h *history) now() int64 { return int64(time.Since(h.began)) }

// answered records a step with its answer.
func (h *history) answered(client int, call int64, in step, out result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	end := h.now()
	h.done++
	h.latencies = append(h.latencies, time.Duration(end-call))
	h.steps = append(h.steps, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: end})
}

// lost records a write that got no answer: it may happen at any later time, or
// never.
func (h *history) lost(client int, call int64, in step) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unknown++
	h.steps = append(h.steps, porcupine.Operation{ClientId: client, Input: in, Output: result{unknown: true}, Call: call, Return: never})
}

// skipped counts a step that surely did not happen: it leaves no trace.
func (h *history) skipped() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused++
}

// recorded is how many steps there are.
func (h *history) recorded() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.steps)
}

// gap is the longest time between two answers to writes.
func (h *history) gap() (longest time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := int64(0)
	for _, op := range h.steps { // in the order in which they ended
		if op.Return == never || op.Input.(step).read {
			continue
		}
		if last > 0 {
			longest = max(longest, time.Duration(op.Return-last))
		}
		last = op.Return
	}
	return longest
}
