// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
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

func (f *failure) fail(err error) {
	f.once.Do(func() {
		f.logger.Error("store failed, the process should end", "err", err)
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
