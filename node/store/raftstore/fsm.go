// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
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
	// applied hears of the last entry of each batch that was applied; nil:
	// nobody does.
	applied func(term, index uint64)
	// halted is why nothing is applied any more: an entry is not understood.
	halted error
}

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply implements raft.FSM; see ApplyBatch.
func (f *fsm) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch implements raft.BatchingFSM; the answer to a command is an outcome.
// An entry that this program does not understand ends the store, and what comes
// after it is not applied: to skip it would make this replica differ from the
// others.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	commands, places := make([]kv.Command, 0, len(logs)), make([]int, 0, len(logs))
	applied := 0
	for i, log := range logs {
		if log.Type == raft.LogConfiguration { // raft goes by it in any case
			f.members.reconfigured()
		} else if c, ok := f.command(log); ok {
			commands, places = append(commands, c), append(places, i)
		} else {
			answers[i] = outcome{err: f.halted}
		}
		if f.halted == nil {
			applied = i + 1
		}
	}
	for n, r := range f.state.Do(commands, make([]kv.Result, 0, len(commands))) {
		answers[places[n]] = outcome{r.Version, r.Err}
	}
	if f.applied != nil && applied > 0 {
		last := logs[applied-1]
		f.applied(last.Term, last.Index)
	}
	return answers
}

// command reads a log entry. It returns false, and halts, at the first one that
// is not understood, and for all that come after it.
func (f *fsm) command(log *raft.Log) (kv.Command, bool) {
	if f.halted != nil {
		return kv.Command{}, false
	}
	c, err := commandOf(log)
	if err != nil {
		f.halted = err
		f.failure.fail(err)
	}
	return c, err == nil
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

// Snapshot implements raft.FSM at a cost that does not grow with the state. There
// is none once entries were left out: raft would take them for part of it.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.halted != nil {
		return nil, fmt.Errorf("the state ends before what raft has applied: %w", f.halted)
	}
	entries, version := f.state.Freeze()
	return &snapshot{entries, version}, nil
}

// Restore implements raft.FSM. The old state stays when the snapshot is bad.
func (f *fsm) Restore(source io.ReadCloser) error {
	defer source.Close()
	entries, version, err := readSnapshot(source, math.MaxUint64)
	if err != nil {
		err = fmt.Errorf("%w: snapshot: %w", ErrDamaged, err)
		f.failure.fail(err)
		return err
	}
	f.state.Restore(version, slices.Values(entries))
	f.halted = nil // it has what was not understood
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
