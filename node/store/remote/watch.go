// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// Watch implements store.Store. It goes from gateway to gateway as long as ctx
// lasts. Beside the errors of the contract it ends with ErrRefused. It ends with
// store.ErrCompacted when no gateway that answers has all changes any more.
func (s *Store) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return func(yield func(store.Change, error) bool) {
		if err := s.usable(ctx); err != nil {
			yield(store.Change{}, err)
			return
		}
		ctx, cancel := s.open(ctx)
		defer cancel(nil)
		w := &watch{store: s, prefix: prefix, after: after, yield: yield}
		if err := w.run(ctx); err != nil {
			yield(store.Change{}, err)
		}
	}
}

// watch is one use of what Watch returns.
type watch struct {
	store  *Store
	prefix string
	// after is the version up to which all was yielded.
	after uint64
	yield func(store.Change, error) bool
	// broken is true when a stream that had said something has ended.
	broken bool
	// refusals are the gateways that refuse the caller, since one last served it.
	refusals map[*member]error
	// compacted are those that do not have the changes, since the watch last moved:
	// a gateway may say something before it says so.
	compacted map[*member]error
}

// errStopped says that the reader wants no more.
var errStopped = errors.New("reader stopped")

// run reads from one gateway after the other. It returns nil when the reader
// wants no more.
func (w *watch) run(ctx context.Context) error {
	w.refusals, w.compacted = map[*member]error{}, map[*member]error{}
	var last error
	for {
		m, err := w.member(ctx)
		if err != nil {
			return w.store.ended(ctx, err, last)
		}
		err = judgeWatch(w.once(ctx, m))
		var final finalError
		var refused refusedError
		switch {
		case errors.Is(err, errStopped):
			return nil
		case ctx.Err() != nil:
			return w.store.ended(ctx, ctx.Err(), nil)
		case errors.As(err, &refused):
			w.refusals[m] = refused.error
			w.store.metrics.failed(reasonRefused)
		case errors.Is(err, store.ErrCompacted):
			w.compacted[m] = err
			if w.allCompacted() {
				return fmt.Errorf("watch: %w", err)
			}
		case errors.As(err, &final):
			return fmt.Errorf("watch: %w", final.error)
		default:
			w.store.members.failed(m, err)
		}
		last = fmt.Errorf("gateway %s: %w", m.Name, err)
	}
}

// member returns the gateway to watch.
func (w *watch) member(ctx context.Context) (*member, error) {
	except := maps.Clone(w.refusals)
	maps.Copy(except, w.compacted)
	return w.store.members.wait(ctx, except)
}

// allCompacted reports whether no gateway that can be asked now may have the
// changes. Those that fail might, but a reader that lists anew is served at once.
func (w *watch) allCompacted() bool {
	except := maps.Clone(w.refusals)
	maps.Copy(except, w.compacted)
	m, delay := w.store.members.next(except)
	return m == nil || delay > 0
}

// judgeWatch tells what the end of a stream means.
func judgeWatch(err error) error {
	if errors.Is(err, errTooLarge) {
		// Whoever lists anew has its outcome.
		return finalError{fmt.Errorf("%w: %w", store.ErrCompacted, err)}
	}
	return judgeRead(err)
}

// once watches at one gateway until that breaks; it returns no nil.
func (w *watch) once(ctx context.Context, m *member) error {
	silent := w.store.silence
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(silent, func() { cancel(errSilent) })
	defer timer.Stop()
	stream, err := m.Client.Watch(ctx, connect.NewRequest(&meshgatev1.WatchRequest{
		Prefix: []byte(w.prefix), After: w.after, Pulse: durationpb.New(silent / pulses),
	}))
	if err != nil {
		return silence(ctx, err)
	}
	defer func() {
		cancel(nil) // Close waits for what is under way otherwise
		_ = stream.Close()
	}()
	got := changes{prefix: w.prefix, after: w.after}
	var behind time.Time // since when the gateway was; zero: it is not
	for messages := 1; stream.Receive(); messages++ {
		timer.Stop() // a reader may take its time
		change, err := got.add(stream.Msg())
		if err != nil {
			return err
		}
		if messages == 1 {
			w.heard()
		}
		if messages == 2 || change != nil { // one sign of life is no service yet
			w.store.members.worked(m, w.refusals)
			clear(w.refusals)
		}
		if got.after != w.after {
			w.after = got.after
			clear(w.compacted)
		}
		switch {
		case change != nil:
			w.store.saw(change.Version)
			if !w.yield(*change, nil) {
				return errStopped
			}
			behind = time.Time{}
		case !stream.Msg().GetBehind():
			behind = time.Time{}
		case behind.IsZero():
			behind = time.Now()
		case time.Since(behind) >= silent:
			return fmt.Errorf("%w: it was cut off for %s", errBehind, silent)
		}
		timer.Reset(silent)
	}
	if err := stream.Err(); err != nil {
		return silence(ctx, err)
	}
	return errCutShort
}

// heard is called at the first message of a stream.
func (w *watch) heard() {
	if w.broken {
		w.store.metrics.reconnects.Inc()
	}
	w.broken = true
}
