// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// minVoters is how many voters the removal of dead ones leaves: fewer could
// not lose one more.
const minVoters = 3

// maxLag is how many entries a live replica may lack that are on their way.
const maxLag = 1024

// standing is how a leader sees a replica.
type standing struct {
	id    string
	voter bool
	// dead is true when it was out of reach for Config.DeadAfter.
	dead bool
	// live is true when it is in reach, and holds what the leader holds.
	live bool
}

// bury decides what a leader does next about dead replicas, one step at a
// time; ok is false when there is nothing to do. The rule:
//
//   - A dead observer is removed.
//   - Dead voters are touched only while a majority of all voters is live.
//   - The number of voters stays odd and does not fall below three. So a dead
//     voter goes when the number is even; or when a second one is dead too and
//     five or more remain; or when a live observer takes its place, which
//     gets its vote first.
func bury(replicas []standing) (next change, ok bool) {
	var dead, spare string // a dead voter, a live observer
	voters, live, deads := 0, 0, 0
	for _, r := range replicas {
		switch {
		case r.dead && !r.voter:
			return change{action: pb.ReplicaAction_REPLICA_ACTION_REMOVE, id: r.id}, true
		case !r.voter && r.live && spare == "":
			spare = r.id
		}
		if !r.voter {
			continue
		}
		voters++
		if r.live {
			live++
		}
		if r.dead {
			deads++
			dead = r.id
		}
	}
	remove := change{action: pb.ReplicaAction_REPLICA_ACTION_REMOVE, id: dead}
	switch {
	case deads == 0 || live <= voters/2:
		return change{}, false
	case voters%2 == 0:
		return remove, voters-1 >= minVoters
	case spare != "":
		return change{action: pb.ReplicaAction_REPLICA_ACTION_PROMOTE, id: spare}, true
	}
	return remove, deads >= 2 && voters-2 >= minVoters
}

// buryOne takes the next step about dead replicas.
func (s *Store) buryOne(ctx context.Context, servers []raft.Server) {
	role, last := s.role.Load(), s.raft.LastIndex()
	var replicas []standing
	for _, server := range servers {
		r := standing{id: string(server.ID), voter: server.Suffrage == raft.Voter}
		p, known := s.transport.known(server.ID)
		switch {
		case r.id == s.id:
			r.live = true
		case !known || p.heard.IsZero():
			// Its time runs from when this leader first looked for it.
			s.transport.expect(server.ID)
		default:
			r.dead = time.Since(role.heard(p)) >= s.deadAfter
			r.live = s.inReach(r.id) && p.term == role.term && p.stored+maxLag >= last
		}
		replicas = append(replicas, r)
	}
	next, ok := bury(replicas)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if err := s.changeHere(ctx, next, s.id); err != nil {
		s.logger.Warn("act on a dead replica", "replica", next.id, "action", next.verb(), "err", err)
		return
	}
	s.metrics.buried.Inc()
	s.logger.Warn("acted on a dead replica", "replica", next.id, "action", next.verb(), "after", s.deadAfter)
}
