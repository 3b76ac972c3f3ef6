// SPDX-License-Identifier: Apache-2.0

package kv_test

import (
	"errors"
	"iter"
	"testing"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
)

// TestWatch_GoesOnFromTheOldestKept resumes watches at both sides of the newest
// version of which the events are gone: because there were too many, because they
// were too large, and because the state was replaced.
func TestWatch_GoesOnFromTheOldestKept(t *testing.T) {
	batch := func(ops, size int) store.Batch {
		b := store.Batch{Ops: make([]store.Op, ops)}
		for i := range b.Ops {
			b.Ops[i] = store.Op{Key: "k", Value: make([]byte, size)}
		}
		return b
	}
	for name, b := range map[string]store.Batch{"events": batch(store.MaxOps, 0), "bytes": batch(1, store.MaxBatch-1), "restore": batch(1, 0)} {
		t.Run(name, func(t *testing.T) {
			s := kv.New()
			defer s.Close()
			const step = 3 // versions have gaps
			version := uint64(0)
			write := func() {
				t.Helper()
				version += step
				if _, err := s.Apply(version, epoch, b); err != nil {
					t.Fatal(err)
				}
			}
			write()
			floor := version
			if name == "restore" {
				s.Restore(floor, func(func(store.Entry) bool) {})
				write()
			} else {
				for first(t, s, 0) == nil {
					write()
				}
			}
			for _, after := range []uint64{0, floor - step, floor - 1} {
				if err := first(t, s, after); !errors.Is(err, store.ErrCompacted) {
					t.Errorf("after version %d, when %d is the oldest kept: got %v, want ErrCompacted", after, floor+step, err)
				}
			}
			for _, after := range []uint64{floor, floor + 1, floor + step - 1} {
				if err := first(t, s, after, floor+step); err != nil {
					t.Errorf("after version %d: got %v, want version %d", after, err, floor+step)
				}
			}
		})
	}
}

// first returns the error that a watch begins with; without one the first version
// has to be as wanted.
func first(t *testing.T, s *kv.State, after uint64, want ...uint64) error {
	t.Helper()
	next, stop := iter.Pull2(s.Watch(t.Context(), "", after))
	defer stop()
	c, err, _ := next()
	if err == nil && len(want) > 0 && c.Version != want[0] {
		t.Errorf("after version %d the first is %d, want %d", after, c.Version, want[0])
	}
	return err
}
