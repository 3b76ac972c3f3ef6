// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
)

// rounds gathers the questions whether this replica still leads: those that
// come while a majority is being asked share the next round. The zero value
// is ready.
type rounds struct {
	mu      sync.Mutex // guards the fields below
	next    *round     // what new questions join; nil: none asked yet
	running bool
}

// round is one question to the majority.
type round struct {
	done chan struct{}
	err  error // written before done is closed
}

// join returns a round that begins after the call, and whether the caller has
// to start a goroutine that runs rounds until there are no more.
func (r *rounds) join() (_ *round, start bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
	}
	start = !r.running
	r.running = true
	return r.next, start
}

// begin returns the next round to run; nil when there is none.
func (r *rounds) begin() *round {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.next
	r.next = nil
	r.running = next != nil
	return next
}

// readHere returns a version of the state that holds every change which was
// acknowledged to anyone before the call, if this replica leads.
func (s *Store) readHere(ctx context.Context) (uint64, error) {
	role := s.role.Load()
	if !role.ready {
		return 0, &store.NotLeaderError{Leader: role.leader}
	}
	version := s.state.Version()
	err := s.await(ctx, func() error {
		round, start := s.rounds.join()
		if start {
			s.runRounds()
		}
		<-round.done
		return round.err
	})
	if err == nil && s.role.Load() != role {
		err = &store.NotLeaderError{}
	}
	return version, err
}

// runRounds runs rounds on a goroutine until nobody asks any more. Its caller
// holds s.proposals.
func (s *Store) runRounds() {
	s.proposals.Go(func() {
		for round := s.rounds.begin(); round != nil; round = s.rounds.begin() {
			round.err = s.confirm(s.role.Load())
			close(round.done)
		}
	})
}

// confirm returns nil once a majority of the voters, each in answer to a
// message sent after the call, has accepted that this replica leads in the
// term of the role. (raft's VerifyLeader takes the word of observers as well.)
func (s *Store) confirm(role *role) error {
	if !role.ready {
		return raft.ErrNotLeader
	}
	start := s.transport.now()
	voters := votersOf(s.servers())
	if len(voters) > 1 {
		s.raft.VerifyLeader() // sends heartbeats at once; the answers are counted here
	}
	for {
		heard, moved := s.transport.since(role.term, start)
		agree := 0
		for _, v := range voters {
			if heard[v.ID] || string(v.ID) == s.id {
				agree++
			}
		}
		if s.raft.State() != raft.Leader || s.raft.CurrentTerm() != role.term {
			return raft.ErrNotLeader
		}
		if agree > len(voters)/2 {
			return nil
		}
		select {
		case <-moved:
		case <-role.over:
			return raft.ErrNotLeader
		case <-s.failure.failed:
			return s.failure.err
		}
	}
}
