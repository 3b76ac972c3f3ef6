// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// numbered returns packets with numbers in them.
func numbered(first, n int) [][]byte {
	var list [][]byte
	for i := range n {
		list = append(list, fmt.Appendf(nil, "%d", first+i))
	}
	return list
}

// The latest packets of a path are kept, in order and for a while; bounds hold for
// one path and for all.
func TestHeld(t *testing.T) {
	var all atomic.Int64
	now := time.Unix(1e9, 0)
	h, other := held{all: &all}, held{all: &all}
	if lost := h.put(numbered(0, maxHeld+2), now); lost != 2 {
		t.Errorf("%d of two packets too many were lost", lost)
	}
	got, lost := h.take(now.Add(heldFor - 1))
	if len(got) != maxHeld || lost != 0 || string(got[0]) != "2" || string(got[maxHeld-1]) != fmt.Sprint(maxHeld+1) {
		t.Errorf("%q, and %d lost", got, lost)
	}
	if all.Load() != 0 {
		t.Errorf("%d are held after that", all.Load())
	}

	_ = h.put(numbered(0, 2), now)
	if lost := h.put(numbered(2, 1), now.Add(heldFor)); lost != 2 {
		t.Errorf("%d of two old packets were lost", lost)
	}
	if got, lost := h.take(now.Add(2 * heldFor)); len(got) != 0 || lost != 1 || all.Load() != 0 {
		t.Errorf("%q, %d lost, %d held after that", got, lost, all.Load())
	}

	all.Store(maxHeldAll - 1)
	if lost := other.put(numbered(0, 2), now); lost != 1 || all.Load() != maxHeldAll {
		t.Errorf("%d of one packet too many were lost, %d are held", lost, all.Load())
	}
}
