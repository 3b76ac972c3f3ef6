// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// table holds the decoded objects of one kind. Objects are decoded once, when
// their key changes; a list of them is made once for all snapshots that share it.
type table[T any] struct {
	prefix  string
	items   map[string]T // by the rest of the key
	decode  func(name string, value []byte) (T, error)
	arrange func(items map[string]T) []T
	list    []T
	dirty   bool
}

// newTable returns the table of the objects with one name in their key.
func newTable[T any, M proto.Message](prefix string, empty func() M, from func(M) (T, error), name func(T) string, compare func(a, b T) int) *table[T] {
	return &table[T]{
		prefix: prefix,
		items:  map[string]T{},
		decode: func(key string, value []byte) (T, error) {
			item, err := decode(value, empty(), from)
			if err == nil && name(item) != key {
				err = fmt.Errorf("the value is that of %q", name(item))
			}
			return item, err
		},
		arrange: func(items map[string]T) []T {
			list := make([]T, 0, len(items))
			for _, item := range items {
				list = append(list, item)
			}
			slices.SortFunc(list, compare)
			return list
		},
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
	t.dirty = true
	return nil
}

func (t *table[T]) remove(name string) {
	if _, ok := t.items[name]; ok {
		delete(t.items, name)
		t.dirty = true
	}
}

func (t *table[T]) clear() {
	t.items, t.dirty = map[string]T{}, true
}

// sorted returns all objects in order; nobody changes the slice.
func (t *table[T]) sorted() []T {
	if t.dirty {
		t.list, t.dirty = t.arrange(t.items), false
	}
	return t.list
}
