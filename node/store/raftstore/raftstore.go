// SPDX-License-Identifier: Apache-2.0

// Package raftstore is the store of a gateway: a raft log on disk in front of
// the in-memory state machine of store/kv, replicated to other gateways.
//
// A change is acknowledged after a majority of the voters synced its log entry
// to disk and this replica applied it, so it survives the death of any minority
// and of all processes at any moment. Every method works on every replica: what
// only the leader can decide is forwarded to it. See DESIGN.md for the files,
// the goroutines and what happens when a disk or a network misbehaves.
package raftstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/durable"
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
	ErrInUse = durable.ErrInUse
	// ErrDisk says that a write to the log failed or did not finish. Nothing
	// is acknowledged any more; end the process, so that another replica or
	// the next start takes over.
	ErrDisk = errors.New("disk does not keep what is written")
	// ErrRemoved says that this replica was taken out of its cluster. Reads
	// show what it had by then. To come back it has to join again, without
	// the state that it has.
	ErrRemoved = errors.New("this gateway was removed from its cluster")
)

// Errors of changes to the cluster, and of replicas that do not belong to it.
var (
	// ErrNotMember says that a replica does not belong to the cluster.
	ErrNotMember = errors.New("not a replica of the cluster")
	// ErrOtherCluster says that two replicas belong to different clusters.
	ErrOtherCluster = errors.New("replica of another cluster")
	// ErrUnsafe says that a change was refused because what remained of the
	// cluster might have no quorum.
	ErrUnsafe = errors.New("change could cost the quorum")
)

const (
	// defaultElectionTimeout decides how fast another replica takes over. The
	// follower that stands first needs the vote of another one, who must have
	// missed the leader as well: that takes twice this time or a little more.
	// Heartbeats come every tenth of it and one round trip apart, so it suits
	// round trips of up to 200 ms.
	defaultElectionTimeout = 500 * time.Millisecond
	// commitTimeout is how often a follower hears of the log while nothing is
	// written. It learns of commits sooner, from the transport.
	commitTimeout = 50 * time.Millisecond
	// defaultTrailingLogs are kept behind a snapshot, so that a replica that was
	// away for a while needs no snapshot, and a damaged one has a successor.
	defaultTrailingLogs      = 10_240
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
	// Network reaches the other replicas; nil for a replica that will always
	// be alone. Close closes it; when Open fails it stays open.
	Network Network
	// Address is where other replicas dial this one, as "host:port". Required
	// with a Network. At each start it may be another one: the leader is told.
	Address string
	// Join makes a replica with a new directory wait until a leader adds it,
	// instead of making a cluster of its own. Until then it belongs to whoever
	// comes first, so the Network must let in only nodes that are trusted.
	Join bool
	// ElectionTimeout is how long a follower hears nothing before it takes the
	// leader for dead; the same on all replicas. 0 is 500 ms. It should be
	// more than twice the round trip between the farthest replicas.
	ElectionTimeout time.Duration
	// DeadAfter is how long a replica may be out of reach before the leader
	// removes it, as far as DESIGN.md says that this is safe; 0 is for ever.
	DeadAfter time.Duration
	// SnapshotThreshold is the number of log entries after which a snapshot
	// is taken; 0 is 8192.
	SnapshotThreshold uint64
	// TrailingLogs is how many log entries stay behind a snapshot; 0 is 10240.
	TrailingLogs uint64
	// SnapshotInterval is how often that is looked at; 0 is 30 s.
	SnapshotInterval time.Duration
	// Logger may be nil: discard logs.
	Logger *slog.Logger
	// Registerer may be nil: metrics are not registered.
	Registerer prometheus.Registerer
}

// Store is a store.Store replicated by raft. Open makes one.
type Store struct {
	id        string
	address   string
	election  time.Duration
	deadAfter time.Duration
	logger    *slog.Logger
	metrics   *metrics
	state     *kv.State
	disk      *disk
	identity  *identity
	streams   *streams
	transport *transport
	calls     *caller
	raft      *raft.Raft
	// role is who leads now; only run stores it.
	role atomic.Pointer[role]
	// rounds gathers questions whether this replica still leads.
	rounds rounds
	// changing holds one token while this replica changes the cluster.
	changing chan struct{}
	members  *members
	// full is true while changes are refused because the disk is full.
	full atomic.Bool
	// roomSought is when a full disk last made this replica look for a leader
	// with more room.
	roomSought atomic.Pointer[time.Time]
	// failure is set once, when the store can keep no promise any more.
	failure *failure

	started   chan struct{} // closed when raft runs
	closing   chan struct{} // closed first: no new proposals
	stop      chan struct{} // closed next: ends run and its like
	stopped   chan struct{} // closed when they have ended
	closed    chan struct{} // closed last: nobody waits for raft any more
	closeOnce sync.Once
	closeErr  error
	mu        sync.Mutex // orders proposals.Add and the start of Close
	proposals sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// role is who leads, from one change of that to the next.
type role struct {
	// leader is the id of the leader, and address where it is dialled; empty
	// when there is none.
	leader, address string
	// ready is true when this replica leads and holds every change that any
	// leader before it acknowledged; term is the term in which it does.
	ready bool
	term  uint64
	// since is when it began.
	since time.Time
	// over is closed when another role begins.
	over chan struct{}
}

// Open opens the store and starts it. It does not wait for an election: Sync
// does. The caller closes the store.
func Open(cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	var err error
	s := newStore(cfg)
	defer tellSlow(s.logger, cfg.Dir)()
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

// validate also replaces zero values by what they stand for.
func (c *Config) validate() error {
	switch {
	case c.ID == "":
		return errors.New("no id")
	case strings.ContainsRune(c.ID, 0) || strings.ContainsRune(c.Address, 0):
		return errors.New("id or address has a NUL byte")
	case c.Network != nil && c.Address == "":
		return errors.New("a network, but no address at which others dial this replica")
	case c.Network == nil && c.Join:
		return errors.New("a replica without a network cannot join a cluster")
	case c.DeadAfter < 0 || c.ElectionTimeout < 0:
		return errors.New("a time is negative")
	}
	if c.Address == "" {
		c.Address = c.ID
	}
	if c.ElectionTimeout == 0 {
		c.ElectionTimeout = defaultElectionTimeout
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = defaultSnapshotThreshold
	}
	if c.TrailingLogs == 0 {
		c.TrailingLogs = defaultTrailingLogs
	}
	if c.SnapshotInterval == 0 {
		c.SnapshotInterval = defaultSnapshotInterval
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// newStore returns a store without metrics, disk and raft.
func newStore(cfg Config) *Store {
	logger := cfg.Logger.With("component", "store")
	s := &Store{
		id:        cfg.ID,
		address:   cfg.Address,
		election:  cfg.ElectionTimeout,
		deadAfter: cfg.DeadAfter,
		logger:    logger,
		state:     kv.New(),
		changing:  make(chan struct{}, 1),
		members:   newMembers(),
		failure:   newFailure(logger),
		started:   make(chan struct{}),
		closing:   make(chan struct{}),
		stop:      make(chan struct{}),
		stopped:   make(chan struct{}),
		closed:    make(chan struct{}),
	}
	s.role.Store(&role{since: time.Now(), over: make(chan struct{})})
	return s
}

// Get implements store.Store.
func (s *Store) Get(_ context.Context, key string) (store.Entry, error) { return s.state.Get(key) }

// List implements store.Store.
func (s *Store) List(_ context.Context, prefix string) ([]store.Entry, uint64, error) {
	return s.state.List(prefix)
}

// Page implements store.Store.
func (s *Store) Page(_ context.Context, prefix, after string, limit int) ([]store.Entry, uint64, error) {
	return s.state.Page(prefix, after, limit)
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[store.Change, error] {
	return s.state.Watch(ctx, prefix, after)
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
