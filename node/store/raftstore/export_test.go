// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// Snapshot makes raft take a snapshot now.
func (s *Store) Snapshot() error { return s.raft.Snapshot().Error() }

// LastIndex is that of the last entry in the log.
func (s *Store) LastIndex() uint64 { return s.raft.LastIndex() }

// Requests is how many messages with entries, commits or heartbeats this replica
// sent.
func (s *Store) Requests() uint64 { return s.transport.order.Load() }

// Await waits until this replica shows a version, and asks nobody for it.
func (s *Store) Await(ctx context.Context, version uint64) error { return s.awaitVersion(ctx, version) }

// NoticeDelay is how long a commit may wait for the next entries.
const NoticeDelay = noticeDelay

// TellRemoved tells another replica that it was removed, as of an index.
func (s *Store) TellRemoved(ctx context.Context, id, address string, index uint64) error {
	_, err := s.streams.ask(ctx, id, address, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Removed{Removed: &pb.ReplicaRemoved{Index: index}}})
	return err
}

// Reserve is the free space below which changes are refused.
const Reserve = reserve

// FaultyLog is a log whose writes fail or hang on demand.
type FaultyLog struct {
	raft.LogStore
	fails     atomic.Pointer[error]
	failsSync atomic.Pointer[error]
	hangs     atomic.Pointer[chan struct{}]
	stuck     atomic.Pointer[chan struct{}]
	free      atomic.Pointer[func(dir string) (uint64, error)]

	mu     sync.Mutex // guards the fields below
	synced uint64
	lag    func() time.Duration
}

// SetFree replaces the question for free space.
func (f *FaultyLog) SetFree(free func(dir string) (uint64, error)) { f.free.Store(&free) }

// StoreLogs implements raft.LogStore.
func (f *FaultyLog) StoreLogs(logs []*raft.Log) error {
	f.hang()
	if err := f.Write(logs); err != nil {
		return err
	}
	return f.sync()
}

// Write implements syncedLog.
func (f *FaultyLog) Write(logs []*raft.Log) error {
	if release := f.stuck.Load(); release != nil {
		<-*release
	}
	if err := f.fails.Load(); err != nil && *err != nil {
		return *err
	}
	if log, ok := f.LogStore.(syncedLog); ok {
		return log.Write(logs)
	}
	return f.LogStore.StoreLogs(logs)
}

// Sync implements syncedLog.
func (f *FaultyLog) Sync() error {
	f.hang()
	return f.sync()
}

func (f *FaultyLog) sync() error {
	if err := f.failsSync.Load(); err != nil {
		return *err
	}
	last, err := f.LastIndex()
	if err != nil {
		return err
	}
	if log, ok := f.LogStore.(syncedLog); ok {
		if err := log.Sync(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.synced = max(f.synced, last)
	return nil
}

func (f *FaultyLog) hang() {
	if release := f.hangs.Load(); release != nil {
		<-*release
	}
	f.mu.Lock()
	lag := f.lag
	f.mu.Unlock()
	if lag != nil {
		<-time.After(lag())
	}
}

// Slow makes syncs take as long as lag says.
func (f *FaultyLog) Slow(lag func() time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lag = lag
}

// Synced implements syncedLog: what both the log and the syncs let through have.
func (f *FaultyLog) Synced() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if log, ok := f.LogStore.(syncedLog); ok {
		return min(f.synced, log.Synced())
	}
	return f.synced
}

// DeleteRange implements raft.LogStore.
func (f *FaultyLog) DeleteRange(from, to uint64) error {
	err := f.LogStore.DeleteRange(from, to)
	f.mu.Lock()
	defer f.mu.Unlock()
	if from <= f.synced && to >= f.synced && from > 0 {
		f.synced = from - 1
	}
	return err
}

// FailSync makes syncs fail.
func (f *FaultyLog) FailSync(err error) { f.failsSync.Store(&err) }

// Fail makes writes fail; nil ends it.
func (f *FaultyLog) Fail(err error) { f.fails.Store(&err) }

// Hang makes syncs hang until release is called.
func (f *FaultyLog) Hang() (release func()) {
	c := make(chan struct{})
	f.hangs.Store(&c)
	return func() { close(c) }
}

// HangWrite makes writes hang before anything is written, as on a file system
// that takes none, until release is called.
func (f *FaultyLog) HangWrite() (release func()) {
	c := make(chan struct{})
	f.stuck.Store(&c)
	return func() { close(c) }
}

// OpenFaulty opens a store on a disk whose log can be broken.
func OpenFaulty(cfg Config) (*Store, *FaultyLog, error) {
	if err := cfg.validate(); err != nil {
		return nil, nil, err
	}
	s := newStore(cfg)
	var err error
	if s.metrics, err = newMetrics(cfg.Registerer, s); err != nil {
		return nil, nil, err
	}
	if s.disk, err = openDisk(cfg.Dir, newRaftLogger(s.logger), s.metrics, s.failure); err != nil {
		return nil, nil, err
	}
	faulty := &FaultyLog{LogStore: s.disk.logs}
	if faulty.synced, err = s.disk.logs.LastIndex(); err != nil {
		return nil, nil, err
	}
	if s.disk.guard != nil {
		faulty.LogStore = s.disk.guard.syncedLog
	} else {
		s.disk.guard = newGuardedLog(faulty, s.metrics, s.failure)
		s.disk.files = append(s.disk.files, s.disk.guard)
	}
	if real := s.disk.free; real != nil {
		s.disk.free = func(dir string) (uint64, error) {
			if free := faulty.free.Load(); free != nil {
				return (*free)(dir)
			}
			return real(dir)
		}
	}
	s.disk.guard.syncedLog = faulty
	s.disk.logs, s.disk.cache = s.disk.guard, s.disk.guard
	return s, faulty, s.start(cfg)
}
