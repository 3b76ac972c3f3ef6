// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
)

// Sync returns a snapshot that has every change of the registry that was
// acknowledged to anyone before the call. It waits while there is no leader,
// and its errors are those of Update.
func (r *Registry) Sync(ctx context.Context) (*mesh.Snapshot, error) {
	if err := r.store.Sync(ctx); err != nil {
		return nil, translate(err)
	}
	// The store has it all now, the snapshot a moment later: once it is not
	// older than the revision, which every change writes.
	e, err := r.store.Get(ctx, keyRevision)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, translate(err)
	}
	v, err := r.wait(ctx, func(s *mesh.Snapshot) bool { return s.Version >= e.Version })
	if err != nil {
		return nil, err
	}
	return v.snapshot, nil
}

// Translate adds to an error of the store what it means for callers of the
// API, as Update does.
func Translate(err error) error { return translate(err) }
