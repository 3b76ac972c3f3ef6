// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

const (
	// defaultPulse, minPulse and maxPulse bound how often a watch says that it
	// lives. The pulses of all watches together ask the leader once in minPulse.
	defaultPulse = 5 * time.Second
	minPulse     = 100 * time.Millisecond
	maxPulse     = time.Minute
)

// Watch sends changes as they come. Nothing is queued for a client that does
// not read: it gets what the state still keeps when it reads again.
func (s *storeService) Watch(ctx context.Context, req *connect.Request[meshgatev1.WatchRequest], stream *connect.ServerStream[meshgatev1.WatchResponse]) error {
	m := req.Msg
	if err := s.keeps(); err != nil {
		return err
	}
	if err := checkRange(m.GetPrefix(), nil); err != nil {
		return err
	}
	interval, err := pulseOf(m.GetPulse())
	if err != nil {
		return err
	}
	return s.newWatch(string(m.GetPrefix()), m.GetAfter(), stream.Send).serve(ctx, interval)
}

func (s *storeService) newWatch(prefix string, after uint64, send func(*meshgatev1.WatchResponse) error) *storeWatch {
	return &storeWatch{
		store: s, prefix: prefix, version: after, send: send,
		steps: make(chan step), pulses: make(chan bool),
	}
}

// storeWatch is a watch that is served.
type storeWatch struct {
	store  *storeService
	prefix string
	// version is up to where all was sent; only run uses it.
	version uint64
	send    func(*meshgatev1.WatchResponse) error
	// steps are the changes of the whole state, pulses whether it is behind.
	// Both are unbuffered: who does not read holds up its own watch only.
	steps  chan step
	pulses chan bool
}

// step is a change, or the end of all.
type step struct {
	change store.Change
	err    error
}

// serve serves the watch from its version on, until ctx ends, the client is gone
// or the state has no more.
func (w *storeWatch) serve(ctx context.Context, interval time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	after := w.version
	var wait sync.WaitGroup
	wait.Go(func() { w.follow(ctx, after) })
	wait.Go(func() { w.beat(ctx, interval, after) })
	defer wait.Wait()
	defer cancel()
	return w.run(ctx)
}

// run sends until ctx ends, the client is gone or the state has no more.
func (w *storeWatch) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case next := <-w.steps:
			if next.err != nil {
				return faulty(next.err, 0)
			}
			if err := w.sendChange(next.change); err != nil {
				return err
			}
			w.version = next.change.Version
		case behind := <-w.pulses:
			if err := w.send(&meshgatev1.WatchResponse{Version: w.version, Behind: behind}); err != nil {
				return err
			}
		}
	}
}

// follow reads the changes of the whole state and not only those under the
// prefix: so a pulse can tell how far the watch is, though nothing that concerns
// it happened, and it goes on from there at another gateway.
//
// A version that this gateway does not reach soon is one that it may never have,
// such as that of a state of which it got an old backup: another gateway knows.
func (w *storeWatch) follow(ctx context.Context, after uint64) {
	if err := w.store.reach(ctx, after); err != nil {
		select {
		case w.steps <- step{err: err}:
		case <-ctx.Done():
		}
		return
	}
	for c, err := range w.store.store.Watch(ctx, "", after) {
		select {
		case w.steps <- step{c, err}:
		case <-ctx.Done():
			return
		}
	}
}

// beat tells at every interval, and at once, whether the state is behind: it
// lacks the version of the watch, or could not be brought up to date meanwhile.
func (w *storeWatch) beat(ctx context.Context, interval time.Duration, after uint64) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		behind := w.behind(ctx, interval, after)
		select {
		case w.pulses <- behind:
		case <-ctx.Done():
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (w *storeWatch) behind(ctx context.Context, interval time.Duration, after uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, interval)
	defer cancel()
	if err := w.store.synced.recent(ctx, minPulse, w.store.store.Sync); err != nil {
		return true
	}
	version, err := w.store.version(ctx)
	return err != nil || version < after
}

// sendChange sends what a change did under the prefix, in parts; nothing when
// it did nothing there.
func (w *storeWatch) sendChange(c store.Change) error {
	var part *meshgatev1.WatchResponse
	size := 0
	for _, e := range c.Events {
		if !strings.HasPrefix(e.Key, w.prefix) || internal(e.Key) {
			continue
		}
		n := len(e.Key) + len(e.Value)
		if size += n; part != nil && size > storePart {
			part.More = true
			if err := w.send(part); err != nil {
				return err
			}
			part, size = nil, n
		}
		if part == nil {
			part = &meshgatev1.WatchResponse{Version: c.Version}
		}
		part.Events = append(part.Events, store.EventToProto(e))
	}
	if part == nil {
		return nil
	}
	return w.send(part)
}

// pulseOf reads how often a client wants to hear of a watch.
func pulseOf(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return defaultPulse, nil
	}
	interval := d.AsDuration()
	if d.CheckValid() != nil || interval < minPulse || interval > maxPulse {
		return 0, faulty(fmt.Errorf("%w: pulse: it is not between %s and %s", store.ErrInvalid, minPulse, maxPulse), 0)
	}
	return interval, nil
}
