// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// note is an operation of a history that is written down by hand.
func note(from, to int64, in step, out result) porcupine.Operation {
	return porcupine.Operation{Input: in, Output: out, Call: from, Return: to}
}

func wrote(from, to int64, value string) porcupine.Operation {
	return note(from, to, step{key: "k", write: value}, result{})
}

func saw(from, to int64, value string) porcupine.Operation {
	return note(from, to, step{key: "k", read: true}, result{value: value})
}

func swapped(from, to int64, old, value string, conflict bool) porcupine.Operation {
	return note(from, to, step{key: "k", write: value, swap: true, old: old}, result{conflict: conflict})
}

func TestCheck_ToldApart(t *testing.T) {
	lost := func(from int64, in step) porcupine.Operation {
		in.key = "k"
		return note(from, never, in, result{unknown: true})
	}
	for _, c := range []struct {
		name    string
		history []porcupine.Operation
		good    bool
	}{
		{"nothing happened", nil, true},
		{"a read of what was written", []porcupine.Operation{wrote(1, 2, "a"), saw(3, 4, "a")}, true},
		{"an acknowledged write is lost", []porcupine.Operation{wrote(1, 2, "a"), saw(3, 4, "")}, false},
		{"a stale read", []porcupine.Operation{wrote(1, 2, "a"), wrote(3, 4, "b"), saw(5, 6, "a")}, false},
		{"a read at the same time sees either", []porcupine.Operation{wrote(1, 2, "a"), wrote(3, 8, "b"), saw(5, 6, "a"), saw(9, 10, "b")}, true},
		{"reads go back in time", []porcupine.Operation{wrote(1, 2, "a"), wrote(3, 9, "b"), saw(4, 5, "b"), saw(6, 7, "a")}, false},
		{"a value out of nowhere", []porcupine.Operation{saw(1, 2, "x")}, false},
		{"a removal is lost", []porcupine.Operation{wrote(1, 2, "a"), wrote(3, 4, ""), saw(5, 6, "a")}, false},
		{"one of two swaps", []porcupine.Operation{wrote(1, 2, "a"), swapped(3, 4, "a", "b", false), swapped(5, 6, "a", "c", true)}, true},
		{"both of two swaps", []porcupine.Operation{wrote(1, 2, "a"), swapped(3, 6, "a", "b", false), swapped(4, 7, "a", "c", false)}, false},
		{"a swap is refused for nothing", []porcupine.Operation{wrote(1, 2, "a"), swapped(3, 4, "a", "b", true)}, false},
		{"an unknown write never happens", []porcupine.Operation{wrote(1, 2, "a"), lost(3, step{write: "b"}), saw(5, 6, "a")}, true},
		{"an unknown write happens late", []porcupine.Operation{wrote(1, 2, "a"), lost(3, step{write: "b"}), saw(5, 6, "a"), saw(7, 8, "b")}, true},
		{"an unknown write happens twice", []porcupine.Operation{lost(1, step{write: "b"}), saw(3, 4, "b"), wrote(5, 6, "c"), saw(7, 8, "b")}, false},
		{"an unknown write happens before it was made", []porcupine.Operation{saw(1, 2, "b"), lost(3, step{write: "b"})}, false},
		{"an unknown swap was refused", []porcupine.Operation{wrote(1, 2, "a"), lost(3, step{write: "b", swap: true, old: "x"}), saw(5, 6, "a")}, true},
		{"an unknown swap happened against its condition", []porcupine.Operation{wrote(1, 2, "a"), lost(3, step{write: "b", swap: true, old: "x"}), saw(5, 6, "b")}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := check(c.history, time.Minute)
			if (err == nil) != c.good {
				t.Errorf("got %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "key k:") {
				t.Errorf("it does not name the key: %v", err)
			}
		})
	}
}

// A history of honest clients with one thing changed in it is refused, whatever
// that is.
func TestCheck_OneWrongAnswerAmongMany(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var history []porcupine.Operation
	values := map[string]string{}
	for n := range 4000 {
		key, at := fmt.Sprint("k", n/100%10), int64(10*n)
		switch random.IntN(3) {
		case 0:
			value := fmt.Sprint(n)
			values[key] = value
			history = append(history, note(at, at+5, step{key: key, write: value}, result{}))
		case 1:
			history = append(history, note(at, at+15, step{key: key, write: "no", swap: true, old: "other"}, result{conflict: true}))
		default:
			history = append(history, note(at, at+5, step{key: key, read: true}, result{value: values[key]}))
		}
	}
	if err := check(history, time.Minute); err != nil {
		t.Fatal(err)
	}
	for i, op := range history {
		if !op.Input.(step).read || random.IntN(20) > 0 {
			continue
		}
		broken := slices.Clone(history)
		broken[i].Output = result{value: "lost"}
		if check(broken, time.Minute) == nil {
			t.Errorf("operation %d may answer anything", i)
		}
	}
}

// Not having decided is no success.
func TestCheck_TimeIsBounded(t *testing.T) {
	var history []porcupine.Operation
	for n := range 40 { // in any order, and no order explains the last
		history = append(history, note(int64(n), never, step{key: "k", write: fmt.Sprint(n)}, result{unknown: true}))
	}
	history = append(history, saw(100, 101, "0"), saw(102, 103, "1"), saw(104, 105, "0"))
	began := time.Now()
	if err := check(history, time.Millisecond); err == nil {
		t.Error("a history that is wrong was taken for right")
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s", took)
	}
}

func TestOutcome_RunsThatDoNotCount(t *testing.T) {
	cfg := settings{Operations: 1000}
	fresh := func() *outcome {
		o := &outcome{Took: 10 * time.Second, Acknowledged: 1999, Unknown: 1, Faults: map[string]int{}}
		for _, f := range faults() {
			o.Faults[f.name] = 1
		}
		return o
	}
	if err := fresh().valid(cfg); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*outcome){
		"kill -9":        func(o *outcome) { delete(o.Faults, "kill -9") },
		"per second":     func(o *outcome) { o.Took = 21 * time.Second },
		"unknown":        func(o *outcome) { o.Unknown = 40 },
		"only 901":       func(o *outcome) { o.Acknowledged = 900 },
		"for 40s":        func(o *outcome) { o.Gap = 40 * time.Second },
		"something else": func(o *outcome) { o.Wrong = "something else" },
	} {
		o := fresh()
		spoil(o)
		if err := o.valid(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want one that says %q", err, name)
		}
	}
}

func TestKeyspace_KeysComeToAnEnd(t *testing.T) {
	var k keyspace
	random := rand.New(rand.NewPCG(1, 1))
	counts := map[string]int{}
	for range 20 * slots * perKey {
		counts[k.pick(random)]++
	}
	all := k.all()
	if len(all) != len(counts) {
		t.Errorf("%d keys were used, %d are known", len(counts), len(all))
	}
	for _, key := range all {
		if n := counts[key]; n < 1 || n > perKey {
			t.Errorf("%s was used %d times", key, n)
		}
	}
}

func TestHistory_Gap(t *testing.T) {
	h := newHistory()
	h.steps = []porcupine.Operation{wrote(5, 50, "a"), note(1, never, step{write: "b"}, result{unknown: true}), wrote(7, 60, "c"), saw(65, 70, "c"), wrote(8, 90, "d"), wrote(80, 100, "e")}
	if got := h.gap(); got != 30 {
		t.Errorf("got %d, want 30", got)
	}
}
