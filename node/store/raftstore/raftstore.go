// SPDX-License-Identifier: Apache-2.0

// Package raftstore is the store of a gateway: a raft log on disk in front of
// the in-memory state machine of store/kv.
//
// A change is acknowledged after its log entry was synced to disk and applied,
// so it survives the death of the process at any moment. See DESIGN.md for the
// files, the goroutines and what happens when a disk misbehaves.
package raftstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/kv"
)

// Errors of Open and of a store that broke.
var (
	// ErrDamaged says that files of the store are not what was written to
	// them. Nothing of them is served; restore the directory from a backup.
	ErrDamaged = errors.New("stored state is damaged")
	// ErrOtherNode says that the directory belongs to a node with another id.
	ErrOtherNode = errors.New("data directory of another node")
	// ErrInUse says that another process has the directory open.
	ErrInUse = errors.New("data directory is in use by another process")
	// ErrDisk says that a write to the log failed or did not finish. Nothing
	// is acknowledged any more; end the process, so that another replica or
	// the next start takes over.
	ErrDisk = errors.New("disk does not keep what is written")
)

const (
	// heartbeatTimeout and electionTimeout decide how fast another replica
	// takes over; leaseTimeout how fast a leader that is cut off steps down.
	heartbeatTimeout = time.Second
	electionTimeout  = time.Second
	leaseTimeout     = 500 * time.Millisecond
	commitTimeout    = 50 * time.Millisecond
	// trailingLogs are kept behind a snapshot, so that a replica that was
	// away for a while needs no snapshot, and a damaged one has a successor.
	trailingLogs             = 10_240
	defaultSnapshotThreshold = 8192
	defaultSnapshotInterval  = 30 * time.Second
	snapshotsKept            = 2
	// enqueueTimeout bounds the wait for the leader loop to take a proposal.
	enqueueTimeout = 10 * time.Second
	// closeTimeout bounds the wait for proposals on their way when closing;
	// more only helps a disk that hangs.
	closeTimeout = 5 * time.Second
)

// Config says how to open a Store.
type Config struct {
	// Dir holds the state; it is created with mode 0700. Empty keeps the
	// state in memory only.
	Dir string
	// ID names this replica: the node's id. Required, and the same at each
	// start with the same Dir.
	ID string
	// SnapshotThreshold is the number of log entries after which a snapshot
	// is taken; 0 is 8192.
	SnapshotThreshold uint64
	// SnapshotInterval is how often that is looked at; 0 is 30 s.
	SnapshotInterval time.Duration
	// Logger may be nil: discard logs.
	Logger *slog.Logger
	// Registerer may be nil: metrics are not registered.
	Registerer prometheus.Registerer
}

// Store is a store.Store replicated by raft. Today its cluster has one voter,
// itself. Open makes one.
type Store struct {
	id      string
	logger  *slog.Logger
	metrics *metrics
	state   *kv.State
	disk    *disk
	raft    *raft.Raft
	// standing is where this replica asks itself to stand for election.
	standing func() error
	// role is who leads now; only run stores it.
	role atomic.Pointer[role]
	// failure is set once, when the store can keep no promise any more.
	failure *failure

	closing   chan struct{} // closed first: no new proposals
	stop      chan struct{} // closed next: ends run
	stopped   chan struct{} // closed when run has ended
	closed    chan struct{} // closed last: nobody waits for raft any more
	closeOnce sync.Once
	closeErr  error
	mu        sync.Mutex // orders proposals.Add and the start of Close
	proposals sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// role is who leads, from one change of that to the next.
type role struct {
	// leader is the id of the leader; empty when there is none.
	leader string
	// ready is true when this replica leads and holds every change that any
	// leader before it acknowledged.
	ready bool
	// over is closed when another role begins.
	over chan struct{}
}

// Open opens the store and starts it. It does not wait for an election: Sync
// does. The caller closes the store.
func Open(cfg Config) (*Store, error) {
	var err error
	if cfg.ID == "" {
		return nil, errors.New("open store: no id")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := newStore(cfg)
	if s.metrics, err = newMetrics(cfg.Registerer, s); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if s.disk, err = openDisk(cfg.Dir, newRaftLogger(s.logger), s.metrics, s.failure); err != nil {
		return nil, fmt.Errorf("open store %q: %w", cfg.Dir, err)
	}
	if err := s.start(cfg); err != nil {
		return nil, fmt.Errorf("open store %q: %w", cfg.Dir, errors.Join(err, s.disk.close()))
	}
	return s, nil
}

// newStore returns a store without metrics, disk and raft.
func newStore(cfg Config) *Store {
	logger := cfg.Logger.With("component", "store")
	s := &Store{
		id:      cfg.ID,
		logger:  logger,
		state:   kv.New(),
		failure: newFailure(logger),
		closing: make(chan struct{}),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
		closed:  make(chan struct{}),
	}
	s.role.Store(&role{over: make(chan struct{})})
	return s
}

// Get implements store.Store.
func (s *Store) Get(_ context.Context, key string) (store.Entry, error) { return s.state.Get(key) }

// List implements store.Store.
func (s *Store) List(_ context.Context, prefix string) ([]store.Entry, uint64, error) {
	return s.state.List(prefix)
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return s.state.Watch(ctx, prefix, after)
}

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, batch store.Batch) (uint64, error) {
	if err := batch.Validate(); err != nil {
		return 0, err
	}
	if err := s.disk.room(); err != nil {
		return 0, err
	}
	start := time.Now()
	entry, err := encodeBatch(batch, start)
	if err != nil {
		return 0, err
	}
	version, err := s.propose(ctx, entry)
	s.metrics.applied(start, err)
	return version, err
}

// Sync implements store.Store.
func (s *Store) Sync(ctx context.Context) error {
	for {
		role := s.role.Load()
		if role.ready {
			// Every change acknowledged so far is in our state, unless
			// somebody else leads by now: the majority knows.
			err := s.await(ctx, func() error { return s.raft.VerifyLeader().Error() })
			if !errors.Is(err, store.ErrNotLeader) {
				return err
			}
		} else if role.leader != "" && role.leader != s.id {
			return &store.NotLeaderError{Leader: role.leader}
		}
		select {
		case <-role.over:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.failure.failed:
			return s.failure.err
		case <-s.closing:
			return store.ErrClosed
		}
	}
}

// Leader returns the id of the leader, empty when there is none, and whether
// this replica is it.
func (s *Store) Leader() (id string, self bool) {
	role := s.role.Load()
	return role.leader, role.leader == s.id
}

// Version returns the version of the last change that this replica holds.
func (s *Store) Version() uint64 { return s.state.Version() }

// Failed is closed when the store can keep no promise any more: the process
// should end. Err says why.
func (s *Store) Failed() <-chan struct{} { return s.failure.failed }

// Err returns why the store failed; nil until Failed is closed.
func (s *Store) Err() error {
	select {
	case <-s.failure.failed:
		return s.failure.err
	default:
		return nil
	}
}

// Close stops the store and frees its directory. Proposals on their way are
// finished first, unless the disk does not answer. It may be called again.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		close(s.closing)
		s.mu.Unlock()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			s.proposals.Wait()
			close(s.stop)
			<-s.stopped
		}()
		timer := time.NewTimer(closeTimeout)
		defer timer.Stop()
		select {
		case <-drained:
			err := s.raft.Shutdown().Error()
			s.closeErr = errors.Join(err, s.disk.close())
		case <-timer.C:
			s.raft.Shutdown() // it cannot be waited for, nor the files be closed under it
			s.closeErr = fmt.Errorf("close store: %w: a write did not finish", ErrDisk)
		}
		s.state.Close()
		close(s.closed)
	})
	return s.closeErr
}
