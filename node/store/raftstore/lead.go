// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// expiryPause is the least time between two removals of expired keys: it
	// gathers keys that end close together in one log entry.
	expiryPause = 20 * time.Millisecond
	// expiryRetry is the pause after a removal that could not be proposed.
	expiryRetry = time.Second
)

func raftConfig(cfg Config, logger hclog.Logger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(cfg.ID)
	c.Logger = logger
	c.HeartbeatTimeout = heartbeatTimeout
	c.ElectionTimeout = electionTimeout
	c.LeaderLeaseTimeout = leaseTimeout
	c.CommitTimeout = commitTimeout
	c.TrailingLogs = trailingLogs
	c.SnapshotThreshold = cfg.SnapshotThreshold
	c.SnapshotInterval = cfg.SnapshotInterval
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = defaultSnapshotThreshold
	}
	if c.SnapshotInterval == 0 {
		c.SnapshotInterval = defaultSnapshotInterval
	}
	c.NoLegacyTelemetry = true
	return c
}

// start starts raft on the disk, as the only voter if the disk is new.
func (s *Store) start(config Config) error {
	cfg, addr := raftConfig(config, newRaftLogger(s.logger)), raft.ServerAddress(s.id)
	_, transport := raft.NewInmemTransport(addr)
	if err := s.disk.bootstrap(cfg, transport, addr); err != nil {
		return err
	}
	var err error
	if s.raft, err = raft.NewRaft(cfg, &fsm{s.state, s.failure}, s.disk.cache, s.disk.stable, s.disk.snapshots, transport); err != nil {
		return err
	}
	if err := s.checkStart(); err != nil {
		return errors.Join(err, s.raft.Shutdown().Error())
	}
	s.standing = func() error {
		transport.Connect(addr, transport)
		return transport.TimeoutNow(cfg.LocalID, addr, &raft.TimeoutNowRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: cfg.ProtocolVersion},
		}, &raft.TimeoutNowResponse{})
	}
	go s.run()
	return nil
}

// checkStart finds what raft itself would live with.
func (s *Store) checkStart() error {
	if err := s.Err(); err != nil { // a snapshot of the state was refused
		return err
	}
	future := s.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return err
	}
	servers := future.Configuration().Servers
	if slices.ContainsFunc(servers, func(r raft.Server) bool { return string(r.ID) == s.id && r.Suffrage == raft.Voter }) {
		return nil
	}
	var ids []raft.ServerID
	for _, r := range servers {
		ids = append(ids, r.ID)
	}
	return fmt.Errorf("%w: the voters are %q, not %q", ErrOtherNode, ids, s.id)
}

// run follows raft's leadership until stop is closed: it keeps the role up to
// date and, while leading, removes keys whose time to live has passed.
func (s *Store) run() {
	defer close(s.stopped)
	leaders := make(chan raft.Observation, 1)
	observer := raft.NewObserver(leaders, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	s.raft.RegisterObserver(observer)
	defer s.raft.DeregisterObserver(observer)
	// A lone voter has nobody to wait for: it stands for election at once
	// instead of listening for a leader's heartbeat first.
	if s.alone() {
		if err := s.standing(); err != nil {
			s.logger.Debug("stand for election", "err", err)
		}
	}
	var earliest time.Time // when the next removal may be proposed
	for {
		moved, expired := s.nextExpiry(earliest)
		select {
		case <-s.stop:
			return
		case leading := <-s.raft.LeaderCh():
			s.changeRole(leading)
		case <-leaders:
			if s.raft.State() != raft.Leader {
				s.changeRole(false)
			}
		case <-moved:
		case <-expired:
			earliest = time.Now().Add(s.expire())
		}
	}
}

// alone says whether this replica is the only voter.
func (s *Store) alone() bool {
	future := s.raft.GetConfiguration()
	if future.Error() != nil {
		return false
	}
	voters := 0
	for _, server := range future.Configuration().Servers {
		if server.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters == 1
}

func (s *Store) changeRole(leading bool) {
	next := &role{over: make(chan struct{})}
	if leading {
		// The barrier is applied after everything that earlier leaders
		// acknowledged: from here on our state answers for the cluster.
		if err := s.raft.Barrier(enqueueTimeout).Error(); err != nil {
			s.logger.Warn("leadership lost at once", "err", err)
			leading = false
		} else {
			next.leader, next.ready = s.id, true
		}
	}
	if !leading {
		_, id := s.raft.LeaderWithID()
		next.leader = string(id)
	}
	old := s.role.Swap(next)
	close(old.over)
	if old.leader != next.leader {
		s.logger.Info("leader changed", "node", s.id, "leader", next.leader, "version", s.state.Version())
	}
}

// nextExpiry returns a channel that fires when there are keys to be removed,
// not before earliest, and one that is closed when that may have moved. Both
// are nil on a replica that does not lead.
func (s *Store) nextExpiry(earliest time.Time) (moved <-chan struct{}, expired <-chan time.Time) {
	if !s.role.Load().ready {
		return nil, nil
	}
	at, moved := s.state.NextExpiry()
	if at.IsZero() {
		return moved, nil
	}
	if at.Before(earliest) {
		at = earliest
	}
	return moved, time.After(max(time.Until(at), 0))
}

// expire proposes the removal of what has expired and returns the pause
// before the next one.
func (s *Store) expire() time.Duration {
	entry, err := encodeExpire(time.Now())
	if err == nil {
		err = s.raft.Apply(entry, enqueueTimeout).Error()
	}
	if err != nil {
		s.logger.Warn("remove expired keys", "err", err)
		return expiryRetry
	}
	return expiryPause
}
