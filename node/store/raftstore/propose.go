// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
)

// outcome is what the state machine answers to a log entry.
type outcome struct {
	version uint64
	err     error
}

// propose appends an entry to the log and returns its outcome.
func (s *Store) propose(ctx context.Context, entry []byte) (uint64, error) {
	var result outcome
	err := s.await(ctx, func() error {
		future := s.raft.Apply(entry, enqueueTimeout)
		if err := future.Error(); err != nil {
			return err
		}
		result = future.Response().(outcome)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("apply: %w", err)
	}
	return result.version, result.err
}

// announce has the followers hear that an entry was committed, if this replica
// proposed it: it did when it leads in the term of the entry.
func (s *Store) announce(term, index uint64) {
	if s.leads() && s.raft.CurrentTerm() == term { // in this order: terms only grow
		s.transport.committed(term, index)
	}
}

// await runs a call of raft and waits for it or for ctx. A call that outlives
// its ctx is left to end by itself, and its outcome is uncertain.
func (s *Store) await(ctx context.Context, call func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	select {
	case <-s.closing:
		s.mu.Unlock()
		return store.ErrClosed
	case <-s.failure.failed:
		s.mu.Unlock()
		return s.failure.err
	default:
	}
	s.proposals.Add(1)
	s.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		defer s.proposals.Done()
		done <- call()
	}()
	select {
	case err := <-done:
		return s.translate(err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ctx.Err(), store.ErrUncertain)
	case <-s.failure.failed:
		return fmt.Errorf("%w: %w", s.failure.err, store.ErrUncertain)
	case <-s.closed:
		return fmt.Errorf("%w: %w", store.ErrClosed, store.ErrUncertain)
	}
}

// translate turns the errors of raft into those of the store contract.
func (s *Store) translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		leader, self := s.Leader()
		if self {
			leader = ""
		}
		return &store.NotLeaderError{Leader: leader}
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", store.ErrClosed, store.ErrUncertain)
	case errors.Is(err, store.ErrFull) && !errors.Is(err, ErrDisk):
		return fmt.Errorf("replica %q: %w", s.id, err) // the log refused it before anything was written or sent
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("leader is overloaded: %w", err) // nothing was appended
	default: // leadership lost, log write failed
		return fmt.Errorf("%w: %w", err, store.ErrUncertain)
	}
}
