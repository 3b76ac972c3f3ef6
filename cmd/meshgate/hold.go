// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/meshgate/meshgate/node/durable"
)

// hold makes the data directory dir, and keeps other processes of ours from running
// from it until what it returns is closed. It holds the directory as a whole: what
// is inside may be moved away while somebody uses it, as a state is that gives way
// to a backup. The error wraps durable.ErrInUse, and says that it is who. Where a
// directory cannot be locked, as on some network file systems, the log says so.
func hold(dir, who string, log *slog.Logger) (io.Closer, error) {
	if dir == "" {
		return free{}, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	lock, err := durable.LockDir(dir)
	switch {
	case err == nil:
		return lock, nil
	case errors.Is(err, durable.ErrInUse):
		return nil, fmt.Errorf("%s runs from %s: stop it first: %w", who, dir, err)
	}
	log.Warn("a second process that runs from the data directory will not be noticed", "dir", dir, "err", err)
	return free{}, nil
}

// free is the hold of what nobody can take.
type free struct{}

// Close implements io.Closer.
func (free) Close() error { return nil }
