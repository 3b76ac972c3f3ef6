// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store/kv"
)

// BackupDir writes what the directory of a replica that does not run holds, as
// Backup does: the way out when the majority is gone for good. All entries of
// its log are in it, also those of which it never learned that a majority holds
// them: what it acknowledged with others is there, what they acknowledged
// without it is not, and the last changes may never have been acknowledged.
// Errors wrap ErrInUse, ErrDamaged or fs.ErrNotExist; dir stays as it is, but
// for what a start of the replica would put right.
func BackupDir(dir string, w io.Writer) (BackupInfo, error) {
	state, err := readDir(dir)
	if err != nil {
		return BackupInfo{}, fmt.Errorf("read %q: %w", dir, err)
	}
	return writeBackup(w, state)
}

func readDir(dir string) (_ *kv.State, err error) {
	if dir == "" || !exists(filepath.Join(dir, votesFile)) {
		return nil, fmt.Errorf("%w: there is no state of a gateway", fs.ErrNotExist) // openDisk would make some
	}
	s := newStore(Config{Logger: slog.New(slog.DiscardHandler)})
	if s.metrics, err = newMetrics(nil, s); err != nil {
		return nil, err
	}
	d, err := openDisk(dir, hclog.NewNullLogger(), s.metrics, s.failure)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	used, err := d.used()
	switch {
	case err != nil:
		return nil, err
	case !used:
		return nil, fmt.Errorf("%w: the gateway has not got a copy of the state yet", fs.ErrNotExist)
	}
	return s.state, d.replay(&fsm{state: s.state, failure: s.failure, members: s.members}, math.MaxUint64)
}

// replay makes the state of what the disk holds: the newest snapshot that is
// whole, and the log behind it up to an index, or to its end.
func (d *disk) replay(f *fsm, until uint64) error {
	base, err := d.newestSnapshot()
	if err != nil {
		return err
	}
	if err := d.restoreAt(base, f); err != nil {
		return err
	}
	first, err := d.logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := d.logs.LastIndex()
	if err != nil {
		return err
	}
	var log raft.Log
	for i := max(first, base+1); i <= min(last, until); i++ {
		if err := d.logs.GetLog(i, &log); err != nil {
			return err
		}
		if log.Type == raft.LogCommand {
			f.Apply(&log) // the outcome of a change was its caller's
		}
		select {
		case <-f.failure.failed: // it is not understood
			return f.failure.err
		default:
		}
	}
	return nil
}

// restoreAt reads the snapshot that ends at an index; 0 is none.
func (d *disk) restoreAt(index uint64, f *fsm) error {
	if index == 0 {
		return nil
	}
	list, err := d.snapshots.List()
	if err != nil {
		return err
	}
	for _, meta := range list {
		if meta.Index != index {
			continue
		}
		_, source, err := d.snapshots.Open(meta.ID)
		if err != nil {
			continue // two may end there, and one be damaged
		}
		return f.Restore(source)
	}
	return fmt.Errorf("snapshot at %d: %w", index, os.ErrNotExist)
}
