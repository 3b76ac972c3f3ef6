// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Snapshot makes raft take a snapshot now.
func (s *Store) Snapshot() error { return s.raft.Snapshot().Error() }

// SetFree replaces the question for free space.
func (s *Store) SetFree(free func(dir string) (uint64, error)) { s.disk.free = free }

// Reserve is the free space below which changes are refused.
const Reserve = reserve

// FaultyLog is a log store whose writes fail or hang on demand.
type FaultyLog struct {
	raft.LogStore
	fails atomic.Pointer[error]
	hangs atomic.Pointer[chan struct{}]
}

// StoreLogs implements raft.LogStore.
func (f *FaultyLog) StoreLogs(logs []*raft.Log) error {
	if release := f.hangs.Load(); release != nil {
		<-*release
	}
	if err := f.fails.Load(); err != nil && *err != nil {
		return *err
	}
	return f.LogStore.StoreLogs(logs)
}

// Fail makes writes fail; nil ends it.
func (f *FaultyLog) Fail(err error) { f.fails.Store(&err) }

// Hang makes writes hang until release is called.
func (f *FaultyLog) Hang() (release func()) {
	c := make(chan struct{})
	f.hangs.Store(&c)
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
	if guarded, ok := s.disk.logs.(*guardedLog); ok {
		faulty.LogStore = guarded.LogStore
	}
	s.disk.logs = &guardedLog{LogStore: faulty, metrics: s.metrics, failure: s.failure}
	s.disk.cache = s.disk.logs
	return s, faulty, s.start(cfg)
}
