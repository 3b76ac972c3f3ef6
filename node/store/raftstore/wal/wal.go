// SPDX-License-Identifier: Apache-2.0

// Package wal is a raft log in files, with one sync for each append, or for
// several that follow each other closely.
//
// Every entry carries checksums, and all of them are checked at the start: a
// changed byte is found, wherever it is. What a power cut left of an append
// that was never acknowledged is told from damage and removed.
package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/durable"
	"github.com/meshgate/meshgate/node/store"
)

// Errors of a Log.
var (
	// ErrDamaged says that the files are not what was written to them.
	ErrDamaged = errors.New("log is damaged")
	// ErrBroken says that an earlier write failed: what is on disk is unknown
	// until the log is opened again.
	ErrBroken = errors.New("log is broken by an earlier failure")
)

// Log is a raft.LogStore. It has no gaps: entries that come behind one replace
// what was before it. Its methods may be called by many goroutines at a time.
// Open makes one.
type Log struct {
	dir  string
	size int64 // of a file, in bytes
	// sync is syncData; tests hold it up to see what goes on meanwhile.
	sync func(file *os.File) error
	// syncing is held while appends are on their way to the disk, and while
	// files come and go; it is taken before writing.
	syncing sync.Mutex
	// writing is held by appends and removals, and is taken before mu.
	writing sync.Mutex
	broken  error  // guarded by writing
	synced  uint64 // the last entry that is on disk; guarded by writing

	mu       sync.RWMutex // guards the fields below
	segments []*segment   // oldest first; never empty
	first    uint64       // the oldest entry that was not removed; 0: that of the oldest file
}

var _ raft.LogStore = (*Log)(nil)

// Open opens the log in a directory, or makes one in a directory that has no
// file of a log. The caller closes it, and sees to it that nobody else has the
// directory open.
func Open(dir string) (*Log, error) { return open(dir, segmentSize) }

// open is Open with files of a given size.
func open(dir string, size int64) (_ *Log, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	bases, err := list(dir)
	if err != nil {
		return nil, err
	}
	l := &Log{dir: dir, size: size, sync: syncData}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	for i, base := range bases {
		s, err := openSegment(filepath.Join(dir, segmentName(base)), base, i == len(bases)-1)
		if err != nil {
			return nil, err
		}
		l.segments = append(l.segments, s)
		if i > 0 && l.segments[i-1].last()+1 != base {
			return nil, fmt.Errorf("%w: entry %d is followed by %d", ErrDamaged, l.segments[i-1].last(), base)
		}
	}
	if len(l.segments) == 0 {
		s, err := createSegment(dir, 1, size, 0, false)
		if err != nil {
			return nil, noSpace(err)
		}
		l.segments = append(l.segments, s)
	}
	l.synced = l.segments[len(l.segments)-1].last()
	return l, nil
}

// Exists says whether a directory has a file of a log. A log always has one.
func Exists(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".log") })
}

// list returns the first indexes of the files in a directory, in order. It
// removes files that were never finished, and those that others make void.
func list(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var bases []uint64
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		var base uint64
		if _, err := fmt.Sscanf(e.Name(), "%d.log", &base); err != nil || segmentName(base) != e.Name() || base == 0 {
			return nil, fmt.Errorf("%w: %q is no file of a log", ErrDamaged, e.Name())
		}
		bases = append(bases, base)
	}
	slices.Sort(bases)
	for i := len(bases) - 1; i > 0; i-- {
		if !voids(filepath.Join(dir, segmentName(bases[i]))) {
			continue
		}
		for _, base := range bases[:i] {
			if err := os.Remove(filepath.Join(dir, segmentName(base))); err != nil {
				return nil, err
			}
		}
		return bases[i:], nil
	}
	return bases, nil
}

// noSpace marks an error that is about space.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return err
}

// FirstIndex implements raft.LogStore.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	first, last := l.boundsLocked()
	if first > last {
		return 0, nil
	}
	return first, nil
}

// LastIndex implements raft.LogStore.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	first, last := l.boundsLocked()
	if first > last {
		return 0, nil
	}
	return last, nil
}

// boundsLocked returns the first and the last index; first > last says that
// the log is empty.
func (l *Log) boundsLocked() (first, last uint64) {
	return max(l.first, l.segments[0].base), l.segments[len(l.segments)-1].last()
}

// GetLog implements raft.LogStore.
func (l *Log) GetLog(index uint64, log *raft.Log) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if first, last := l.boundsLocked(); index < first || index > last {
		return raft.ErrLogNotFound
	}
	i, found := slices.BinarySearchFunc(l.segments, index, func(s *segment, index uint64) int {
		switch {
		case s.base < index:
			return -1
		case s.base > index:
			return 1
		}
		return 0
	})
	if !found {
		i--
	}
	return l.segments[i].read(index, log)
}

// StoreLog implements raft.LogStore.
func (l *Log) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore: the entries, and all before them, are on
// disk when it returns nil. An error that wraps store.ErrFull changed nothing.
// Entries that begin behind a gap replace all before it, which a snapshot holds.
func (l *Log) StoreLogs(logs []*raft.Log) error {
	if err := l.Write(logs); err != nil {
		return err
	}
	return l.Sync()
}

// Write is StoreLogs, but for the wait for the disk: a power cut may take the
// entries away, the last ones first, until Sync has returned.
func (l *Log) Write(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	need, err := lengthOf(logs)
	if err != nil {
		return err
	}
	if done, err := l.writeHere(logs, need); done {
		return err
	}
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.settle(); err != nil {
		return err
	}
	tail, err := l.tail(logs[0].Index, need)
	if err != nil {
		return noSpace(err)
	}
	return l.append(tail, logs, need)
}

// writeHere appends entries for which the newest file has room.
func (l *Log) writeHere(logs []*raft.Log, need int64) (done bool, err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.broken != nil {
		return true, l.broken
	}
	tail := l.segments[len(l.segments)-1]
	if logs[0].Index != tail.last()+1 || tail.end+need > tail.size || l.empty() {
		return false, nil
	}
	return true, l.append(tail, logs, need)
}

// append writes entries to a file that has room for them; l.writing is held.
// Each says from which entry on the disk may not have what came before it: the
// disk may take them in any order.
func (l *Log) append(tail *segment, logs []*raft.Log, need int64) error {
	first := logs[0].Index
	if l.synced+1 < first {
		first = max(l.synced+1, tail.base)
	}
	records := make([]byte, 0, need)
	offsets := make([]int64, 0, len(logs))
	for _, log := range logs {
		offsets = append(offsets, tail.end+int64(len(records)))
		records = appendRecord(records, log, first)
	}
	if _, err := tail.file.WriteAt(records, tail.end); err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	tail.offsets = append(tail.offsets, offsets...)
	tail.end += int64(len(records))
	return nil
}

// Sync returns nil when all that was written before the call is on disk. Calls
// that come while it is under way share the next one.
func (l *Log) Sync() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.writing.Lock()
	err, tail := l.broken, l.segments[len(l.segments)-1]
	last := tail.last()
	done := l.synced >= last
	l.writing.Unlock()
	if err != nil || done {
		return err
	}
	err = l.sync(tail.file) // appends go on meanwhile
	l.writing.Lock()
	defer l.writing.Unlock()
	if err != nil {
		return l.fail(err)
	}
	l.synced = last
	return nil
}

// Synced returns the index of the last entry that is on disk, with all before.
func (l *Log) Synced() uint64 {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.synced
}

// settle has all that was written on disk, before files come or go; l.syncing
// and l.writing are held.
func (l *Log) settle() error {
	if l.broken != nil {
		return l.broken
	}
	tail := l.segments[len(l.segments)-1]
	if l.synced >= tail.last() {
		return nil
	}
	if err := l.sync(tail.file); err != nil {
		return l.fail(err)
	}
	l.synced = tail.last()
	return nil
}

// lengthOf returns how many bytes the records of entries take.
func lengthOf(logs []*raft.Log) (total int64, err error) {
	for i, log := range logs {
		if log.Index == 0 || log.Index != logs[0].Index+uint64(i) {
			return 0, fmt.Errorf("append log entry %d as number %d after %d", log.Index, i, logs[0].Index)
		}
		size, err := sizeOf(log)
		if err != nil {
			return 0, err
		}
		total += size
	}
	return total, nil
}

// tail returns the file that takes the next entries, from index on, which need
// some bytes; l.syncing and l.writing are held, and all is on disk.
func (l *Log) tail(index uint64, need int64) (*segment, error) {
	tail := l.segments[len(l.segments)-1]
	last := tail.last()
	switch empty := l.empty(); {
	case index <= last && !empty:
		return nil, fmt.Errorf("append log entry %d behind %d", index, last)
	case index != last+1: // behind a gap, or anywhere in an empty log
		return l.restart(index, need)
	case tail.end+need <= tail.size:
		return tail, nil
	}
	next, err := createSegment(l.dir, index, l.size, need, false)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if tail.base == index { // it was empty, and has another file in its place
		l.segments = l.segments[:len(l.segments)-1]
		err = tail.file.Close()
	}
	l.segments = append(l.segments, next)
	return next, l.failed(err)
}

// restart replaces all files by one that begins at an index, which makes them
// void before they are removed.
func (l *Log) restart(index uint64, need int64) (*segment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.segments
	if tail := old[len(old)-1]; index <= tail.base {
		return nil, fmt.Errorf("append log entry %d to a log that began at %d", index, tail.base)
	}
	next, err := createSegment(l.dir, index, l.size, need, true)
	if err != nil {
		return nil, err
	}
	l.segments, l.first, l.synced = []*segment{next}, 0, index-1
	return next, l.failed(removeAll(l.dir, old))
}

// empty says whether the log has no entry; l.writing is held.
func (l *Log) empty() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	first, last := l.boundsLocked()
	return first > last
}

// removeAll removes files, the oldest first: what is left has no gap.
func removeAll(dir string, segments []*segment) error {
	for _, s := range segments {
		if err := s.remove(); err != nil {
			return err
		}
	}
	return durable.SyncDir(dir)
}

// fail makes the log unusable until it is opened again.
func (l *Log) fail(err error) error {
	l.broken = fmt.Errorf("%w: %w", ErrBroken, err)
	return err
}

func (l *Log) failed(err error) error {
	if err != nil {
		return l.fail(err)
	}
	return nil
}

// DeleteRange implements raft.LogStore for ranges at either end of the log.
func (l *Log) DeleteRange(from, to uint64) error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.settle(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	first, last := l.boundsLocked()
	from, to = max(from, first), min(to, last)
	switch {
	case from > to:
		return nil
	case from == first:
		return l.deleteHeadLocked(to)
	case to == last:
		l.synced = from - 1
		return l.deleteTailLocked(from)
	}
	return fmt.Errorf("remove entries %d to %d from within %d to %d", from, to, first, last)
}

// deleteHeadLocked forgets the entries up to one. Files go when nothing in
// them is needed; the newest one stays. After the next start some of the
// entries may be there again, which does no harm.
func (l *Log) deleteHeadLocked(to uint64) error {
	if _, last := l.boundsLocked(); to == last { // then all goes, for good
		next, err := createSegment(l.dir, to+1, l.size, 0, true)
		if err != nil {
			return noSpace(err)
		}
		old := l.segments
		l.segments, l.first = []*segment{next}, 0
		return l.failed(removeAll(l.dir, old))
	}
	l.first = to + 1
	for len(l.segments) > 1 && l.segments[1].base <= l.first {
		old := l.segments[0]
		l.segments = l.segments[1:]
		if err := old.remove(); err != nil {
			return l.fail(err)
		}
	}
	return l.failed(durable.SyncDir(l.dir))
}

// deleteTailLocked removes the entries from one on, the newest first.
func (l *Log) deleteTailLocked(from uint64) error {
	for {
		s := l.segments[len(l.segments)-1]
		if s.base < from || len(l.segments) == 1 {
			break
		}
		if err := s.remove(); err != nil {
			return l.fail(err)
		}
		l.segments = l.segments[:len(l.segments)-1]
		if err := durable.SyncDir(l.dir); err != nil {
			return l.fail(err)
		}
	}
	s := l.segments[len(l.segments)-1]
	if from > s.last() {
		return nil
	}
	short, err := s.cut(l.dir, from)
	if err != nil {
		return l.fail(err)
	}
	l.segments[len(l.segments)-1] = short
	return l.failed(s.file.Close())
}

// Close closes the files.
func (l *Log) Close() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = fmt.Errorf("%w: %w", ErrBroken, os.ErrClosed)
	}
	var errs []error
	for _, s := range l.segments {
		if s.file != nil {
			errs = append(errs, s.file.Close())
		}
	}
	l.segments = []*segment{{base: 1}}
	return errors.Join(errs...)
}
