// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long an open waits for a process that is just ending.
const lockTimeout = time.Second

// openBolt opens or makes a database. bbolt believes what it reads and may
// crash, loop or overwrite data over a damaged page, so all pages are checked
// before it reads them.
func openBolt(path string) (*raftboltdb.BoltStore, error) {
	if err := checkBolt(path); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	file, err := raftboltdb.New(raftboltdb.Options{
		Path:        path,
		BoltOptions: &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, ErrInUse
	}
	return file, err
}

func checkBolt(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil // to be made
	}
	if err != nil {
		return err
	}
	// A read-only open locks the file against writers and reads the meta
	// pages only.
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, ReadOnly: true})
	var errno syscall.Errno
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return ErrInUse
	case errors.As(err, &errno):
		return err
	case err != nil: // the file opens, but makes no sense
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return errors.Join(err, db.Close())
	}
	if err = checkPages(f, info.Size()); err != nil {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return errors.Join(err, f.Close(), db.Close())
}
