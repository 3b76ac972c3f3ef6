// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

const (
	// askTimeout bounds one question of upkeep to another replica.
	askTimeout = 2 * time.Second
	// roomPause is the least time between two attempts of a leader with a full
	// disk to find another one.
	roomPause = 10 * time.Second
	// roomPauseMax bounds the pause of one whom nobody has asked to change
	// anything, which doubles: the others may have no room, either.
	roomPauseMax = 10 * time.Minute
)

// upkeep looks after the cluster, from time to time and when it changed, until
// stop is closed.
func (s *Store) upkeep() {
	ctx, cancel := context.WithCancel(s.streams.ctx)
	defer cancel()
	stopped := make(chan struct{})
	defer func() { <-stopped }()
	defer cancel()
	go func() {
		defer close(stopped)
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	ticker := time.NewTicker(s.election)
	defer ticker.Stop()
	var last []raft.Server
	var told reach
	var cramped spareRoom
	lost := 0           // ticks without a leader
	var since time.Time // of the first of them
	orphan := false     // looked for since then whether it has a seat
	for {
		changed := false
		select {
		case <-ticker.C:
		case <-s.members.again:
			changed = true // and maybe back again: whoever waits hears of it
		case <-ctx.Done():
			return
		}
		servers := s.servers()
		if !slices.Equal(servers, last) {
			last, changed = servers, true
			s.reconfigure(servers)
		}
		if changed {
			s.members.notify()
		}
		role := s.role.Load()
		full := s.room() // only a leader is asked for changes
		s.tellRoom(full)
		if cramped.due(full, role.ready, time.Now()) {
			s.makeRoom()
		}
		s.tellAbsent(&told, role, servers)
		s.tellLeader(&told, role, servers)
		switch {
		case role.ready:
			s.lead(ctx, servers)
		case role.leader != "":
			lost = 0
		case len(servers) > 0:
			if lost++; lost == 1 {
				since, orphan = time.Now(), false
			}
			if lost > 2 {
				s.seekLeader(ctx, servers)
			}
			if !orphan && time.Since(since) >= orphanElections*s.election {
				orphan = true
				s.orphaned(servers)
			}
		}
	}
}

// reconfigure takes note of another configuration.
func (s *Store) reconfigure(servers []raft.Server) {
	member := func(id string) bool {
		_, ok := find(servers, id)
		return ok
	}
	if len(servers) > 0 {
		s.streams.drop(member)
		s.transport.forget(func(id raft.ServerID) bool { return member(string(id)) })
		s.calls.forget(member)
	}
	s.logger.Info("members of the cluster", "node", s.id, "voters", ids(votersOf(servers)), "all", ids(servers))
}

func ids(servers []raft.Server) []string {
	var list []string
	for _, server := range servers {
		list = append(list, string(server.ID))
	}
	return list
}

// lead does what a leader owes the cluster: it keeps its own address right and
// removes the dead.
func (s *Store) lead(ctx context.Context, servers []raft.Server) {
	if self, ok := find(servers, s.id); ok && string(self.Address) != s.address {
		c := change{pb.ReplicaAction_REPLICA_ACTION_MOVE, s.id, s.address}
		if err := s.changeHere(ctx, c, s.id); err != nil {
			s.logger.Warn("change the own address", "err", err)
		}
	}
	if s.deadAfter > 0 {
		s.buryOne(ctx, servers)
	}
}

// seekLeader asks the members why no leader is heard from: because this
// replica has another address than they know, or because it was removed.
func (s *Store) seekLeader(ctx context.Context, servers []raft.Server) {
	for _, server := range servers {
		if string(server.ID) == s.id {
			continue
		}
		if s.askLeader(ctx, string(server.ID), string(server.Address)) || ctx.Err() != nil {
			return
		}
	}
}

// askLeader asks one member, and then the leader that it names. It returns
// true when the leader had its say.
func (s *Store) askLeader(ctx context.Context, id, address string) bool {
	for range 2 {
		status, err := s.askOne(ctx, id, address)
		switch {
		case err == nil: // it leads, and has our address
			return true
		case status == nil:
			return false
		case status.GetCode() == pb.ReplicaCode_REPLICA_CODE_NOT_MEMBER && status.GetLeads():
			if s.role.Load().leader == "" { // else another leader was heard from
				s.failure.fail(fmt.Errorf("%w: gateway %q, which leads it, says so", ErrRemoved, id))
			}
			return true
		case status.GetLeader() == "" || status.GetLeader() == id || status.GetLeader() == s.id:
			return false
		}
		id, address = status.GetLeader(), status.GetLeaderAddress()
	}
	return false
}

// askOne tells a member, which may lead, the address of this replica.
func (s *Store) askOne(ctx context.Context, id, address string) (*pb.ReplicaStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := s.streams.ask(ctx, id, address, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Change{
		Change: &pb.ReplicaChange{Action: pb.ReplicaAction_REPLICA_ACTION_MOVE, Id: s.id, Address: s.address},
	}})
	var refused *statusError
	if errors.As(err, &refused) {
		return refused.status, err
	}
	return nil, err
}

// room is disk.room, which says whose disk it is: others pass the error on.
func (s *Store) room() error {
	if err := s.disk.room(); err != nil {
		return fmt.Errorf("replica %q: %w", s.id, err)
	}
	return nil
}

// tellRoom says in the log when the disk becomes full, and when it is not any
// more; err is what room said.
func (s *Store) tellRoom(err error) {
	switch full := errors.Is(err, store.ErrFull); {
	case full && !s.full.Swap(true):
		text := "disk is full: this replica would refuse changes if it led, and falls behind when no room is left at all"
		if s.role.Load().ready {
			text = "disk is full: changes are refused until there is room, reads go on"
		}
		s.logger.Warn(text, "err", err)
	case err == nil && s.full.Load() && s.full.Swap(false):
		s.logger.Info("there is room on the disk again")
	}
}

// spareRoom is when upkeep next lets a leader with a full disk look for one with
// more room, before a change has to be refused. Only upkeep uses it.
type spareRoom struct {
	at    time.Time
	pause time.Duration
}

// due reports whether it is time for that; full is what room said.
func (r *spareRoom) due(full error, leads bool, now time.Time) bool {
	if !errors.Is(full, store.ErrFull) {
		*r = spareRoom{}
		return false
	}
	if !leads || now.Before(r.at) {
		return false
	}
	r.pause = min(max(2*r.pause, roomPause), roomPauseMax)
	r.at = now.Add(r.pause)
	return true
}

// makeRoom lets a leader whose disk is full look for one with more room.
func (s *Store) makeRoom() {
	now := time.Now()
	last := s.roomSought.Load()
	if last != nil && now.Sub(*last) < roomPause || !s.roomSought.CompareAndSwap(last, &now) {
		return
	}
	if !s.role.Load().ready || len(votersOf(s.servers())) < 2 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usable() != nil {
		return
	}
	s.proposals.Go(func() {
		s.logger.Warn("disk is full, hand over the leadership", "err", s.room())
		if err := s.raft.LeadershipTransfer().Error(); err != nil {
			s.logger.Warn("hand over the leadership", "err", err)
		}
	})
}
