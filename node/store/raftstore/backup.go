// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
)

// A backup is a header, the state as a snapshot holds it, and a trailer:
//
//	header   magic, time in Unix nanoseconds i64, version u64, keys u64
//	trailer  length of the state u64, CRC-32C of all before it u32
//
// Numbers have their highest byte first.
const (
	backupMagic   = "MGBACKUP"
	backupHeader  = 32
	backupTrailer = 12
)

// BackupInfo describes a backup.
type BackupInfo struct {
	// Time is when it was made.
	Time time.Time
	// Version is that of the state.
	Version uint64
	// Keys is how many there are.
	Keys int
}

// Backup writes the whole state to w: all that was acknowledged to anyone
// before the call, at one version, while changes go on. Verify says whether
// what arrived is whole.
func (s *Store) Backup(ctx context.Context, w io.Writer) (BackupInfo, error) {
	if err := s.Sync(ctx); err != nil {
		return BackupInfo{}, fmt.Errorf("backup: %w", err)
	}
	return writeBackup(w, s.state)
}

// BackupStale is Backup of what this replica holds, at once and without a
// leader. What a majority acknowledged and did not send here is not in it.
func (s *Store) BackupStale(w io.Writer) (BackupInfo, error) { return writeBackup(w, s.state) }

func writeBackup(w io.Writer, state *kv.State) (BackupInfo, error) {
	entries, version := state.Freeze()
	info := BackupInfo{Time: time.Now().UTC().Round(0), Version: version}
	for range entries {
		info.Keys++
	}
	sums := &sumWriter{w: w}
	if _, err := sums.Write(info.header()); err != nil {
		return info, fmt.Errorf("write backup: %w", err)
	}
	if err := writeSnapshot(sums, entries, version, info.Time); err != nil {
		return info, fmt.Errorf("write backup: %w", err)
	}
	trailer := binary.BigEndian.AppendUint64(nil, uint64(sums.n-backupHeader))
	if _, err := sums.Write(trailer); err != nil {
		return info, fmt.Errorf("write backup: %w", err)
	}
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, sums.sum)); err != nil {
		return info, fmt.Errorf("write backup: %w", err)
	}
	return info, nil
}

func (i BackupInfo) header() []byte {
	b := append([]byte(nil), backupMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(i.Time.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, i.Version)
	return binary.BigEndian.AppendUint64(b, uint64(i.Keys))
}

// sumWriter counts and sums what it passes on.
type sumWriter struct {
	w   io.Writer
	n   int64
	sum uint32
}

// Write implements io.Writer.
func (s *sumWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.n += int64(n)
	s.sum = crc32.Update(s.sum, crc32.MakeTable(crc32.Castagnoli), p[:n])
	return n, err
}

// Verify reads a backup to its end and says what is in it. The error wraps
// ErrDamaged when it is not what Backup wrote, all of it and nothing else.
func Verify(r io.Reader) (BackupInfo, error) {
	info, _, err := readBackup(r)
	return info, err
}

// ReadBackup is Verify that also returns the entries, in the order of their keys.
func ReadBackup(r io.Reader) (BackupInfo, []store.Entry, error) { return readBackup(r) }

// readBackup returns the entries of a backup in the order of their keys.
func readBackup(r io.Reader) (BackupInfo, []store.Entry, error) {
	const limit = maxSnapshot + backupHeader + backupTrailer
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return BackupInfo{}, nil, fmt.Errorf("read backup: %w", err)
	}
	bad := func(format string, args ...any) (BackupInfo, []store.Entry, error) {
		return BackupInfo{}, nil, fmt.Errorf("read backup: %w: "+format, append([]any{ErrDamaged}, args...)...)
	}
	switch n := len(data) - backupHeader - backupTrailer; {
	case len(data) > limit:
		return bad("it has more than %d bytes", limit)
	case n < 0 || string(data[:len(backupMagic)]) != backupMagic:
		return bad("it is no backup, or cut short")
	case binary.BigEndian.Uint64(data[backupHeader+n:]) != uint64(n):
		return bad("it is cut short")
	}
	end := len(data) - 4
	if crc32.Checksum(data[:end], crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(data[end:]) {
		return bad("wrong checksum")
	}
	info := BackupInfo{
		Time:    time.Unix(0, int64(binary.BigEndian.Uint64(data[8:]))).UTC(),
		Version: binary.BigEndian.Uint64(data[16:]),
	}
	keys := binary.BigEndian.Uint64(data[24:])
	entries, version, err := readSnapshot(bytes.NewReader(data[backupHeader:end-8]), keys)
	if err != nil {
		return bad("%v", err)
	}
	if version != info.Version || keys != uint64(len(entries)) {
		return bad("%d keys at version %d, not %d at %d", len(entries), version, keys, info.Version)
	}
	info.Keys = len(entries)
	return info, entries, nil
}

// Restore makes dir, which must be empty or absent, that of a lone voter with
// the given id and the state of a backup. It is a cluster of its own: replicas
// of the cluster that the backup is from join it with empty directories. When
// it fails, dir is as it was.
func Restore(dir, id string, r io.Reader) (BackupInfo, error) {
	info, entries, err := readBackup(r)
	if err != nil {
		return info, err
	}
	if id == "" || dir == "" {
		return info, errors.New("restore: no id or no directory")
	}
	if left, err := os.ReadDir(dir); err == nil && len(left) > 0 {
		return info, fmt.Errorf("restore into %q: it is not empty: move what is in it away first", dir)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return info, fmt.Errorf("restore: %w", err)
	}
	unfinished := filepath.Clean(dir) + ".restore"
	if err := os.RemoveAll(unfinished); err != nil {
		return info, fmt.Errorf("restore: %w", err)
	}
	err = restoreInto(unfinished, id, info, entries)
	if err == nil {
		err = os.Remove(dir)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(unfinished, dir)
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(filepath.Clean(dir)))
	}
	if err != nil {
		return info, fmt.Errorf("restore: %w", errors.Join(err, os.RemoveAll(unfinished)))
	}
	return info, nil
}

// restoreInto makes a directory as a replica leaves it that has taken a
// snapshot and removed its log.
func restoreInto(dir, id string, info BackupInfo, entries []store.Entry) (err error) {
	s := &Store{started: make(chan struct{})}
	if s.metrics, err = newMetrics(nil, s); err != nil {
		return err
	}
	disk, err := openDisk(dir, hclog.NewNullLogger(), s.metrics, newFailure(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.close()) }()
	if _, err := openIdentity(disk, id, true); err != nil {
		return err
	}
	if err := disk.stable.SetUint64(keyTerm, 1); err != nil {
		return err
	}
	index := max(info.Version, 1)
	address, transport := raft.NewInmemTransport(raft.ServerAddress(id))
	servers := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(id), Address: address}}}
	sink, err := disk.snapshots.Create(raft.SnapshotVersionMax, index, 1, servers, index, transport)
	if err != nil {
		return err
	}
	return (&snapshot{slices.Values(entries), info.Version}).Persist(sink)
}
