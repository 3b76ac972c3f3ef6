// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"container/list"
	"context"
	"sync"
)

// waiting holds those who have shown nothing yet, at most limit for each key.
// When a key's places are taken, the one that has waited longest loses its
// place: honest clients are quick, and who keeps silent keeps nobody out. It
// is safe for concurrent use.
type waiting struct {
	limit int

	mu    sync.Mutex // guards byKey
	byKey map[string]*list.List
}

func newWaiting(limit int) *waiting {
	return &waiting{limit: limit, byKey: make(map[string]*list.List)}
}

// enter takes a place for key. The returned context ends with ctx, or when the
// place is lost. The caller calls leave once, when it waits no longer.
func (w *waiting) enter(ctx context.Context, key string) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.byKey[key]
	if !ok {
		l = list.New()
		w.byKey[key] = l
	}
	if l.Len() >= w.limit {
		l.Remove(l.Front()).(context.CancelFunc)()
	}
	e := l.PushBack(cancel)
	return ctx, func() {
		defer cancel()
		w.mu.Lock()
		defer w.mu.Unlock()
		l.Remove(e) // does nothing when the place is lost
		if l.Len() == 0 && w.byKey[key] == l {
			delete(w.byKey, key)
		}
	}
}
