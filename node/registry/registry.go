// SPDX-License-Identifier: Apache-2.0

// Package registry is the typed view of the replicated state: it knows the
// keys, decodes their values, and publishes the whole as an immutable
// mesh.Snapshot for every version. Changes are functions over a snapshot that
// become one batch of the store.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
)

// attempts bounds how often Update decides again after another change came
// first. Within one process changes take turns, so that more than one is rare.
const attempts = 16

// fullPause is the pause before a store whose disk is full is asked again.
const fullPause = time.Second

// Registry follows a store. New makes one; Run makes it live.
type Registry struct {
	store  store.Store
	logger *slog.Logger
	// current is the latest view; before the first one, a view without a snapshot.
	current atomic.Pointer[view]
	ready   chan struct{}
	stopped chan struct{} // closed when Run has ended
	// turn holds a token while nobody changes anything.
	turn chan struct{}
}

// New returns a registry over s. A nil logger discards logs.
func New(s store.Store, logger *slog.Logger) *Registry {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	r := &Registry{
		store:   s,
		logger:  logger.With("component", "registry"),
		ready:   make(chan struct{}),
		stopped: make(chan struct{}),
		turn:    make(chan struct{}, 1),
	}
	r.current.Store(&view{superseded: make(chan struct{})})
	r.turn <- struct{}{}
	return r
}

// Run follows the store and publishes a snapshot for each change, until ctx
// ends, when it returns nil, or the store does. It is called once.
func (r *Registry) Run(ctx context.Context) error {
	defer close(r.stopped)
	err := r.follow(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("follow registry: %w", err)
}

func (r *Registry) follow(ctx context.Context) error {
	if err := r.catchUp(ctx); err != nil {
		return err
	}
	b := newBuilder(r.logger)
	for {
		entries, version, err := r.store.List(ctx, root)
		if err != nil {
			return err
		}
		r.publish(b.load(entries, version))
		for change, err := range r.store.Watch(ctx, root, version) {
			if errors.Is(err, store.ErrCompacted) {
				r.logger.Info("lagged behind the store, reading all of it again", "version", b.version)
				break
			}
			if err != nil {
				return err
			}
			r.publish(b.follow(change))
		}
	}
}

// catchUp has the first snapshot have all that was ever acknowledged, where this
// replica can know; others start from what they have. One whose disk is full waits
// for room: what it has may be as old as its last snapshot of the state.
func (r *Registry) catchUp(ctx context.Context) error {
	for said := false; ; said = true {
		err := r.store.Sync(ctx)
		if err == nil || errors.Is(err, store.ErrNotLeader) {
			return nil
		}
		if !errors.Is(err, store.ErrFull) {
			return err
		}
		if !said {
			r.logger.Warn("the state is not up to date yet, waiting for room", "err", err)
		}
		select {
		case <-time.After(fullPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Registry) publish(v *view) {
	old := r.current.Swap(v)
	close(old.superseded)
	if old.snapshot == nil {
		close(r.ready)
	}
}

// Ready is closed after the first snapshot was published.
func (r *Registry) Ready() <-chan struct{} { return r.ready }

// Snapshot returns the latest snapshot; nil before Ready.
func (r *Registry) Snapshot() *mesh.Snapshot { return r.current.Load().snapshot }

// Wait returns the latest snapshot once its version is greater than after. A
// caller that passes the version it has seen last sees every change, several
// at once when it is slow. After Run has ended the error wraps
// mesh.ErrUnavailable.
func (r *Registry) Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	v, err := r.wait(ctx, func(s *mesh.Snapshot) bool { return s.Version > after })
	if err != nil {
		return nil, err
	}
	return v.snapshot, nil
}

// wait returns the latest view once there is one whose snapshot will do.
func (r *Registry) wait(ctx context.Context, will func(*mesh.Snapshot) bool) (*view, error) {
	for {
		v := r.current.Load()
		if v.snapshot != nil && will(v.snapshot) {
			return v, nil
		}
		select {
		case <-v.superseded:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-r.stopped:
			if err := ctx.Err(); err != nil { // both end together; why says more
				return nil, err
			}
			return nil, fmt.Errorf("%w: the registry has stopped", mesh.ErrUnavailable)
		}
	}
}

// Update changes the registry: change looks at the snapshot of tx and says what
// to write. All of it is written in one batch, on the condition that nobody
// changed the registry meanwhile; else change is called again with a new
// snapshot. Without anything to write nothing is written. An error of change
// ends the update and is returned as it is.
//
// It returns a snapshot that has the change. Errors of the store wrap
// mesh.ErrUnavailable, mesh.ErrPrecondition (not the leader) or
// mesh.ErrExhausted (disk full); one that also wraps store.ErrUncertain leaves
// open whether the change happened.
func (r *Registry) Update(ctx context.Context, change func(tx *Tx) error) (*mesh.Snapshot, error) {
	select {
	case <-r.turn:
		defer func() { r.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	v, err := r.wait(ctx, func(*mesh.Snapshot) bool { return true })
	if err != nil {
		return nil, err
	}
	for range attempts {
		tx := &Tx{view: v}
		if err := change(tx); err != nil {
			return nil, err
		}
		if len(tx.ops) == 0 {
			return v.snapshot, nil
		}
		version, err := r.store.Apply(ctx, tx.batch())
		switch {
		case err == nil:
			return r.Wait(ctx, version-1)
		case !errors.Is(err, store.ErrConflict):
			return nil, translate(err)
		}
		seen := v.snapshot.Version
		if v, err = r.wait(ctx, func(s *mesh.Snapshot) bool { return s.Version > seen }); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: the registry changed %d times while a change was decided", mesh.ErrUnavailable, attempts)
}

// translate adds the meaning of a store's error for callers of the API.
func translate(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, store.ErrNotLeader):
		return fmt.Errorf("%w: %w", mesh.ErrPrecondition, err)
	case errors.Is(err, store.ErrFull):
		return fmt.Errorf("%w: %w", mesh.ErrExhausted, err)
	case errors.Is(err, store.ErrInvalid):
		return fmt.Errorf("%w: %w", mesh.ErrInvalid, err)
	default:
		return fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	}
}
