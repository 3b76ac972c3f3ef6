// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore/wal"
)

// errNotHeld says that an entry went before it was on disk.
var errNotHeld = errors.New("the entry is not in the log any more")

// syncedLog is a raft.LogStore that may be written ahead of the disk, as wal.Log.
type syncedLog interface {
	raft.LogStore
	Write(logs []*raft.Log) error
	Sync() error
	Synced() uint64
}

var _ syncedLog = (*wal.Log)(nil)

// guardedLog is a raft.LogStore that watches how writes go.
//
// The log of a leader runs ahead of its disk, so that the disks of the others
// write at the same time: StoreLogs returns early, and the answers of the
// others count only once await has seen the entries on the own disk. Without
// that, raft would take the leader's own copy for safe too soon.
type guardedLog struct {
	syncedLog
	metrics *metrics
	failure *failure
	// early says whether StoreLogs may return before entries are on disk.
	early func(logs []*raft.Log) bool
	// cut is true after entries were removed from the end: raft believes that
	// they are there until others took their place. Only raft's main thread
	// and guardedLog touch it.
	cut bool
	wg  sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	running bool       // entries are on their way to the disk
	again   bool       // there are more of them
	moved   chan struct{}
	refused error // of the last write, which found no space; nil: it found some
}

func newGuardedLog(log syncedLog, m *metrics, f *failure) *guardedLog {
	never := func([]*raft.Log) bool { return false }
	return &guardedLog{syncedLog: log, metrics: m, failure: f, early: never, moved: make(chan struct{})}
}

// StoreLog implements raft.LogStore.
func (g *guardedLog) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. An error that wraps store.ErrFull
// changed nothing and may heal; any other one ends the store.
func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	put := g.stored
	if g.early(logs) {
		put = g.written
	}
	return g.check(put(logs))
}

func (g *guardedLog) stored(logs []*raft.Log) error {
	defer g.watch(time.Now())()
	return g.syncedLog.StoreLogs(logs)
}

// written writes entries and has them synced on a goroutine.
func (g *guardedLog) written(logs []*raft.Log) error {
	stop := g.failure.limit("a write to the log") // not only syncs hang on a disk that does
	err := g.syncedLog.Write(logs)
	stop()
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.again = true
	if !g.running {
		g.running = true
		g.wg.Go(g.sync)
	}
	return nil
}

// sync puts on disk what was written, until there is no more.
func (g *guardedLog) sync() {
	for g.more() {
		stop := g.watch(time.Now())
		err := g.Sync()
		stop()
		if err != nil {
			g.failure.fail(fmt.Errorf("%w: write log: %w", ErrDisk, err))
		}
		g.wake()
	}
}

func (g *guardedLog) more() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running, g.again = g.again, false
	return g.running
}

func (g *guardedLog) wake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moved = renew(g.moved)
}

// watch measures a write and fails the store if it hangs, until stop is called.
func (g *guardedLog) watch(start time.Time) (stop func()) {
	inTime := g.failure.limit("a write to the log")
	return func() {
		inTime()
		g.metrics.logWrite.Observe(time.Since(start).Seconds())
	}
}

func (g *guardedLog) check(err error) error {
	switch {
	case err == nil:
		g.cut = false
		g.noteRoom(nil)
		return nil
	case errors.Is(err, store.ErrFull) && !g.cut:
		g.noteRoom(err)
		return fmt.Errorf("write log: %w", err)
	}
	err = fmt.Errorf("%w: write log: %w", ErrDisk, err)
	g.failure.fail(err)
	return err
}

// noteRoom notes whether there was space for the last write.
func (g *guardedLog) noteRoom(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refused != err {
		g.refused, g.moved = err, renew(g.moved)
	}
}

// noRoom returns the error of the last write if it found no space, and a channel
// that is closed when that may have changed. Raft writes again and again.
func (g *guardedLog) noRoom() (moved <-chan struct{}, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.moved, g.refused
}

// await returns nil once the entry with an index is on the disk, and those
// before it. It returns an error when the store failed or closes, or when the
// entry went: another leader did not have it.
func (g *guardedLog) await(index uint64, closing <-chan struct{}) error {
	for {
		g.mu.Lock()
		moved := g.moved
		g.mu.Unlock()
		if g.Synced() >= index {
			return nil
		}
		if last, err := g.LastIndex(); err != nil || last < index {
			return errors.Join(err, errNotHeld)
		}
		select {
		case <-moved:
		case <-g.failure.failed:
			return g.failure.err
		case <-closing:
			return errStreamsClosed
		}
	}
}

// GetLog implements raft.LogStore.
func (g *guardedLog) GetLog(index uint64, log *raft.Log) error {
	err := g.syncedLog.GetLog(index, log)
	if errors.Is(err, wal.ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
		g.failure.fail(err)
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (g *guardedLog) DeleteRange(from, to uint64) error {
	last, err := g.LastIndex()
	if err != nil {
		return err
	}
	stop := g.failure.limit("a removal from the log")
	err = g.syncedLog.DeleteRange(from, to)
	stop()
	if err == nil && to == last {
		g.cut = true
	}
	if errors.Is(err, wal.ErrBroken) {
		g.failure.fail(fmt.Errorf("%w: remove from the log: %w", ErrDisk, err))
	}
	g.wake()
	return err
}

// Close waits for what is on its way to the disk.
func (g *guardedLog) Close() error {
	g.wg.Wait()
	return nil
}

// leadersLog is the log as raft reads it. A replica that leads no more says of
// entries that it has them: they have to be on its disk by then.
type leadersLog struct {
	raft.LogStore
	guard *guardedLog
	leads func() bool
}

// GetLog implements raft.LogStore.
func (l *leadersLog) GetLog(index uint64, log *raft.Log) error {
	if !l.leads() && l.guard.Synced() < index {
		if err := l.guard.Sync(); err != nil {
			return err
		}
	}
	return l.LogStore.GetLog(index, log)
}

// leads says whether this replica leads. Raft's main thread, which alone
// writes to the log, asks for itself.
func (s *Store) leads() bool {
	select {
	case <-s.started:
		return s.raft.State() == raft.Leader
	default:
		return false
	}
}

// ahead says whether entries may be sent before they are on the own disk: the
// answer of another voter is needed for each, and held back until they are. A
// new configuration may be one in which nobody else is asked.
func (s *Store) ahead(logs []*raft.Log) bool {
	return s.leads() && len(votersOf(s.servers())) > 1 &&
		!slices.ContainsFunc(logs, func(log *raft.Log) bool { return log.Type == raft.LogConfiguration })
}
