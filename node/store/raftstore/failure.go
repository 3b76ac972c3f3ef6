// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// stallLimit is how long a write to the disk may take. Raft itself never gives
// up on a disk that hangs: its heartbeats go on while nothing is written.
const stallLimit = 5 * time.Second

// failure is the first reason why a store can keep no promise any more.
type failure struct {
	logger *slog.Logger
	once   sync.Once
	// err is written before failed is closed and read after it.
	err    error
	failed chan struct{}
}

func newFailure(logger *slog.Logger) *failure {
	return &failure{logger: logger, failed: make(chan struct{})}
}

// fail ends the promises of the store. A disk that fails may keep the process from
// ending, so the log is told at once; a removal is no fault, and is told by whoever
// ends because of it.
func (f *failure) fail(err error) {
	f.once.Do(func() {
		level := slog.LevelError
		if errors.Is(err, ErrRemoved) {
			level = slog.LevelDebug
		}
		f.logger.Log(context.Background(), level, "store failed, the process should end", "err", err)
		f.err = err
		close(f.failed)
	})
}

// limit fails the store, because of what is done now, unless stop is called in
// time.
func (f *failure) limit(what string) (stop func()) {
	watchdog := time.AfterFunc(stallLimit, func() {
		f.fail(fmt.Errorf("%w: %s takes more than %v", ErrDisk, what, stallLimit))
	})
	return func() { watchdog.Stop() }
}
