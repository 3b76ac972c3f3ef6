// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What a path that leads nowhere keeps for when it leads somewhere again.
const (
	// maxHeld bounds the packets of one path, of which the latest stay: they are
	// what the ends of connections repeat.
	maxHeld = 32
	// maxHeldAll bounds those of all paths of a device: 3 MB of them.
	maxHeldAll = 2048
	// heldFor is how long a packet is of use.
	heldFor = 3 * time.Second
)

// held are packets of a path that leads nowhere at the moment. Ends of a TCP
// connection repeat theirs after pauses that double: who loses a packet when a
// way ends, and the next one just before another way stands, waits for seconds.
// The zero value is ready.
type held struct {
	// all counts those of all paths.
	all *atomic.Int64

	mu      sync.Mutex // guards packets
	packets []heldPacket
}

type heldPacket struct {
	at    time.Time
	bytes []byte
}

// put keeps copies of packets, and returns how many were lost for them. The caller
// holds mu.
func (h *held) put(packets [][]byte, now time.Time) (lost int) {
	h.packets = slices.DeleteFunc(h.packets, func(p heldPacket) bool {
		if now.Sub(p.at) < heldFor {
			return false
		}
		lost++
		h.all.Add(-1)
		return true
	})
	for _, b := range packets {
		switch {
		case len(h.packets) == maxHeld:
			h.packets = slices.Delete(h.packets, 0, 1)
			lost++
		case h.all.Add(1) > maxHeldAll:
			h.all.Add(-1)
			lost++
			continue
		}
		h.packets = append(h.packets, heldPacket{now, slices.Clone(b)})
	}
	return lost
}

// take returns the packets that are still of use, in order, and forgets all. lost
// is how many are of none.
func (h *held) take(now time.Time) (packets [][]byte, lost int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.packets {
		if now.Sub(p.at) < heldFor {
			packets = append(packets, p.bytes)
		} else {
			lost++
		}
	}
	h.all.Add(-int64(len(h.packets)))
	h.packets = nil
	return packets, lost
}
