// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/peer"
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

// nodeHome is the data directory of a node that this process runs.
type nodeHome struct {
	dir  string
	lock io.Closer
	// made is true when it was not there before, and asked once the gateway was
	// asked to let the node in.
	made, asked bool
}

// openHome holds the data directory of a node, and makes it if it is not there.
func openHome(dir string, log *slog.Logger) (*nodeHome, error) {
	_, err := os.Lstat(dir)
	made := dir != "" && errors.Is(err, fs.ErrNotExist)
	lock, err := hold(dir, "another process", log)
	if err != nil {
		return nil, err
	}
	return &nodeHome{dir: dir, lock: lock, made: made}, nil
}

// close lets go of the directory. One that was made for a node that was not let in
// is removed with its key, since no mesh knows either; err is why the node ended. A
// key that some gateway may have bound to the id stays.
func (h *nodeHome) close(err error) error {
	var gone error
	if unknown := !h.asked || peer.Refused(err) || peer.Distrusted(err); err != nil && h.made && unknown && node.SavedID(h.dir) == "" {
		gone = os.Remove(filepath.Join(h.dir, nodeKeyFile))
		if errors.Is(gone, fs.ErrNotExist) {
			gone = nil
		}
		gone = errors.Join(gone, os.Remove(h.dir))
	}
	return errors.Join(gone, h.lock.Close())
}

// free is the hold of what nobody can take.
type free struct{}

// Close implements io.Closer.
func (free) Close() error { return nil }
