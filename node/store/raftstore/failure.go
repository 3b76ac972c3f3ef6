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

// slowPauseMax is how often at least the log says that a store is not open yet.
const slowPauseMax = time.Minute

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

// tellSlow has the log say that a store is still being opened, every stallLimit and
// then more and more seldom, until stop is called: a disk that hangs says nothing
// itself, and the log that is read at a start may be large.
func tellSlow(logger *slog.Logger, dir string) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	start := time.Now()
	go func() {
		defer close(ended)
		pause := stallLimit
		timer := time.NewTimer(pause)
		defer timer.Stop()
		for {
			select {
			case <-timer.C:
				logger.Warn("the state is not open yet: its disk is slow or hangs, or there is much to read", "dir", dir, "after", time.Since(start).Round(time.Second))
				pause = min(2*pause, slowPauseMax)
				timer.Reset(pause)
			case <-done:
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}
