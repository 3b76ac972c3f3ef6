// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
)

const (
	// expiryPause is the least time between two removals of expired keys: it
	// gathers keys that end close together in one log entry.
	expiryPause = 20 * time.Millisecond
	// expiryRetry is the pause after a removal that could not be proposed.
	expiryRetry = time.Second
)

// run follows raft's leadership until stop is closed: it keeps the role up to
// date and, while leading, removes keys whose time to live has passed.
func (s *Store) run() {
	leaders := make(chan raft.Observation, 1)
	observer := raft.NewObserver(leaders, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	s.raft.RegisterObserver(observer)
	defer s.raft.DeregisterObserver(observer)
	if _, id := s.raft.LeaderWithID(); id != "" && s.raft.State() != raft.Leader {
		s.changeRole(false) // its first message came before the observer
	}
	// A lone voter has nobody to wait for: it stands for election at once
	// instead of listening for a leader's heartbeat first.
	if s.alone() {
		if err := s.standForElection(); err != nil {
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
	voters := votersOf(s.servers())
	return len(voters) == 1 && string(voters[0].ID) == s.id
}

func (s *Store) changeRole(leading bool) {
	next := &role{over: make(chan struct{})}
	if leading {
		// The barrier is applied after everything that earlier leaders
		// acknowledged: from here on our state answers for the cluster.
		term := s.raft.CurrentTerm()
		err := s.unlessStopped(s.raft.Barrier(enqueueTimeout).Error)
		if err != nil || s.raft.State() != raft.Leader || s.raft.CurrentTerm() != term {
			s.logger.Warn("leadership lost at once", "err", err)
			leading = false
		} else {
			next.leader, next.address, next.ready, next.term = s.id, s.address, true, term
		}
	}
	if !leading {
		address, id := s.raft.LeaderWithID()
		if string(id) != s.id { // its own time comes with the barrier
			next.leader, next.address = string(id), string(address)
		}
	}
	next.since = time.Now() // what came before may have taken its time
	old := s.role.Swap(next)
	close(old.over)
	if old.leader != next.leader {
		s.metrics.leaderChanges.Inc()
		s.members.notify()
		s.logger.Info("leader changed", "node", s.id, "leader", next.leader, "version", s.state.Version())
	}
}

// unlessStopped waits for a call of raft, but not longer than the store is
// open: without a majority the call ends when raft does, which comes later.
func (s *Store) unlessStopped(call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-s.stop:
		return store.ErrClosed
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
		err = s.unlessStopped(s.raft.Apply(entry, enqueueTimeout).Error)
	}
	if err != nil {
		s.logger.Warn("remove expired keys", "err", err)
		return expiryRetry
	}
	return expiryPause
}
