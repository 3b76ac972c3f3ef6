// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// table holds the decoded objects of one kind as a list. Objects are decoded
// once, when their key changes. The list is made once for all snapshots that
// share it: a changed one is a copy with the changed objects put in place, which
// is cheap for the few thousand routes or ACLs that a mesh may have.
type table[T any] struct {
	prefix  string
	items   map[string]T // by the rest of the key
	decode  func(name string, value []byte) (T, error)
	name    func(T) string
	compare func(a, b T) int
	list    []T
	changed map[string]struct{} // names of items that are not yet so in list
}

// few is how many changed objects are put in place; more sort the list anew.
const few = 32

// newTable returns the table of the objects with one name in their key.
func newTable[T any, M proto.Message](prefix string, empty func() M, from func(M) (T, error), name func(T) string, compare func(a, b T) int) *table[T] {
	return &table[T]{
		prefix:  prefix,
		items:   map[string]T{},
		decode:  named(empty, from, name),
		name:    name,
		compare: compare,
		changed: map[string]struct{}{},
	}
}

// named decodes an object whose key holds its name.
func named[T any, M proto.Message](empty func() M, from func(M) (T, error), name func(T) string) func(string, []byte) (T, error) {
	return func(key string, value []byte) (T, error) {
		item, err := decode(value, empty(), from)
		if err == nil && name(item) != key {
			err = fmt.Errorf("the value is that of %q", name(item))
		}
		return item, err
	}
}

// byName compares by a name.
func byName[T any](name func(T) string) func(a, b T) int {
	return func(a, b T) int { return strings.Compare(name(a), name(b)) }
}

// decode reads a protojson value, without the fields that this build does not know.
func decode[T any, M proto.Message](value []byte, message M, from func(M) (T, error)) (T, error) {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(value, message); err != nil {
		var zero T
		return zero, fmt.Errorf("not the JSON of a %s: %w", message.ProtoReflect().Descriptor().Name(), err)
	}
	return from(message)
}

// put takes over a changed value. An undecodable one is as good as absent.
func (t *table[T]) put(name string, value []byte) error {
	item, err := t.decode(name, value)
	if err != nil {
		t.remove(name)
		return err
	}
	t.items[name] = item
	t.changed[name] = struct{}{}
	return nil
}

func (t *table[T]) remove(name string) {
	if _, ok := t.items[name]; ok {
		delete(t.items, name)
		t.changed[name] = struct{}{}
	}
}

func (t *table[T]) clear() {
	t.items, t.list, t.changed = map[string]T{}, nil, map[string]struct{}{}
}

func (t *table[T]) under() string { return t.prefix }

// sorted returns all objects in order; nobody changes the slice.
func (t *table[T]) sorted() []T {
	switch {
	case len(t.changed) == 0:
		return t.list
	case len(t.changed) <= few:
		t.place()
	default:
		t.list = slices.SortedFunc(maps.Values(t.items), t.compare)
	}
	clear(t.changed)
	return t.list
}

// place makes the next list by putting the changed objects in place.
func (t *table[T]) place() {
	list := make([]T, 0, len(t.list)+len(t.changed))
	for _, item := range t.list {
		if _, ok := t.changed[t.name(item)]; !ok {
			list = append(list, item)
		}
	}
	for name := range t.changed {
		if item, ok := t.items[name]; ok {
			i, _ := slices.BinarySearchFunc(list, item, t.compare)
			list = slices.Insert(list, i, item)
		}
	}
	t.list = list
}
