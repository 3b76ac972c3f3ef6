// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore/wal"
)

// stallLimit is how long a write to the log may take. Raft itself never gives
// up on a disk that hangs: its heartbeats go on while nothing is written.
const stallLimit = 5 * time.Second

// guardedLog is a raft.LogStore that watches how writes go.
type guardedLog struct {
	raft.LogStore
	metrics *metrics
	failure *failure
	// cut is true after entries were removed from the end: raft believes that
	// they are there until others took their place. Only raft's main thread
	// and guardedLog touch it.
	cut bool
}

// StoreLog implements raft.LogStore.
func (g *guardedLog) StoreLog(log *raft.Log) error { return g.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. An error that wraps store.ErrFull
// changed nothing and may heal; any other one ends the store.
func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	start := time.Now()
	watchdog := time.AfterFunc(stallLimit, func() {
		g.failure.fail(fmt.Errorf("%w: a write to the log takes more than %v", ErrDisk, stallLimit))
	})
	err := g.LogStore.StoreLogs(logs)
	watchdog.Stop()
	g.metrics.logWrite.Observe(time.Since(start).Seconds())
	switch {
	case err == nil:
		g.cut = false
		return nil
	case errors.Is(err, store.ErrFull) && !g.cut:
		return fmt.Errorf("write log: %w", err)
	}
	err = fmt.Errorf("%w: write log: %w", ErrDisk, err)
	g.failure.fail(err)
	return err
}

// GetLog implements raft.LogStore.
func (g *guardedLog) GetLog(index uint64, log *raft.Log) error {
	err := g.LogStore.GetLog(index, log)
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
	err = g.LogStore.DeleteRange(from, to)
	if err == nil && to == last {
		g.cut = true
	}
	if errors.Is(err, wal.ErrBroken) {
		g.failure.fail(fmt.Errorf("%w: remove from the log: %w", ErrDisk, err))
	}
	return err
}
