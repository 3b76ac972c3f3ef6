// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// orphanElections is how many election timeouts a replica without a seat waits
// for a leader before it takes itself for removed. A leader that counts on it is
// heard from within one.
const orphanElections = 10

// remove takes a replica out and tells it: what comes next may be that nobody
// lets it in to ask. One that does not hear of it finds out by itself, later; so
// does one that asked for it, which would end before it has the answer.
func (s *Store) remove(ctx context.Context, c change, peer string) error {
	server, found := find(s.servers(), c.id)
	there := found && c.id != peer && s.inReach(c.id)
	if err := s.takeVote(ctx, c); err != nil || !there {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := s.streams.ask(ctx, string(server.ID), string(server.Address), &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Removed{
		Removed: &pb.ReplicaRemoved{Index: s.raft.LastIndex()},
	}})
	if err != nil { // it may have ended before its answer was sent
		s.logger.Debug("tell a replica that it was removed", "replica", c.id, "err", err)
	}
	return nil
}

// dismissed takes the word of the leader that this replica was removed.
func (s *Store) dismissed(r *pb.ReplicaRemoved, leader string) error {
	_, member := find(s.servers(), s.id)
	switch {
	case s.identity.cluster() == nil:
		return fmt.Errorf("%w: replica %q was not admitted to a cluster yet", ErrNotMember, s.id)
	case member && s.raft.LastIndex() >= r.GetIndex():
		return fmt.Errorf("%w: replica %q was added again since", store.ErrInvalid, s.id)
	}
	s.failure.fail(fmt.Errorf("%w: gateway %q, which leads it, says so", ErrRemoved, leader))
	return nil
}

// orphaned ends a replica whose last configuration does not hold it, and which
// no leader wants to hear of it: it was removed, and whoever removed it forgot
// its key as well. The removal may never have been committed, so nothing is
// lost by this: a leader that counts on the replica finds it at its next start.
//
// A replica that was never a member goes on waiting: its leader went away in the
// middle of letting it in.
func (s *Store) orphaned(servers []raft.Server) {
	if _, member := find(servers, s.id); member || s.Err() != nil || s.role.Load().leader != "" {
		return
	}
	was, err := s.disk.seated(raft.ServerID(s.id))
	switch {
	case err != nil:
		s.logger.Warn("look for an earlier seat in the cluster", "err", err)
	case was:
		s.failure.fail(fmt.Errorf("%w: its members are %q now, and none of them leads this one (if it was to stay, start it again when they are in reach)", ErrRemoved, ids(servers)))
	}
}

// seated says whether a configuration that the disk has holds a replica.
func (d *disk) seated(id raft.ServerID) (bool, error) {
	snapshots, err := d.snapshots.List()
	if err != nil {
		return false, err
	}
	for _, meta := range snapshots {
		if _, ok := find(meta.Configuration.Servers, string(id)); ok {
			return true, nil
		}
	}
	first, err := d.logs.FirstIndex()
	if err != nil {
		return false, err
	}
	last, err := d.logs.LastIndex()
	if err != nil {
		return false, err
	}
	for i := last; i >= max(first, 1); i-- {
		var entry raft.Log
		err := d.logs.GetLog(i, &entry)
		if errors.Is(err, raft.ErrLogNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		if entry.Type != raft.LogConfiguration {
			continue
		}
		if _, ok := find(raft.DecodeConfiguration(entry.Data).Servers, string(id)); ok {
			return true, nil
		}
	}
	return false, nil
}
