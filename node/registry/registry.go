// SPDX-License-Identifier: Apache-2.0

// Package registry is the typed view of the store: it follows the store's
// changes into immutable snapshots, and turns decisions made on a snapshot
// into atomic changes of the store. Keys and values are those of v1 nodes.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
)

// maxAttempts bounds how often Update decides anew because another replica
// changed the registry meanwhile. Changes of one process never collide.
const maxAttempts = 32

// Registry follows a store. Make one with New and run it with Run.
type Registry struct {
	store store.Store
	log   *slog.Logger
	ready chan struct{} // closed after the first snapshot

	deciding sync.Mutex // held through Update: one decision at a time in this process

	mu      sync.Mutex     // guards the fields below
	latest  *mesh.Snapshot // nil before ready
	changed chan struct{}  // closed and replaced with every new latest
}

// New makes a registry over s. A nil logger discards.
func New(s store.Store, logger *slog.Logger) *Registry {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Registry{
		store: s, log: logger.With("component", "registry"),
		ready: make(chan struct{}), changed: make(chan struct{}),
	}
}

// Run follows the store and publishes a snapshot for each of its versions,
// until ctx ends or the store is closed.
func (r *Registry) Run(ctx context.Context) error {
	for {
		err := r.follow(ctx)
		if !errors.Is(err, store.ErrCompacted) {
			return fmt.Errorf("follow the store: %w", err)
		}
		r.log.Warn("fell behind the store, reading it anew")
	}
}

// follow reads everything once and then every change.
func (r *Registry) follow(ctx context.Context) error {
	entries, version, err := r.store.List(ctx, prefix)
	if err != nil {
		return err
	}
	b := newBuilder(r.log)
	for _, e := range entries {
		b.put(e.Key, e.Value)
	}
	r.publish(b.snapshot(version))
	for change, err := range r.store.Watch(ctx, prefix, version) {
		if err != nil {
			return err
		}
		for _, e := range change.Events {
			if e.Deleted {
				b.remove(e.Key)
			} else {
				b.put(e.Key, e.Value)
			}
		}
		r.publish(b.snapshot(change.Version))
	}
	return ctx.Err()
}

func (r *Registry) publish(s *mesh.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.latest == nil {
		close(r.ready)
	} else if s.Version <= r.latest.Version {
		return
	}
	r.latest = s
	close(r.changed)
	r.changed = make(chan struct{})
}

// Ready is closed once there is a snapshot.
func (r *Registry) Ready() <-chan struct{} { return r.ready }

// Snapshot is the latest state; nil before Ready.
func (r *Registry) Snapshot() *mesh.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.latest
}

// Wait blocks until there is a snapshot with a Version above after, and
// returns the latest. A caller that comes late skips versions.
func (r *Registry) Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	return r.wait(ctx, func(s *mesh.Snapshot) bool { return s.Version > after })
}

func (r *Registry) wait(ctx context.Context, until func(*mesh.Snapshot) bool) (*mesh.Snapshot, error) {
	for {
		r.mu.Lock()
		s, changed := r.latest, r.changed
		r.mu.Unlock()
		if s != nil && until(s) {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

// Update changes the registry as a whole or not at all. decide sees the state
// at the moment of the change and says what to write; it may run more than
// once, and its error is returned as it is. The returned snapshot holds the
// change.
func (r *Registry) Update(ctx context.Context, decide func(s *mesh.Snapshot, c *Change) error) (*mesh.Snapshot, error) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	for range maxAttempts {
		s, version, err := r.attempt(ctx, decide)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil || s != nil {
			return s, err
		}
		return r.wait(ctx, func(s *mesh.Snapshot) bool { return s.Version >= version })
	}
	return nil, fmt.Errorf("%w: the registry changes faster than this change could be decided; try again", mesh.ErrUnavailable)
}

// attempt decides once. It returns a snapshot when there was nothing to
// change, else the version that holds the change.
func (r *Registry) attempt(ctx context.Context, decide func(s *mesh.Snapshot, c *Change) error) (*mesh.Snapshot, uint64, error) {
	// Every change writes the guard, so that a decision stands only if nobody
	// else decided since the snapshot that it was made on.
	guard, err := r.store.Get(ctx, keyGuard)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, 0, fmt.Errorf("read the registry: %w", err)
	}
	s, err := r.wait(ctx, func(s *mesh.Snapshot) bool { return s.Version >= guard.Version })
	if err != nil {
		return nil, 0, err
	}
	c := &Change{}
	if err := decide(s, c); err != nil {
		return nil, 0, err
	}
	if c.err != nil {
		return nil, 0, fmt.Errorf("encode the change: %w", c.err)
	}
	if len(c.ops) == 0 {
		return s, 0, nil
	}
	c.ops = append(c.ops, store.Op{Key: keyGuard, Value: []byte("1")})
	version, err := r.store.Apply(ctx, store.Batch{If: []store.Condition{{Key: keyGuard, Version: guard.Version}}, Ops: c.ops})
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return nil, 0, fmt.Errorf("write the registry: %w", storeError(err))
	}
	return nil, version, err
}

// storeError gives the errors of the store their place in the table of errors.
func storeError(err error) error {
	switch {
	case errors.Is(err, store.ErrFull):
		return fmt.Errorf("%w: %w", mesh.ErrExhausted, err)
	case errors.Is(err, store.ErrNotLeader):
		return fmt.Errorf("%w: %w", mesh.ErrPrecondition, err)
	case errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrUncertain):
		return fmt.Errorf("%w: %w", mesh.ErrUnavailable, err)
	default:
		return err
	}
}
