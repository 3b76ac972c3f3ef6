// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"container/list"
	"context"
	"sync"
)

// waiting holds those who have shown nothing yet, at most limit for each key and
// total of all. When the places are taken, the one that has waited longest loses
// its own: honest clients are quick, and who keeps silent keeps nobody out. It
// is safe for concurrent use.
type waiting struct {
	limit, total int // total 0: as many as there are keys for
	// room is how many bytes they may hold together, and share those of one key;
	// 0: as many as they like.
	room, share int

	mu    sync.Mutex // guards the fields below
	byKey map[string]*list.List
	all   *list.List // of *waiter, the one that has waited longest in front
	held  int        // bytes
}

// waiter is one that holds a place.
type waiter struct {
	key       string
	lose      context.CancelFunc
	ofKey, in *list.Element // its places in the list of its key, and in that of all
	held      int           // bytes
	gone      bool          // it is in neither any more
}

func newWaiting(limit, total int) *waiting {
	return &waiting{limit: limit, total: total, byKey: make(map[string]*list.List), all: list.New()}
}

// enter takes a place for key. The returned context ends with ctx, or when the
// place is lost. The caller calls leave when it waits no longer, and hold
// for the bytes that it keeps until then: when there is no room for them, those
// that have waited longest lose their places, maybe itself.
func (w *waiting) enter(ctx context.Context, key string) (_ context.Context, leave func(), hold func(bytes int)) {
	ctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if l, ok := w.byKey[key]; ok && l.Len() >= w.limit {
		w.removeLocked(l.Front().Value.(*waiter))
	} else if w.total > 0 && w.all.Len() >= w.total {
		w.removeLocked(w.all.Front().Value.(*waiter))
	}
	l, ok := w.byKey[key]
	if !ok {
		l = list.New()
		w.byKey[key] = l
	}
	e := &waiter{key: key, lose: cancel}
	e.ofKey, e.in = l.PushBack(e), w.all.PushBack(e)
	return ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.removeLocked(e)
	}, func(bytes int) { w.hold(e, bytes) }
}

// hold counts bytes that e keeps.
func (w *waiting) hold(e *waiter, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.gone {
		return
	}
	e.held += bytes
	w.held += bytes
	for l := w.byKey[e.key]; w.share > 0 && l.Len() > 0 && heldOf(l) > w.share; {
		w.removeLocked(l.Front().Value.(*waiter))
	}
	for w.room > 0 && w.held > w.room {
		w.removeLocked(w.all.Front().Value.(*waiter))
	}
}

// heldOf is how many bytes those of a list hold.
func heldOf(l *list.List) (bytes int) {
	for e := l.Front(); e != nil; e = e.Next() {
		bytes += e.Value.(*waiter).held
	}
	return bytes
}

// removeLocked takes the place of e, if it has one still.
func (w *waiting) removeLocked(e *waiter) {
	if e.gone {
		return
	}
	e.gone = true
	e.lose()
	w.held -= e.held
	w.all.Remove(e.in)
	l := w.byKey[e.key]
	if l.Remove(e.ofKey); l.Len() == 0 {
		delete(w.byKey, e.key)
	}
}
