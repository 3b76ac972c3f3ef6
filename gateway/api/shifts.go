// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"
	"runtime"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

// shifts bounds how many subscribers are told at a time. A change may concern
// thousands of them: who waits for something else, such as a node that joins,
// waits for a few of them and not for all. A shift is for work of this gateway: it
// ends before anything waits for a client. The zero value is ready for use.
type shifts struct {
	once   sync.Once
	places chan struct{}
}

// take waits for a shift, which lasts until end is called, once or more often.
func (s *shifts) take(ctx context.Context) (end func(), err error) {
	// One processor is left for everything else, if there are two.
	s.once.Do(func() { s.places = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)) })
	select {
	case s.places <- struct{}{}:
		return sync.OnceFunc(func() { <-s.places }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// shiftWriter is an answer whose messages are made in shifts. It gives the shift back
// when a message is ready to be written, packed if the client wants it so: from
// then on it takes as long as the client likes. One goroutine uses it.
type shiftWriter struct {
	http.ResponseWriter
	end func() // of the shift; nil before the first
}

type answerKey struct{}

// endShifts makes the answers of h shiftWriters, for answerFrom.
func endShifts(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &shiftWriter{ResponseWriter: w}
		h.ServeHTTP(answer, r.WithContext(context.WithValue(r.Context(), answerKey{}, answer)))
	})
}

// answerFrom is what a call is answered with; nil outside of endShifts.
func answerFrom(ctx context.Context) *shiftWriter {
	w, _ := ctx.Value(answerKey{}).(*shiftWriter)
	return w
}

// endsShift makes what is written next end a shift; a nil writer ends it at once.
func (w *shiftWriter) endsShift(end func()) {
	if w == nil {
		end()
		return
	}
	w.end = end
}

// Write implements http.ResponseWriter.
func (w *shiftWriter) Write(p []byte) (int, error) {
	w.giveBack()
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (w *shiftWriter) Flush() {
	w.giveBack()
	_ = http.NewResponseController(w.ResponseWriter).Flush() // what is written next says why not
}

// Unwrap is for http.ResponseController.
func (w *shiftWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *shiftWriter) giveBack() {
	if w.end != nil {
		w.end()
	}
}

// news lets many wait for a change of the state as if they were one. A change
// wakes those who wait for it in some order: first of all it is to wake the call
// that made it, and not a thousand subscribers. The zero value is ready for use.
type news struct {
	mu sync.Mutex // guards the fields below
	// known is the newest version that anybody here has seen.
	known uint64
	// waits is closed when the one that waits for all of them does so no more;
	// nil while nobody does.
	waits chan struct{}
}

// wait returns the latest snapshot with a Version above after; see State.Wait.
func (n *news) wait(ctx context.Context, state State, after uint64) (*mesh.Snapshot, error) {
	for {
		n.mu.Lock()
		if n.known > after {
			n.mu.Unlock()
			return state.Wait(ctx, after) // it is there
		}
		n.known = after
		others := n.waits
		if others == nil {
			n.waits = make(chan struct{})
			n.mu.Unlock()
			return n.waitForAll(ctx, state, after)
		}
		n.mu.Unlock()
		select {
		case <-others:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// waitForAll waits in the name of all who have to.
func (n *news) waitForAll(ctx context.Context, state State, after uint64) (*mesh.Snapshot, error) {
	s, err := state.Wait(ctx, after)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		n.known = max(n.known, s.Version)
	}
	close(n.waits)
	n.waits = nil
	return s, err
}
