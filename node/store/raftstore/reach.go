// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// missedTimeouts is how many election timeouts a replica is silent before
// operators are told: more than a restart on the same machine needs, less than
// anybody waits for.
const missedTimeouts = 4

// absence is a replica that the leader cannot count on.
type absence struct {
	id    string
	voter bool
	// deaf is true for one that answers and stores nothing of what it is sent.
	deaf bool
	// since is when it was last heard from, or stored something; or when this
	// replica began to lead, or first missed it.
	since time.Time
}

// absent returns the replicas that this one, which leads as role says, has not
// heard from for missedTimeouts, or that have stored nothing of what they were sent.
func (s *Store) absent(role *role, servers []raft.Server) []absence {
	var list []absence
	for _, server := range servers {
		if string(server.ID) == s.id {
			continue
		}
		p := s.transport.notice(server.ID)
		a := absence{id: string(server.ID), voter: server.Suffrage == raft.Voter, since: role.heard(p)}
		limit := missedTimeouts * s.election
		if time.Since(a.since) < limit {
			owes := p.idle(role.since, limit)
			if owes.IsZero() {
				continue
			}
			a.deaf, a.since = true, owes
		}
		list = append(list, a)
	}
	return list
}

// heard is when a leader with this role heard from a replica, or began to lead or
// first missed it if that was later: whom others led meanwhile, it did not hear
// from.
func (r *role) heard(p progress) time.Time { return latest(p.heard, p.missed, r.since) }

func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// reach is what was said in the log about who is out of reach. Only upkeep
// uses it.
type reach struct {
	// gone has those that are out of reach, while this replica leads.
	gone map[string]absence
	// leaderless is since when there is no leader; zero while there is one.
	// looks is how often upkeep saw that, and told whether it said so.
	leaderless time.Time
	looks      int
	told       bool
}

// tellAbsent says in the log of a leader who is out of reach since the last
// call, and who is not any more.
func (s *Store) tellAbsent(told *reach, role *role, servers []raft.Server) {
	if !role.ready { // the next leader says it
		told.gone = nil
		return
	}
	voters := votersOf(servers)
	gone, live := map[string]absence{}, len(voters)
	for _, a := range s.absent(role, servers) {
		gone[a.id] = a
		if a.voter {
			live--
		}
	}
	for id, a := range gone {
		if before, ok := told.gone[id]; ok && before.voter == a.voter && before.deaf == a.deaf {
			continue
		}
		text, is := "replica", "is out of reach"
		if a.deaf {
			is = "stores nothing of what it is sent, as with a full disk"
		}
		spare := live - (len(voters)/2 + 1)
		switch {
		case !a.voter:
			text = "observer " + is
		case spare < 0: // without a majority in reach no replica leads for long
			text += " " + is + ": changes wait"
		case spare == 0:
			text += " " + is + ": one more loss stops changes"
		default:
			text += " " + is
		}
		spare = max(spare, 0)
		s.logger.Warn(text, "replica", id, "since", a.since.UTC().Format(time.RFC3339), "spare_voters", spare)
	}
	for id, a := range told.gone {
		_, still := gone[id]
		if _, member := find(servers, id); member && !still {
			text := "replica is in reach again"
			if a.deaf {
				text = "replica stores again what it is sent"
			}
			s.logger.Info(text, "replica", id, "after", time.Since(a.since).Round(time.Second))
		}
	}
	told.gone = gone
}

// tellLeader says in the log when there was no leader for some time, and when
// there is one again.
func (s *Store) tellLeader(told *reach, role *role, servers []raft.Server) {
	_, member := find(servers, s.id)
	switch {
	case role.leader != "":
		if told.told {
			s.logger.Info("there is a leader again", "leader", role.leader, "after", time.Since(told.leaderless).Round(time.Second))
		}
		told.leaderless, told.looks, told.told = time.Time{}, 0, false
	case !member || told.told: // who waits to be let in misses no leader
	case told.looks == 0:
		told.leaderless, told.looks = time.Now(), 1
	case told.looks < missedTimeouts-1: // an election is on its way
		told.looks++
	default:
		told.told = true
		s.logger.Warn("there is no leader: changes and fresh reads wait for a majority of the voters",
			"voters", ids(votersOf(servers)), "out_of_reach", s.silent(told.leaderless, servers))
	}
}

// silent returns the voters that did not answer this one since start. An
// observer does not know: it asks nobody for a vote.
func (s *Store) silent(start time.Time, servers []raft.Server) []string {
	var list []string
	if self, ok := find(servers, s.id); !ok || self.Suffrage != raft.Voter {
		return list
	}
	for _, v := range votersOf(servers) {
		p, ok := s.transport.known(v.ID)
		if string(v.ID) != s.id && (!ok || !p.voted.After(start) && !p.heard.After(start)) {
			list = append(list, string(v.ID))
		}
	}
	return list
}

// votersAbsent counts the voters that this leader does not hear from, or that store
// nothing; 0 elsewhere.
func (s *Store) votersAbsent() int {
	role := s.role.Load()
	if !role.ready {
		return 0
	}
	n := 0
	for _, a := range s.absent(role, s.servers()) {
		if a.voter {
			n++
		}
	}
	return n
}

// maxBehind is how many entries of this leader's log the replica furthest
// behind is not known to hold, of those that it heard from and does still; 0
// elsewhere. One that is gone for good would be further behind every day.
func (s *Store) maxBehind() uint64 {
	role := s.role.Load()
	if !role.ready {
		return 0
	}
	servers := s.servers()
	gone := map[raft.ServerID]bool{}
	for _, a := range s.absent(role, servers) {
		gone[raft.ServerID(a.id)] = !a.deaf
	}
	last, lag := s.raft.LastIndex(), uint64(0)
	for _, server := range servers {
		if p, ok := s.transport.known(server.ID); ok && string(server.ID) != s.id && p.term == role.term && !gone[server.ID] {
			lag = max(lag, last-min(p.stored, last))
		}
	}
	return lag
}
