// SPDX-License-Identifier: Apache-2.0

package kv

import (
	"fmt"
	"slices"

	"github.com/meshgate/meshgate/node/store"
)

const (
	// historyEvents and historyBytes bound what is kept for watchers that lag
	// behind. All watchers share it, so their number costs nothing here.
	historyEvents = 1 << 14
	historyBytes  = 16 << 20
	// historyRead is how many changes a watcher takes at a time; it bounds
	// how long a slow one keeps old values from being freed.
	historyRead = 64
)

// history is the latest changes, oldest first. The zero value is empty.
type history struct {
	changes []store.Change
	// floor is the newest version that is no longer kept.
	floor         uint64
	events, bytes int
}

func (h *history) add(c store.Change) {
	h.changes = append(h.changes, c)
	n, size := weight(c)
	h.events, h.bytes = h.events+n, h.bytes+size
	for len(h.changes) > 1 && (h.events > historyEvents || h.bytes > historyBytes) {
		n, size := weight(h.changes[0])
		h.events, h.bytes = h.events-n, h.bytes-size
		h.floor = h.changes[0].Version
		h.changes[0] = store.Change{} // free it before append copies the rest
		h.changes = h.changes[1:]
	}
}

func weight(c store.Change) (events, bytes int) {
	for _, e := range c.Events {
		bytes += len(e.Key) + len(e.Value)
	}
	return len(c.Events), bytes
}

// since returns a copy of the oldest changes after a version.
func (h *history) since(after uint64) ([]store.Change, error) {
	if after < h.floor {
		return nil, fmt.Errorf("%w: after version %d, kept are those after %d", store.ErrCompacted, after, h.floor)
	}
	i, found := slices.BinarySearchFunc(h.changes, after, func(c store.Change, v uint64) int {
		switch {
		case c.Version < v:
			return -1
		case c.Version > v:
			return 1
		}
		return 0
	})
	if found {
		i++
	}
	rest := h.changes[i:]
	return slices.Clone(rest[:min(len(rest), historyRead)]), nil
}
