// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"fmt"
	"testing"

	"github.com/meshgate/meshgate/node/store"
)

// BenchmarkStore is what calls cost over loopback, beside the state in memory
// itself: what is left of it is the way there and back.
func BenchmarkStore(b *testing.B) {
	m := newMemory(b)
	fill := store.Batch{}
	for i := range 10_000 { // as many nodes, and what a record of one has
		fill.Ops = append(fill.Ops, store.Op{Key: fmt.Sprintf("/registry/nodes/node-%05d", i), Value: make([]byte, 300)})
	}
	if _, err := m.Apply(b.Context(), fill); err != nil {
		b.Fatal(err)
	}
	c := newClient(b, nil, newServer(b, m, nil).addr)
	b.Run("Get", func(b *testing.B) {
		for b.Loop() {
			if _, err := c.Get(b.Context(), "/registry/nodes/node-05000"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("List10000", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := c.List(b.Context(), "/registry/nodes/"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ApplyAndWatch", func(b *testing.B) {
		_, version, err := c.List(b.Context(), "none")
		if err != nil {
			b.Fatal(err)
		}
		w := watch(b, c, "k", version)
		for b.Loop() {
			w.want(put(b, c, "k", "v"), "k", "v")
		}
	})
}
