// SPDX-License-Identifier: Apache-2.0

package kv

// waits are those who wait for versions. Each is woken by its own version and
// not by those before: many may wait, and versions come fast. The zero value is
// empty.
type waits struct{ list []*wait }

// wait is one who waits for a version.
type wait struct {
	version uint64
	// reached is closed when the wait is over.
	reached chan struct{}
	// place is where it is in the list; -1 when it is there no more.
	place int
}

func (w *waits) add(one *wait) {
	one.place = len(w.list)
	w.list = append(w.list, one)
}

// remove takes one out, if it is there still.
func (w *waits) remove(one *wait) {
	if one.place < 0 {
		return
	}
	last := len(w.list) - 1
	w.list[one.place] = w.list[last]
	w.list[one.place].place = one.place
	w.list[last] = nil
	w.list = w.list[:last]
	one.place = -1
}

// wake ends the waits for versions up to one.
func (w *waits) wake(version uint64) {
	for i := 0; i < len(w.list); {
		one := w.list[i]
		if one.version > version {
			i++
			continue
		}
		w.remove(one) // another one takes its place
		close(one.reached)
	}
}
