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

// fsm gives raft's committed entries to the state. Raft calls ApplyBatch, Snapshot
// and Restore from one goroutine; Persist of a snapshot runs beside them.
type fsm struct {
	state   *kv.State
	failure *failure
	// members hears that the cluster changed.
	members *members
	// applied hears of the last entry of each batch; nil: nobody does.
	applied func(term, index uint64)
}

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply implements raft.FSM; see ApplyBatch.
func (f *fsm) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch implements raft.BatchingFSM; the answer to a command is an outcome.
// An entry that this program does not understand ends the store: to skip it
// would make this replica differ from the others.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	commands, places := make([]kv.Command, 0, len(logs)), make([]int, 0, len(logs))
	for i, log := range logs {
		if log.Type == raft.LogConfiguration {
			f.members.reconfigured()
			continue
		}
		c, err := commandOf(log)
		if err != nil {
			f.failure.fail(err)
			answers[i] = outcome{err: err}
			continue
		}
		commands, places = append(commands, c), append(places, i)
	}
	for n, r := range f.state.Do(commands, make([]kv.Result, 0, len(commands))) {
		answers[places[n]] = outcome{r.Version, r.Err}
	}
	if last := logs[len(logs)-1]; f.applied != nil {
		f.applied(last.Term, last.Index)
	}
	return answers
}

// commandOf reads a log entry as the state takes it.
func commandOf(log *raft.Log) (kv.Command, error) {
	c, err := decodeEntry(log.Data)
	if err != nil {
		return kv.Command{}, fmt.Errorf("log entry %d: %w", log.Index, err)
	}
	at := c.at
	if at.IsZero() {
		at = log.AppendedAt
	}
	if !c.expire {
		at = at.UTC().Round(0)
	}
	return kv.Command{Version: log.Index, At: at, Batch: c.batch, Expire: c.expire}, nil
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
