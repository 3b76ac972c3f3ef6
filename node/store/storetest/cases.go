// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/store"
)

func testGet(t *testing.T, f fixture) {
	f.wantMissing("a")
	version := f.put("a", "1")
	if e := f.get("a"); e.Key != "a" || string(e.Value) != "1" || e.Version != version || !e.ExpiresAt.IsZero() {
		t.Errorf("got %+v, want a=1 at version %d without an end", e, version)
	}
	f.put("a", "")
	if e := f.get("a"); len(e.Value) != 0 {
		t.Errorf("got %q, want an empty value", e.Value)
	}
	f.put("a", "\xff\x00")
	if e := f.get("a"); string(e.Value) != "\xff\x00" {
		t.Errorf("got %q, want the bytes as written", e.Value)
	}
}

func testDelete(t *testing.T, f fixture) {
	put := f.put("a", "1")
	removed := f.delete("a")
	if removed <= put {
		t.Errorf("removal made version %d after %d", removed, put)
	}
	f.wantMissing("a")
	if again := f.delete("a"); again != removed {
		t.Errorf("removal of an absent key made version %d after %d", again, removed)
	}
	f.put("a", "2")
	f.wantList("", "a=2")
}

func testList(t *testing.T, f fixture) {
	f.wantList("")
	for _, key := range []string{"b/2", "a", "b/1", "b", "c", "b/10", "bb", "ü"} {
		f.put(key, "x")
	}
	version := f.delete("c")
	f.wantList("", "a=x", "b=x", "b/1=x", "b/10=x", "b/2=x", "bb=x", "ü=x")
	f.wantList("b", "b=x", "b/1=x", "b/10=x", "b/2=x", "bb=x")
	f.wantList("b/", "b/1=x", "b/10=x", "b/2=x")
	f.wantList("b/1", "b/1=x", "b/10=x")
	f.wantList("z")
	if _, got := f.list("z"); got != version {
		t.Errorf("list is of version %d, want %d", got, version)
	}
}

func testVersions(t *testing.T, f fixture) {
	_, last := f.list("")
	for i := range 20 {
		version := f.put("k"+strconv.Itoa(i%3), "x")
		if version <= last {
			t.Fatalf("change %d made version %d after %d", i, version, last)
		}
		last = version
		if _, got := f.list(""); got != version {
			t.Fatalf("list is of version %d, want %d", got, version)
		}
	}
}

func testBatchIsOrdered(t *testing.T, f fixture) {
	f.put("old", "1")
	version := f.apply(store.Batch{Ops: []store.Op{
		put("a", "1"), put("a", "2"), remove("old"), put("b", "1"), remove("b"), remove("c"), put("c", "1"),
	}})
	f.wantList("", "a=2", "c=1")
	if e := f.get("a"); e.Version != version {
		t.Errorf("a has version %d, want %d", e.Version, version)
	}
}

func testConditions(t *testing.T, f fixture) {
	a := f.put("a", "1")
	b := f.put("b", "1")
	tests := []struct {
		name string
		when []store.Condition
		ok   bool
	}{
		{"absent key", []store.Condition{{Key: "none"}}, true},
		{"absent key expected", []store.Condition{{Key: "none", Version: a}}, false},
		{"same version", []store.Condition{{Key: "a", Version: a}, {Key: "b", Version: b}}, true},
		{"key must not exist", []store.Condition{{Key: "a"}}, false},
		{"other version", []store.Condition{{Key: "a", Version: b}}, false},
		{"one of two fails", []store.Condition{{Key: "a", Version: a}, {Key: "b", Version: a}}, false},
	}
	for _, tt := range tests {
		_, before := f.list("")
		version, err := f.Apply(f.ctx, store.Batch{If: tt.when, Ops: []store.Op{put("out", tt.name)}})
		switch {
		case tt.ok && (err != nil || version <= before):
			t.Errorf("%s: got version %d, %v, want a change", tt.name, version, err)
		case !tt.ok && (!errors.Is(err, store.ErrConflict) || version != before):
			t.Errorf("%s: got version %d, %v, want %d and ErrConflict", tt.name, version, err, before)
		}
	}
	f.delete("a")
	if _, err := f.Apply(f.ctx, store.Batch{If: []store.Condition{{Key: "a", Version: a}}, Ops: []store.Op{put("a", "2")}}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("condition on a removed key: got %v, want ErrConflict", err)
	}
	// Conditions speak of the state before the batch.
	f.apply(store.Batch{If: []store.Condition{{Key: "a"}}, Ops: []store.Op{put("a", "3")}})
}

func testRefusedBatch(t *testing.T, f fixture) {
	f.put("a", "1")
	_, before := f.list("")
	_, err := f.Apply(f.ctx, store.Batch{
		If:  []store.Condition{{Key: "b", Version: 1}},
		Ops: []store.Op{put("a", "2"), put("c", "1"), remove("a")},
	})
	if !errors.Is(err, store.ErrConflict) {
		t.Fatalf("got %v, want ErrConflict", err)
	}
	f.wantList("", "a=1")
	if _, after := f.list(""); after != before {
		t.Errorf("version moved from %d to %d", before, after)
	}
}

func testInvalidBatch(t *testing.T, f fixture) {
	for _, b := range []store.Batch{
		{},
		{Ops: []store.Op{{}}},
		{Ops: []store.Op{put("a", "1"), {Key: "b", TTL: -1}}},
		{Ops: []store.Op{put(strings.Repeat("k", store.MaxKey+1), "")}},
	} {
		if _, err := f.Apply(f.ctx, b); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	}
	f.wantList("")
}

func testCancelledApply(t *testing.T, f fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, err := f.Apply(ctx, store.Batch{Ops: []store.Op{put("a", "1")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	f.wantMissing("a")
}

func testValuesAreCopied(t *testing.T, f fixture) {
	value := []byte("abc")
	f.apply(store.Batch{Ops: []store.Op{{Key: "a", Value: value}}})
	copy(value, "xyz")
	if e := f.get("a"); string(e.Value) != "abc" {
		t.Errorf("got %q, want what was written", e.Value)
	}
}

// testConcurrentCounters has workers that add to one key by compare and swap:
// a lost update would leave the sum too small.
func testConcurrentCounters(t *testing.T, f fixture) {
	const workers, adds = 4, 10
	err := parallel(workers, func(int) error {
		for done := 0; done < adds; {
			e, err := f.Get(f.ctx, "sum")
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			sum, _ := strconv.Atoi(string(e.Value))
			_, err = f.Apply(f.ctx, store.Batch{
				If:  []store.Condition{{Key: "sum", Version: e.Version}},
				Ops: []store.Op{put("sum", strconv.Itoa(sum+1))},
			})
			switch {
			case err == nil:
				done++
			case !errors.Is(err, store.ErrConflict):
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.wantList("", fmt.Sprintf("sum=%d", workers*adds))
}

func testWatchFromStart(t *testing.T, f fixture) {
	_, start := f.list("")
	first := f.put("a", "1")
	w := f.watch("", start)
	w.want(first, "a=1")
	second := f.put("a", "2")
	third := f.delete("a")
	f.delete("a") // changes nothing
	fourth := f.put("b", "")
	w.want(second, "a=2")
	w.want(third, "-a")
	w.want(fourth, "b=")
}

func testWatchResumes(t *testing.T, f fixture) {
	f.put("a", "1")
	second := f.put("a", "2")
	third := f.put("a", "3")
	f.watch("", second).want(third, "a=3")
	_, now := f.list("")
	w := f.watch("", now)
	w.want(f.put("a", "4"), "a=4")
}

func testWatchPrefix(t *testing.T, f fixture) {
	_, start := f.list("")
	w := f.watch("b/", start)
	f.put("a", "1")
	first := f.put("b/1", "x")
	f.put("b", "x")
	second := f.apply(store.Batch{Ops: []store.Op{put("a", "2"), put("b/2", "y"), remove("b"), remove("b/1")}})
	f.put("bb", "x")
	third := f.delete("b/2")
	w.want(first, "b/1=x")
	w.want(second, "b/2=y -b/1")
	w.want(third, "-b/2")
}

func testWatchWholeBatch(t *testing.T, f fixture) {
	_, start := f.list("")
	ops := make([]store.Op, 200)
	var want []string
	for i := range ops {
		ops[i] = put(fmt.Sprintf("k%03d", i), "x")
		want = append(want, ops[i].Key+"=x")
	}
	version := f.apply(store.Batch{Ops: ops})
	f.watch("", start).want(version, strings.Join(want, " "))
}

func testWatchSeesEveryChangeOnce(t *testing.T, f fixture) {
	const workers, puts = 4, 25
	_, start := f.list("")
	done := make(chan error, 1)
	go func() {
		done <- parallel(workers, func(i int) error {
			for n := range puts {
				if _, err := f.Apply(f.ctx, store.Batch{Ops: []store.Op{put(fmt.Sprintf("k%d", i), strconv.Itoa(n))}}); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	w, seen, last := f.watch("", start), map[string]int{}, start
	for range workers * puts {
		version, events := w.change()
		if version <= last {
			t.Fatalf("version %d came after %d", version, last)
		}
		last = version
		key, value, _ := strings.Cut(events, "=")
		if value != strconv.Itoa(seen[key]) {
			t.Fatalf("got %s, want %s=%d", events, key, seen[key])
		}
		seen[key]++
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func testWatchCancel(t *testing.T, f fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	_, start := f.list("")
	f.put("a", "1")
	changes := 0
	var last error
	for _, err := range f.Watch(ctx, "", start) {
		if err != nil {
			last = err
			continue // an error is the last thing that a watch yields
		}
		changes++
		cancel()
	}
	if changes != 1 || !errors.Is(last, context.Canceled) {
		t.Errorf("got %d changes and %v, want 1 and context.Canceled", changes, last)
	}
}

// testWatchCompacted writes until the store has to forget.
func testWatchCompacted(t *testing.T, f fixture) {
	_, start := f.list("")
	ops := make([]store.Op, 4096)
	for i := range ops {
		ops[i] = put(fmt.Sprintf("k%d", i), "x")
	}
	for i := range 64 {
		version := f.apply(store.Batch{Ops: ops})
		for c, err := range f.Watch(f.ctx, "", start) {
			if errors.Is(err, store.ErrCompacted) {
				next := f.put("small", "x")
				f.watch("", version).want(next, "small=x")
				return
			}
			if err != nil || i == 63 {
				t.Fatalf("got change %d and %v, want ErrCompacted at last", c.Version, err)
			}
			break
		}
	}
}

func testExpiry(t *testing.T, f fixture) {
	const ttl = 60 * time.Millisecond
	_, start := f.list("")
	before := time.Now()
	version := f.apply(store.Batch{Ops: []store.Op{
		{Key: "short", Value: []byte("x"), TTL: ttl}, {Key: "long", Value: []byte("x"), TTL: time.Hour}, put("ever", "x"),
	}})
	e, err := f.Get(f.ctx, "short")
	switch left := e.ExpiresAt.Sub(before); {
	case errors.Is(err, store.ErrNotFound) && time.Since(before) > ttl: // the answer came late
	case err != nil:
		t.Fatalf("get short: %v", err)
	case left < ttl || left > ttl+patience:
		t.Errorf("ends %v after the write, want about %v", left, ttl)
	}
	w := f.watch("", start)
	w.want(version, "short=x long=x ever=x")
	if _, events := w.change(); events != "-short" {
		t.Fatalf("got %q, want the removal of short", events)
	}
	if age := time.Since(before); age < ttl {
		t.Errorf("removed after %v, want %v or more", age, ttl)
	}
	f.wantMissing("short")
	f.wantList("", "ever=x", "long=x")
}

func testExpiryOfRefreshedKey(t *testing.T, f fixture) {
	const ttl = 60 * time.Millisecond
	_, start := f.list("")
	with := func(key string, ttl time.Duration) {
		f.apply(store.Batch{Ops: []store.Op{{Key: key, Value: []byte("x"), TTL: ttl}}})
	}
	with("longer", ttl)
	with("ever", ttl)
	with("gone", ttl)
	with("longer", time.Hour)
	with("ever", 0)
	f.delete("gone")
	with("last", ttl) // ends after all of the above would have
	for c, err := range f.Watch(f.ctx, "", start) {
		if err != nil {
			t.Fatal(err)
		}
		if text(t, c) == "-last" {
			break
		}
	}
	f.wantList("", "ever=x", "longer=x")
}
