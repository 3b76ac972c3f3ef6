// SPDX-License-Identifier: Apache-2.0

package kv_test

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func put(key, value string, ttl time.Duration) store.Batch {
	return store.Batch{Ops: []store.Op{{Key: key, Value: []byte(value), TTL: ttl}}}
}

func all(t testing.TB, s *kv.State) []store.Entry {
	t.Helper()
	entries, _, err := s.List("")
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestExpire_RemovesWhatHasPassedAsOneChange(t *testing.T) {
	s := kv.New()
	for i, ttl := range []time.Duration{3 * time.Second, time.Second, 2 * time.Second, 0} {
		if _, err := s.Apply(uint64(i+1), epoch, put(fmt.Sprint(i), "x", ttl)); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Expire(5, epoch.Add(time.Second-1)); got != 4 {
		t.Errorf("nothing had passed: version is %d, want 4", got)
	}
	if at, _ := s.NextExpiry(); !at.Equal(epoch.Add(time.Second)) {
		t.Errorf("next end is %v, want %v", at, epoch.Add(time.Second))
	}
	if got := s.Expire(6, epoch.Add(2*time.Second)); got != 6 {
		t.Errorf("version is %d, want 6", got)
	}
	var keys []string
	for c, err := range s.Watch(t.Context(), "", 4) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range c.Events {
			if !e.Deleted || e.Version != 6 {
				t.Errorf("got event %+v, want a removal at version 6", e)
			}
			keys = append(keys, e.Key)
		}
		break
	}
	if want := []string{"1", "2"}; !slices.Equal(keys, want) {
		t.Errorf("removed %q, want %q in the order of their ends", keys, want)
	}
	if got := s.Len(); got != 2 {
		t.Errorf("%d keys are left, want 2", got)
	}
}

func TestNextExpiry_WakesWhenAnEarlierEndAppears(t *testing.T) {
	s := kv.New()
	at, wake := s.NextExpiry()
	if !at.IsZero() {
		t.Fatalf("an empty state has the end %v", at)
	}
	_, _ = s.Apply(1, epoch, put("a", "x", 0))
	if woken(wake) {
		t.Error("woken by a key without an end")
	}
	_, _ = s.Apply(2, epoch, put("b", "x", time.Hour))
	if !woken(wake) {
		t.Error("not woken by the first end")
	}
	_, wake = s.NextExpiry()
	_, _ = s.Apply(3, epoch, put("c", "x", 2*time.Hour))
	if woken(wake) {
		t.Error("woken by a later end")
	}
	_, _ = s.Apply(4, epoch, put("d", "x", time.Minute))
	if at, _ := s.NextExpiry(); !woken(wake) || !at.Equal(epoch.Add(time.Minute)) {
		t.Errorf("not woken by an earlier end, next is %v", at)
	}
}

func TestFreeze_IsNotMovedByLaterCommands(t *testing.T) {
	s := kv.New()
	for i := range 1000 {
		_, _ = s.Apply(uint64(i+1), epoch, put(fmt.Sprintf("%04d", i), "old", 0))
	}
	frozen, version := s.Freeze()
	for i := range 1000 {
		_, _ = s.Apply(uint64(i+1001), epoch, put(fmt.Sprintf("%04d", i), "new", 0))
	}
	n := 0
	for e := range frozen {
		if string(e.Value) != "old" {
			t.Fatalf("%s is %q in the frozen state", e.Key, e.Value)
		}
		n++
	}
	if n != 1000 || version != 1000 {
		t.Errorf("frozen state has %d entries at version %d, want 1000 at 1000", n, version)
	}
}

func TestRestore_ReplacesStateAndEndsOldWatches(t *testing.T) {
	s := kv.New()
	_, _ = s.Apply(1, epoch, put("a", "x", time.Hour))
	next, stop := iter.Pull2(s.Watch(t.Context(), "", 1))
	defer stop()
	want := []store.Entry{
		{Key: "b", Value: []byte("y"), Version: 7},
		{Key: "c", Value: []byte("z"), Version: 9, ExpiresAt: epoch.Add(time.Minute)},
	}
	_, wake := s.NextExpiry()
	s.Restore(9, slices.Values(want))
	if diff := cmp.Diff(want, all(t, s)); diff != "" {
		t.Errorf("restored state (-want +got):\n%s", diff)
	}
	<-wake
	if at, _ := s.NextExpiry(); !at.Equal(epoch.Add(time.Minute)) {
		t.Errorf("next end is %v, want that of c", at)
	}
	if c, err, _ := next(); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch got %v, %v, want ErrCompacted", c, err)
	}
	_, _ = s.Apply(10, epoch, put("d", "x", 0))
	for c, err := range s.Watch(t.Context(), "", 9) {
		if err != nil || c.Version != 10 {
			t.Errorf("watch from the restored version: got %v, %v", c, err)
		}
		break
	}
}

// TestDeterminism gives the same random commands to two machines, of which one
// is frozen and restored into a new one in between, and to a plain model.
func TestDeterminism(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := kv.New(), kv.New()
		model := map[string]store.Entry{}
		key := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		n := rapid.IntRange(1, 60).Draw(t, "commands")
		for version := uint64(1); version <= uint64(n); version++ {
			now := epoch.Add(time.Duration(version) * time.Second)
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				a.Expire(version, now)
				b.Expire(version, now)
				for k, e := range model {
					if !e.ExpiresAt.IsZero() && !e.ExpiresAt.After(now) {
						delete(model, k)
					}
				}
			} else {
				applyToModel(t, a, b, model, version, now, drawBatch(t, key, model))
			}
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				entries, version := b.Freeze()
				b = kv.New()
				b.Restore(version, entries)
			}
		}
		entriesA, versionA := a.Freeze()
		entriesB, versionB := b.Freeze()
		if diff := cmp.Diff(slices.Collect(entriesA), slices.Collect(entriesB)); diff != "" || versionA != versionB {
			t.Fatalf("machines differ at versions %d and %d:\n%s", versionA, versionB, diff)
		}
		got := map[string]store.Entry{}
		for e := range entriesA {
			got[e.Key] = e
		}
		if diff := cmp.Diff(model, got); diff != "" {
			t.Fatalf("state differs from the model (-model +state):\n%s", diff)
		}
		nextA, _ := a.NextExpiry()
		if nextB, _ := b.NextExpiry(); !nextA.Equal(nextB) {
			t.Fatalf("next ends are %v and %v", nextA, nextB)
		}
	})
}

func drawBatch(t *rapid.T, key *rapid.Generator[string], model map[string]store.Entry) store.Batch {
	var b store.Batch
	for range rapid.IntRange(0, 2).Draw(t, "conditions") {
		k := key.Draw(t, "condition")
		c := store.Condition{Key: k, Version: model[k].Version}
		if rapid.IntRange(0, 3).Draw(t, "wrong") == 0 {
			c.Version++
		}
		b.If = append(b.If, c)
	}
	for range rapid.IntRange(1, 3).Draw(t, "operations") {
		op := store.Op{Key: key.Draw(t, "key"), Delete: rapid.Bool().Draw(t, "delete")}
		if !op.Delete {
			op.Value = []byte(rapid.StringN(0, 3, 8).Draw(t, "value"))
			op.TTL = time.Duration(rapid.IntRange(0, 5).Draw(t, "ttl")) * time.Second
		}
		b.Ops = append(b.Ops, op)
	}
	return b
}

func applyToModel(t *rapid.T, a, b *kv.State, model map[string]store.Entry, version uint64, now time.Time, batch store.Batch) {
	versionA, errA := a.Apply(version, now, batch)
	versionB, errB := b.Apply(version, now, batch)
	if versionA != versionB || errors.Is(errA, store.ErrConflict) != errors.Is(errB, store.ErrConflict) {
		t.Fatalf("answers differ: %d, %v and %d, %v", versionA, errA, versionB, errB)
	}
	for _, c := range batch.If {
		if model[c.Key].Version != c.Version {
			if errA == nil {
				t.Fatalf("condition %v does not hold, but the batch was applied", c)
			}
			return
		}
	}
	if errA != nil {
		t.Fatalf("every condition holds, but got %v", errA)
	}
	for _, op := range batch.Ops {
		if op.Delete {
			delete(model, op.Key)
			continue
		}
		e := store.Entry{Key: op.Key, Version: version}
		if len(op.Value) > 0 {
			e.Value = op.Value
		}
		if op.TTL > 0 {
			e.ExpiresAt = now.Add(op.TTL)
		}
		model[op.Key] = e
	}
}

func TestDo_IsTheSameAsOneCommandAfterTheOther(t *testing.T) {
	commands := []kv.Command{
		{Version: 3, At: epoch, Batch: put("a", "1", time.Second)},
		{Version: 5, At: epoch, Batch: store.Batch{If: []store.Condition{{Key: "a", Version: 3}}, Ops: []store.Op{{Key: "b"}}}},
		{Version: 6, At: epoch, Batch: store.Batch{If: []store.Condition{{Key: "a", Version: 5}}, Ops: []store.Op{{Key: "c"}}}},
		{Version: 7, At: epoch, Batch: store.Batch{Ops: []store.Op{{Key: "c", Delete: true}}}},
		{Version: 8, At: epoch.Add(time.Second), Expire: true},
		{Version: 9, At: epoch, Batch: put("a", "2", 0)},
	}
	together, one := kv.New(), kv.New()
	var want []kv.Result
	for _, c := range commands {
		var r kv.Result
		if c.Expire {
			r.Version = one.Expire(c.Version, c.At)
		} else {
			r.Version, r.Err = one.Apply(c.Version, c.At, c.Batch)
		}
		want = append(want, r)
	}
	got := together.Do(commands, nil)
	for i, r := range got {
		if r.Version != want[i].Version || errors.Is(r.Err, store.ErrConflict) != errors.Is(want[i].Err, store.ErrConflict) {
			t.Errorf("command %d: got %+v, want %+v", i, r, want[i])
		}
	}
	if len(got) != len(want) || !errors.Is(got[2].Err, store.ErrConflict) {
		t.Errorf("got %d results: %+v", len(got), got)
	}
	if diff := cmp.Diff(all(t, one), all(t, together)); diff != "" {
		t.Errorf("the states differ (-one by one +together):\n%s", diff)
	}
	var versions []uint64
	for c, err := range together.Watch(t.Context(), "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		if versions = append(versions, c.Version); c.Version == 9 {
			break
		}
	}
	if want := []uint64{3, 5, 8, 9}; !slices.Equal(versions, want) {
		t.Errorf("a watcher saw the versions %v, want %v", versions, want)
	}
}

// woken says whether a channel is closed.
func woken(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestReached_WakesEachAtItsVersion(t *testing.T) {
	s := kv.New()
	var waits []<-chan struct{}
	for _, version := range []uint64{4, 2, 9, 2, 3} {
		reached, stop := s.Reached(version)
		defer stop()
		waits = append(waits, reached)
	}
	given, stop := s.Reached(2)
	stop()
	stop()
	seen := func() (list []bool) {
		for _, c := range waits {
			list = append(list, woken(c))
		}
		return list
	}
	for _, step := range []struct {
		do   func()
		want []bool
	}{
		{func() { _, _ = s.Apply(1, epoch, put("k", "1", time.Second)) }, []bool{false, false, false, false, false}},
		{func() { _, _ = s.Apply(2, epoch, put("k", "2", time.Second)) }, []bool{false, true, false, true, false}},
		{func() { s.Expire(5, epoch.Add(time.Second)) }, []bool{true, true, false, true, true}},
		{func() { _, _ = s.Apply(8, epoch, store.Batch{Ops: []store.Op{{Key: "k", Delete: true}}}) }, []bool{true, true, false, true, true}},
		{func() { s.Restore(9, slices.Values([]store.Entry(nil))) }, []bool{true, true, true, true, true}},
	} {
		step.do()
		if got := seen(); !slices.Equal(got, step.want) {
			t.Errorf("at version %d woken are %v, want %v", s.Version(), got, step.want)
		}
	}
	if woken(given) {
		t.Error("who gave up was woken")
	}
	if reached, stop := s.Reached(9); !woken(reached) {
		t.Error("a version that is there is waited for")
	} else {
		stop()
	}
	if s.Err() != nil {
		t.Errorf("an open state says %v", s.Err())
	}
	reached, stop := s.Reached(10)
	defer stop()
	s.Close()
	if !woken(reached) || !errors.Is(s.Err(), store.ErrClosed) {
		t.Errorf("after Close: woken is %v, the error %v", woken(reached), s.Err())
	}
}
