// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

const (
	// leaderless bounds how long a change waits for a leader.
	leaderless = 10 * time.Second
	// routePause is the pause before the same leader is asked again.
	routePause = 20 * time.Millisecond
)

// leaderStream is a stream of calls to a replica for as long as it leads.
type leaderStream struct {
	*callStream
	over <-chan struct{}
}

// notDone says whether an error means that nothing happened, so that the call
// may be made again elsewhere.
func notDone(err error) bool {
	return errors.Is(err, store.ErrNotLeader) || errors.Is(err, errNotSent)
}

// route makes a call where the leader is: here, or there, which is given a
// stream to it. It follows the leader around until the call was made, ctx
// ends, or there was none for leaderless (0: for ever). A call that may have
// happened is made again only if again says that this does no harm.
func (s *Store) route(ctx context.Context, limit time.Duration, again bool, here func(context.Context) error, there func(context.Context, leaderStream) error) error {
	var expired <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	for {
		role := s.role.Load()
		err := s.routeOnce(ctx, role, here, there)
		if err == nil || !notDone(err) && (!again || !errors.Is(err, store.ErrUncertain)) {
			return err
		}
		if ctx.Err() != nil {
			return noted(ctx.Err(), err)
		}
		var soon <-chan time.Time
		if role.leader != "" {
			soon = time.After(routePause)
		}
		select {
		case <-role.over:
		case <-soon:
		case <-expired:
			return err
		case <-ctx.Done():
			return noted(ctx.Err(), err)
		case <-s.failure.failed:
			return s.failure.err
		case <-s.closing:
			return store.ErrClosed
		}
	}
}

// noted adds to the end of a wait what was waited for, as text only: nothing
// was done, whatever the last attempt said.
func noted(err, last error) error {
	if last == nil || errors.Is(last, err) {
		return err
	}
	return fmt.Errorf("%w (%v)", err, last)
}

func (s *Store) routeOnce(ctx context.Context, role *role, here func(context.Context) error, there func(context.Context, leaderStream) error) error {
	switch {
	case role.leader == s.id:
		return here(ctx)
	case role.leader == "":
		return &store.NotLeaderError{}
	}
	if err := s.usable(); err != nil {
		return err
	}
	stream, err := s.calls.to(ctx, role.leader, role.address)
	if err == nil {
		err = there(ctx, leaderStream{stream, role.over})
	}
	s.metrics.forwarded(err)
	return err
}

// usable returns why the store takes no calls any more.
func (s *Store) usable() error {
	select {
	case <-s.closing:
		return store.ErrClosed
	case <-s.failure.failed:
		return s.failure.err
	default:
		return nil
	}
}

// send makes a call on a stream. When it may have happened and nobody knows,
// the error wraps store.ErrUncertain.
func send(ctx context.Context, stream leaderStream, req *pb.ReplicaRequest) (*pb.ReplicaResponse, error) {
	resp, err := stream.call(ctx, stream.over, req)
	switch {
	case errors.Is(err, errNotSent):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", err, store.ErrUncertain)
	}
	return resp, errorOf(resp.GetStatus())
}

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, batch store.Batch) (uint64, error) {
	if err := batch.Validate(); err != nil {
		return 0, err
	}
	start := time.Now()
	version, err := s.apply(ctx, batch)
	s.metrics.applied(start, err)
	return version, err
}

func (s *Store) apply(ctx context.Context, batch store.Batch) (version uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	err = s.route(ctx, leaderless, false, func(ctx context.Context) error {
		version, err = s.applyHere(ctx, batch)
		return err
	}, func(ctx context.Context, stream leaderStream) error {
		version, err = s.applyThere(ctx, stream, batch)
		return err
	})
	return version, err
}

// applyHere applies a batch if this replica leads.
func (s *Store) applyHere(ctx context.Context, batch store.Batch) (uint64, error) {
	if err := batch.Validate(); err != nil { // it may come from another replica
		return 0, err
	}
	err := s.room()
	s.tellRoom(err)
	if err != nil {
		s.makeRoom()
		return 0, err
	}
	entry, err := encodeBatch(batch, time.Now())
	if err != nil {
		return 0, err
	}
	return s.propose(ctx, entry)
}

// applyThere has the leader apply a batch and waits until this replica shows
// what came of it. One that could not show it asks for nothing.
func (s *Store) applyThere(ctx context.Context, stream leaderStream, batch store.Batch) (uint64, error) {
	if _, err := s.stuck(); err != nil {
		return 0, err
	}
	resp, err := send(ctx, stream, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Apply{Apply: store.BatchToProto(batch)}})
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return 0, fmt.Errorf("apply: %w", err)
	}
	if err := s.awaitVersion(ctx, resp.GetVersion()); err != nil {
		if errors.Is(err, store.ErrFull) { // which says that nothing was changed
			return 0, fmt.Errorf("apply: %w (%v)", store.ErrUncertain, err)
		}
		return 0, fmt.Errorf("apply: %w: %w", err, store.ErrUncertain)
	}
	return resp.GetVersion(), err
}

// awaitVersion waits until this replica holds a version. It does not wait for
// space on its disk: the error wraps store.ErrFull while there is none.
func (s *Store) awaitVersion(ctx context.Context, version uint64) error {
	if s.state.Version() >= version {
		return nil
	}
	reached, stop := s.state.Reached(version)
	defer stop()
	for {
		moved, full := s.stuck()
		if full != nil {
			return full
		}
		select {
		case <-reached:
			return s.state.Err()
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.failure.failed:
			return s.failure.err
		case <-s.closing:
			return store.ErrClosed
		}
	}
}

// stuck returns an error that wraps store.ErrFull while this replica falls behind
// because its disk takes no more of the log and has no space, and a channel that is
// closed when that may have changed. Who leads, and who else has space, is of more
// use to callers then.
func (s *Store) stuck() (moved <-chan struct{}, err error) {
	if s.disk.guard == nil {
		return nil, nil // it is all in memory
	}
	moved, refused := s.disk.guard.noRoom()
	if refused == nil {
		return moved, nil
	}
	full := s.room()
	if !errors.Is(full, store.ErrFull) {
		return moved, nil // there is space again, or it is not known to be gone
	}
	return moved, fmt.Errorf("%w; it falls behind until there is room: make some, or ask another gateway, such as %q, which leads", full, s.role.Load().leader)
}

// Sync implements store.Store.
func (s *Store) Sync(ctx context.Context) error {
	return s.route(ctx, 0, true, func(ctx context.Context) error {
		_, err := s.readHere(ctx)
		return err
	}, func(ctx context.Context, stream leaderStream) error {
		resp, err := send(ctx, stream, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Read{Read: &pb.ReplicaRead{}}})
		if err != nil {
			return err
		}
		return s.awaitVersion(ctx, resp.GetVersion())
	})
}
