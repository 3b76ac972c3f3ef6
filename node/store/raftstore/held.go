// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
)

// Held returns the newest state that this replica can know of without a leader:
// a moment of the past, in which everything was committed. After a start that is
// more than Get and List show: raft waits for a leader before it applies the log
// behind its last snapshot. What is returned is a copy that never changes: its
// Apply and Sync return store.ErrNotLeader, and its Watch ends with the context.
// The error wraps fs.ErrNotExist when no state is known.
func (s *Store) Held() (*Held, error) {
	state := kv.New()
	f := &fsm{state: state, failure: newFailure(slog.New(slog.DiscardHandler)), members: newMembers()}
	if err := s.disk.replay(f, s.disk.mark.at()); err != nil {
		return nil, fmt.Errorf("read the state on disk: %w", err)
	}
	if s.state.Version() > state.Version() { // a leader was there meanwhile
		entries, version := s.state.Freeze()
		state.Restore(version, entries)
	}
	if state.Version() == 0 {
		return nil, fmt.Errorf("%w: this gateway has not got a copy of the state yet", fs.ErrNotExist)
	}
	return &Held{state}, nil
}

// Held is a state that nobody changes.
type Held struct{ state *kv.State }

var _ store.Store = (*Held)(nil)

// Backup writes the whole state to w, as Store.Backup does.
func (h *Held) Backup(w io.Writer) (BackupInfo, error) { return writeBackup(w, h.state) }

// Get implements store.Store.
func (h *Held) Get(_ context.Context, key string) (store.Entry, error) { return h.state.Get(key) }

// List implements store.Store.
func (h *Held) List(_ context.Context, prefix string) ([]store.Entry, uint64, error) {
	return h.state.List(prefix)
}

// Page implements store.Store.
func (h *Held) Page(_ context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error) {
	return h.state.Page(prefix, after, limit)
}

// Watch implements store.Store.
func (h *Held) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return h.state.Watch(ctx, prefix, after)
}

// Apply implements store.Store.
func (*Held) Apply(context.Context, store.Batch) (uint64, error) { return 0, &store.NotLeaderError{} }

// Sync implements store.Store.
func (*Held) Sync(context.Context) error { return &store.NotLeaderError{} }
