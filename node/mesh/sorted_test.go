// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// version is a list with what it must hold.
type version struct {
	list sorted[[2]int]
	want map[int]int
}

func at(key int) func([2]int) int { return func(x [2]int) int { return cmp.Compare(x[0], key) } }

// check compares a list with what it must hold, by every way to read it.
func (v version) check(t *rapid.T, probe int) {
	var want [][2]int
	for _, k := range slices.Sorted(maps.Keys(v.want)) {
		want = append(want, [2]int{k, v.want[k]})
	}
	if got := slices.Collect(v.list.all()); !slices.Equal(got, want) || v.list.len() != len(want) {
		t.Fatalf("all: %d items, want %d", v.list.len(), len(want))
	}
	split := 0
	for split < len(want) && want[split][0] < probe {
		split++
	}
	if got := slices.Collect(v.list.from(at(probe))); !slices.Equal(got, want[split:]) {
		t.Fatalf("from %d: %v, want %v", probe, got, want[split:])
	}
	backwards := slices.Clone(want[:split])
	slices.Reverse(backwards)
	if got := slices.Collect(v.list.before(at(probe))); !slices.Equal(got, backwards) {
		t.Fatalf("before %d: %v, want %v", probe, got, backwards)
	}
	item, ok := v.list.get(at(probe))
	if value, exists := v.want[probe]; ok != exists || item[1] != value {
		t.Fatalf("get %d: %v, %v, want %v, %v", probe, item, ok, value, exists)
	}
	for _, c := range v.list.chunks {
		if len(c) == 0 || len(c) > chunkLen {
			t.Fatalf("a chunk of %d items", len(c))
		}
	}
}

// Whatever is put in and taken out: every list that was made stays as it was,
// and the changes between any two of them are those that tell one from the other.
func TestSorted_IsAnImmutableSortedMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		versions := []version{{want: map[int]int{}}}
		for range rapid.IntRange(1, 20).Draw(t, "versions") {
			last := versions[len(versions)-1]
			next := version{last.list, maps.Clone(last.want)}
			first, step := rapid.IntRange(0, 1000).Draw(t, "first"), rapid.SampledFrom([]int{1, -1, 7, 13}).Draw(t, "step")
			value := rapid.IntRange(0, 3).Draw(t, "value")
			for i := range rapid.IntRange(0, 400).Draw(t, "changes") {
				key := (first + i*step + 10_000) % 1000
				if value == 0 {
					next.list = next.list.without(at(key))
					delete(next.want, key)
				} else {
					next.list = next.list.with([2]int{key, value}, at(key))
					next.want[key] = value
				}
			}
			versions = append(versions, next)
		}
		probe := rapid.IntRange(-1, 1001).Draw(t, "probe")
		for _, v := range versions {
			v.check(t, probe)
		}
		a, b := rapid.SampledFrom(versions).Draw(t, "a"), rapid.SampledFrom(versions).Draw(t, "b")
		patched := maps.Clone(a.want)
		order := func(x, y [2]int) int { return cmp.Compare(x[0], y[0]) }
		for was, is := range b.list.changes(a.list, order, func(x, y [2]int) bool { return x == y }) {
			switch {
			case was == is:
				t.Fatalf("%v is no change", is)
			case is == [2]int{}:
				delete(patched, was[0])
			default:
				patched[is[0]] = is[1]
			}
		}
		if !maps.Equal(patched, b.want) {
			t.Fatalf("%d items after the changes, want %d", len(patched), len(b.want))
		}
	})
}

// A change of one item looks at the chunks that are not shared, and no more.
func TestSorted_ChangesCostWhatChanged(t *testing.T) {
	var list sorted[[2]int]
	for i := range 10_000 {
		list = list.with([2]int{i, 1}, at(i))
	}
	next := list.with([2]int{5000, 2}, at(5000)).without(at(9000)).with([2]int{-1, 1}, at(-1))
	compared, found := 0, 0
	order := func(x, y [2]int) int { compared++; return cmp.Compare(x[0], y[0]) }
	for range next.changes(list, order, func(x, y [2]int) bool { return x == y }) {
		found++
	}
	if found != 3 || compared > 8*chunkLen {
		t.Errorf("%d changes found with %d comparisons", found, compared)
	}
}
