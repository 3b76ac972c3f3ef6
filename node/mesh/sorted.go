// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"iter"
	"slices"
	"sort"
)

// chunkLen is the most items of a chunk. A change copies one chunk and the
// list of chunks: some kilobytes each in a list of ten thousand.
const chunkLen = 128

// sorted is an immutable sorted list without equal items. A changed list shares
// all chunks but one with the list that it was made from, so that a change
// costs about the same whatever the length is, and two lists of one history are
// compared by looking at the chunks that they do not share. The zero value is
// empty.
//
// The order is that of a function which every call is given: it compares an
// item to what is looked for, and is the same for all calls on one list.
type sorted[T any] struct {
	chunks [][]T // none is empty
	n      int
}

// len returns the number of items.
func (s sorted[T]) len() int { return s.n }

// search returns the position of the first item for which compare is not
// negative, and whether compare is 0 for it.
func (s sorted[T]) search(compare func(T) int) (chunk, i int, found bool) {
	chunk = sort.Search(len(s.chunks), func(c int) bool {
		items := s.chunks[c]
		return compare(items[len(items)-1]) >= 0
	})
	if chunk == len(s.chunks) {
		return chunk, 0, false
	}
	items := s.chunks[chunk]
	i = sort.Search(len(items), func(j int) bool { return compare(items[j]) >= 0 })
	return chunk, i, compare(items[i]) == 0
}

// get returns the item for which compare is 0.
func (s sorted[T]) get(compare func(T) int) (item T, ok bool) {
	if c, i, found := s.search(compare); found {
		return s.chunks[c][i], true
	}
	return item, false
}

// rank returns how many items come before the first one for which compare is
// not negative.
func (s sorted[T]) rank(compare func(T) int) int {
	chunk, i, _ := s.search(compare)
	for _, items := range s.chunks[:chunk] {
		i += len(items)
	}
	return i
}

// all yields the items in order.
func (s sorted[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, items := range s.chunks {
			for _, item := range items {
				if !yield(item) {
					return
				}
			}
		}
	}
}

// from yields the items for which compare is not negative, in order.
func (s sorted[T]) from(compare func(T) int) iter.Seq[T] {
	return func(yield func(T) bool) {
		c, i, _ := s.search(compare)
		for ; c < len(s.chunks); c, i = c+1, 0 {
			for _, item := range s.chunks[c][i:] {
				if !yield(item) {
					return
				}
			}
		}
	}
}

// before yields the items for which compare is negative, the last one first.
func (s sorted[T]) before(compare func(T) int) iter.Seq[T] {
	return func(yield func(T) bool) {
		c, i, _ := s.search(compare)
		for {
			for i--; i >= 0; i-- {
				if !yield(s.chunks[c][i]) {
					return
				}
			}
			if c--; c < 0 {
				return
			}
			i = len(s.chunks[c])
		}
	}
}

// with returns the list with item at the place that compare tells, instead of
// the one that was there.
func (s sorted[T]) with(item T, compare func(T) int) sorted[T] {
	c, i, found := s.search(compare)
	if found {
		return s.replaced(c, s.n, replace(s.chunks[c], i, item))
	}
	if len(s.chunks) == 0 {
		return sorted[T]{chunks: [][]T{{item}}, n: 1}
	}
	if c == len(s.chunks) { // behind all: at the end of the last chunk
		c--
		i = len(s.chunks[c])
	}
	items := make([]T, 0, len(s.chunks[c])+1)
	items = append(append(append(items, s.chunks[c][:i]...), item), s.chunks[c][i:]...)
	if len(items) <= chunkLen {
		return s.replaced(c, s.n+1, items)
	}
	half := len(items) / 2
	if i == len(items)-1 {
		half = i // items that come in order fill their chunks
	}
	return s.replaced(c, s.n+1, items[:half:half], items[half:])
}

// without returns the list without the item for which compare is 0.
func (s sorted[T]) without(compare func(T) int) sorted[T] {
	c, i, found := s.search(compare)
	switch {
	case !found:
		return s
	case len(s.chunks[c]) == 1:
		return s.replaced(c, s.n-1)
	}
	items := make([]T, 0, len(s.chunks[c])-1)
	items = append(append(items, s.chunks[c][:i]...), s.chunks[c][i+1:]...)
	if c+1 < len(s.chunks) && len(items)+len(s.chunks[c+1]) <= chunkLen/2 {
		items = append(items, s.chunks[c+1]...)
		s.chunks = slices.Delete(slices.Clone(s.chunks), c+1, c+2)
	}
	return s.replaced(c, s.n-1, items)
}

// replaced returns the list of n items with chunks in place of chunk c.
func (s sorted[T]) replaced(c, n int, chunks ...[]T) sorted[T] {
	list := make([][]T, 0, len(s.chunks)+len(chunks)-1)
	list = append(append(append(list, s.chunks[:c]...), chunks...), s.chunks[c+1:]...)
	return sorted[T]{chunks: list, n: n}
}

// replace returns a copy of items with another one at i.
func replace[T any](items []T, i int, item T) []T {
	items = slices.Clone(items)
	items[i] = item
	return items
}

// changes yields what became of the items of old in s: the item before and
// after, of which one is the zero value where it was added or removed. Items
// that are there in both are compared with same. compare is the order of items.
func (s sorted[T]) changes(old sorted[T], compare func(a, b T) int, same func(a, b T) bool) iter.Seq2[T, T] {
	return func(yield func(before, after T) bool) {
		was, is := cursor[T]{chunks: old.chunks}, cursor[T]{chunks: s.chunks}
		var none T
		for {
			skipShared(&was, &is)
			a, hasA := was.peek()
			b, hasB := is.peek()
			switch {
			case !hasA && !hasB:
				return
			case hasA && (!hasB || compare(a, b) < 0):
				was.next()
				if !yield(a, none) {
					return
				}
			case !hasA || compare(a, b) > 0:
				is.next()
				if !yield(none, b) {
					return
				}
			default:
				was.next()
				is.next()
				if !same(a, b) && !yield(a, b) {
					return
				}
			}
		}
	}
}

// cursor is a place in a list of chunks.
type cursor[T any] struct {
	chunks [][]T
	i      int // in the first chunk
}

func (c *cursor[T]) peek() (item T, ok bool) {
	if len(c.chunks) == 0 {
		return item, false
	}
	return c.chunks[0][c.i], true
}

func (c *cursor[T]) next() {
	if c.i++; c.i == len(c.chunks[0]) {
		c.chunks, c.i = c.chunks[1:], 0
	}
}

// skipShared moves both cursors behind chunks that are the same memory.
func skipShared[T any](a, b *cursor[T]) {
	for a.i == 0 && b.i == 0 && len(a.chunks) > 0 && len(b.chunks) > 0 &&
		&a.chunks[0][0] == &b.chunks[0][0] && len(a.chunks[0]) == len(b.chunks[0]) {
		a.chunks, b.chunks = a.chunks[1:], b.chunks[1:]
	}
}
