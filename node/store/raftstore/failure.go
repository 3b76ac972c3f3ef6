// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"log/slog"
	"sync"
)

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
