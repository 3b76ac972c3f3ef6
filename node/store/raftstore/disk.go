// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore/wal"
)

const (
	logDir    = "log"
	votesFile = "votes.db"
	// reserve is the space that is left alone, so that raft can still write
	// its votes and snapshots when the disk is full, in bytes.
	reserve = 16 << 20
)

// disk is where raft keeps its files: the log, the votes and the snapshots,
// each in its own place, so that none can take the others with it.
type disk struct {
	dir       string // empty: everything is in memory
	logs      raft.LogStore
	guard     *guardedLog // what logs is; nil in memory
	cache     raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	mark      *mark // nil in memory, and when it cannot be kept
	// files are what close closes, in order.
	files []io.Closer
	// free returns the free space of a directory's file system in bytes.
	free func(dir string) (uint64, error)
}

// openDisk opens or makes the files in dir and checks all that is in them.
func openDisk(dir string, logger hclog.Logger, m *metrics, f *failure) (_ *disk, err error) {
	if dir == "" {
		logs := raft.NewInmemStore()
		return &disk{logs: logs, cache: logs, stable: logs, snapshots: raft.NewInmemSnapshotStore()}, nil
	}
	d := &disk{dir: dir, free: freeSpace}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := durable.LockDir(dir) // elsewhere the votes file is locked when it is opened
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		} else {
			d.files = append(d.files, lock) // let go of last
		}
	}()
	if err := removeUnfinished(filepath.Join(dir, "snapshots")); err != nil {
		return nil, err
	}
	if err := migrateLog(dir); err != nil {
		return nil, err
	}
	if exists(filepath.Join(dir, votesFile)) && !wal.Exists(filepath.Join(dir, logDir)) {
		return nil, fmt.Errorf("%w: %s is missing", ErrDamaged, logDir) // it is made first
	}
	logs, err := wal.Open(filepath.Join(dir, logDir))
	if errors.Is(err, wal.ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	d.guard = newGuardedLog(logs, m, f)
	d.logs = d.guard
	d.files = append(d.files, d.guard, logs)
	votes, err := openBolt(filepath.Join(dir, votesFile))
	if err != nil {
		return nil, err
	}
	d.files = append(d.files, votes)
	if d.snapshots, err = raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, logger); err != nil {
		return nil, err
	}
	d.stable = guardedVotes{votes, f}
	if d.mark, err = openMark(dir); err != nil { // such as a full disk, on which the rest works
		logger.Warn("a start without a leader will know less of the state", "error", err)
	} else {
		d.files = append(d.files, d.mark)
	}
	d.cache = &logCache{LogStore: d.logs}
	if err := durable.SyncDir(dir); err != nil { // the names of new files last, too
		return nil, err
	}
	return d, d.check()
}

// check reads the whole log and the snapshot that raft will start from: every
// entry after the snapshot must be there, and all must be what was written.
func (d *disk) check() error {
	base, err := d.newestSnapshot()
	if err != nil {
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
	if last > 0 && first > base+1 {
		return fmt.Errorf("%w: the log begins at %d, the snapshot ends at %d", ErrDamaged, first, base)
	}
	var log raft.Log
	for i := max(first, 1); i <= last; i++ {
		err := d.logs.GetLog(i, &log)
		if errors.Is(err, raft.ErrLogNotFound) && i <= base {
			continue // a snapshot of another replica may leave a gap before its end
		}
		if err != nil {
			return fmt.Errorf("%w: log entry %d: %w", ErrDamaged, i, err)
		}
	}
	return d.checkVotes(log.Term)
}

// checkVotes reads all that the votes file holds.
func (d *disk) checkVotes(lastTerm uint64) error {
	if _, err := d.stable.Get(keyCandidate); err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	for _, key := range [][]byte{keyVoteTerm, keyTerm} {
		term, err := d.stable.GetUint64(key)
		if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return err
		}
		if lastTerm > term && string(key) == string(keyTerm) {
			return fmt.Errorf("%w: the log is of term %d, the votes are of %d", ErrDamaged, lastTerm, term)
		}
	}
	return nil
}

// newestSnapshot returns the index of the newest snapshot with a right
// checksum; 0 if there is none. Raft makes the same choice.
func (d *disk) newestSnapshot() (uint64, error) {
	list, err := d.snapshots.List()
	if err != nil {
		return 0, err
	}
	for _, meta := range list {
		_, source, err := d.snapshots.Open(meta.ID)
		if err != nil {
			continue // an older one may do, with the log that trails it
		}
		if err := source.Close(); err != nil {
			return 0, err
		}
		return meta.Index, checkMeta(meta)
	}
	if len(list) > 0 {
		return 0, fmt.Errorf("%w: no snapshot has a right checksum", ErrDamaged)
	}
	return 0, nil
}

// checkMeta compares what raft wrote beside a snapshot, which has no checksum,
// with the snapshot's name, in which the same numbers are.
func checkMeta(meta *raft.SnapshotMeta) error {
	var term, index, made uint64
	if n, err := fmt.Sscanf(meta.ID, "%d-%d-%d", &term, &index, &made); n != 3 || err != nil ||
		term != meta.Term || index != meta.Index || meta.ConfigurationIndex > index || len(meta.Configuration.Servers) == 0 {
		return fmt.Errorf("%w: snapshot %s: its description belongs to something else", ErrDamaged, meta.ID)
	}
	return nil
}

// bootstrap makes a new disk that of a cluster with one voter. It also ends a
// bootstrap in which the process died between its two writes: then there is a
// first term, but neither a vote nor an entry.
func (d *disk) bootstrap(cfg *raft.Config, transport raft.Transport, addr raft.ServerAddress) error {
	has, err := raft.HasExistingState(d.logs, d.stable, d.snapshots)
	if err != nil {
		return err
	}
	if has && d.unborn() {
		if err := d.stable.SetUint64(keyTerm, 0); err != nil {
			return err
		}
		has = false
	}
	if used, err := d.used(); has && !used && err == nil {
		return fmt.Errorf("%w: the log is empty, but there were votes", ErrDamaged)
	}
	if has {
		return nil
	}
	return raft.BootstrapCluster(cfg, d.logs, d.stable, d.snapshots, transport, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: cfg.LocalID, Address: addr}},
	})
}

func (d *disk) unborn() bool {
	last, err := d.logs.LastIndex()
	if err != nil || last > 0 {
		return false
	}
	snapshots, err := d.snapshots.List()
	if err != nil || len(snapshots) > 0 {
		return false
	}
	term, err := d.stable.GetUint64(keyTerm)
	if err != nil || term > 1 {
		return false
	}
	voted, _ := d.stable.GetUint64(keyVoteTerm)
	return voted == 0
}

// room returns an error that wraps store.ErrFull while the disk is as good as
// full. Raft itself would stumble over a failed write.
func (d *disk) room() error {
	if d.dir == "" {
		return nil
	}
	free, err := d.free(d.dir)
	if err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	if free < reserve {
		return fmt.Errorf("%w: %d of %d bytes in reserve are left in %s", store.ErrFull, free, reserve, d.dir)
	}
	return nil
}

func (d *disk) close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	d.files = nil
	return errors.Join(errs...)
}

// removeUnfinished removes the snapshots that a dying process left half
// written; raft skips them, but never removes them.
func removeUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
