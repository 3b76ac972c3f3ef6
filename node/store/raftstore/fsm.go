// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
)

// fsm gives raft's committed entries to the state. Raft calls Apply, Snapshot
// and Restore from one goroutine; Persist of a snapshot runs beside them.
type fsm struct {
	state   *kv.State
	failure *failure
	// members hears that the cluster changed.
	members *members
}

var _ raft.ConfigurationStore = (*fsm)(nil)

// StoreConfiguration implements raft.ConfigurationStore.
func (f *fsm) StoreConfiguration(uint64, raft.Configuration) { f.members.reconfigured() }

// Apply implements raft.FSM; the answer is an outcome. An entry that this
// program does not understand ends the store: to skip it would make this
// replica differ from the others.
func (f *fsm) Apply(log *raft.Log) any {
	c, err := decodeEntry(log.Data)
	if err != nil {
		err = fmt.Errorf("log entry %d: %w", log.Index, err)
		f.failure.fail(err)
		return outcome{err: err, term: log.Term}
	}
	at := c.at
	if at.IsZero() {
		at = log.AppendedAt
	}
	if c.expire {
		return outcome{version: f.state.Expire(log.Index, at), term: log.Term}
	}
	version, err := f.state.Apply(log.Index, at.UTC().Round(0), c.batch)
	return outcome{version, err, log.Term}
}

// Snapshot implements raft.FSM at a cost that does not grow with the state.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	entries, version := f.state.Freeze()
	return &snapshot{entries, version}, nil
}

// Restore implements raft.FSM. The old state stays when the snapshot is bad.
func (f *fsm) Restore(source io.ReadCloser) error {
	defer source.Close()
	entries, version, err := readSnapshot(source)
	if err != nil {
		err = fmt.Errorf("%w: snapshot: %w", ErrDamaged, err)
		f.failure.fail(err)
		return err
	}
	f.state.Restore(version, slices.Values(entries))
	return nil
}

// snapshot is the state at one moment.
type snapshot struct {
	entries iter.Seq[store.Entry]
	version uint64
}

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := writeSnapshot(sink, s.entries, s.version, time.Now()); err != nil {
		return fmt.Errorf("write snapshot: %w", errors.Join(err, sink.Cancel()))
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (*snapshot) Release() {}
