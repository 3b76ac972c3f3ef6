// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// membersTimeout bounds how long Members waits for the leader.
const membersTimeout = time.Second

// Replica is one member of the cluster.
type Replica struct {
	// ID is the node's id.
	ID string
	// Address is where the others dial it, as "host:port".
	Address string
	// Voter is false for an observer: it holds the state, but its copy does
	// not count.
	Voter bool
	// Leader is true for the one that leads.
	Leader bool
	// Answers is true for a replica that answered this one, which asks only
	// while no leader answers; it answers itself.
	Answers bool
	// Known is true when the fields below say something: the leader answered,
	// and has heard of the replica.
	Known bool
	// LastContact is how long ago the leader heard from it, or began to lead if
	// that was later: what came before is another leader's to tell.
	LastContact time.Duration
	// Stored is the index of the last log entry that it is known to hold.
	Stored uint64
	// Lag is how many entries of the leader's log it is not known to hold. It says
	// nothing while LagUnknown is true: the replica has not answered the leader
	// since that began to lead.
	Lag        uint64
	LagUnknown bool
	// Room is what room its disk has, as far as it was asked: by Survey, and by
	// Members while no leader answers. Hears is then whom it hears lead.
	Room  Room
	Hears string
}

// Room is what room the disk of a replica has for changes.
type Room uint8

// The values of Room.
const (
	// RoomUnknown says that the replica was not asked, or did not tell.
	RoomUnknown Room = iota
	// RoomEnough says that nothing is wrong.
	RoomEnough
	// RoomLow says that it refuses changes if it leads, and does not lead for long.
	RoomLow
	// RoomNone says that it falls behind, too: nothing fits any more.
	RoomNone
)

// members wakes those who follow the cluster.
type members struct {
	// again asks upkeep to look at the cluster; it holds one question.
	again chan struct{}

	mu      sync.Mutex // guards the field below
	changed chan struct{}
}

func newMembers() *members {
	return &members{again: make(chan struct{}, 1), changed: make(chan struct{})}
}

// reconfigured says that raft has another configuration. It does not wait.
func (m *members) reconfigured() {
	select {
	case m.again <- struct{}{}:
	default:
	}
}

// notify wakes those who wait for changed.
func (m *members) notify() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changed = renew(m.changed)
}

// Changed returns a channel that is closed when the members, their addresses,
// their votes or the leader may have changed since the call. Call it, look at
// Members and Leader, then wait.
func (s *Store) Changed() <-chan struct{} {
	s.members.mu.Lock()
	defer s.members.mu.Unlock()
	return s.members.changed
}

// Members returns the replicas of the cluster in the order of their ids. What
// is known of each comes from the leader; when it does not answer within a
// second or before ctx ends, the list is that of Configured, and says besides
// who answers this replica within another second.
func (s *Store) Members(ctx context.Context) []Replica {
	leading, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	var list []*pb.ReplicaMember
	err := s.route(leading, 0, true, func(context.Context) (err error) {
		list, err = s.membersHere()
		return err
	}, func(ctx context.Context, stream leaderStream) error {
		resp, err := send(ctx, stream, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Members{Members: &pb.ReplicaMembers{}}})
		list = resp.GetMembers()
		return err
	})
	if err != nil {
		replicas := s.Configured()
		s.askEach(ctx, replicas, func(*Replica) bool { return true })
		return replicas
	}
	return replicasOf(list)
}

// Survey is Members, and asks besides each replica that the leader hears what room
// it has, for another second at most.
func (s *Store) Survey(ctx context.Context) []Replica {
	replicas := s.Members(ctx)
	if slices.ContainsFunc(replicas, func(r Replica) bool { return r.Known }) { // else they were asked
		s.askEach(ctx, replicas, func(r *Replica) bool { return r.Known && r.LastContact < missedTimeouts*s.election })
	}
	return replicas
}

// Configured returns the replicas of the cluster in the order of their ids, by
// the latest configuration that this replica has, which may not be committed
// yet: ID, Address, Voter, and Leader as far as it knows. It does not wait, and
// asks nobody.
func (s *Store) Configured() []Replica {
	leader := s.role.Load().leader
	var list []*pb.ReplicaMember
	for _, server := range s.servers() {
		list = append(list, memberOf(server, leader))
	}
	return replicasOf(list)
}

// replicasOf returns members in the order of their ids.
func replicasOf(list []*pb.ReplicaMember) []Replica {
	replicas := make([]Replica, 0, len(list))
	for _, m := range list {
		replicas = append(replicas, Replica{
			ID: m.GetId(), Address: m.GetAddress(), Voter: m.GetVoter(), Leader: m.GetLeader(),
			Known:       m.GetContactKnown(),
			LastContact: time.Duration(m.GetContactMs()) * time.Millisecond,
			Stored:      m.GetStored(), Lag: m.GetLag(), LagUnknown: m.GetLagUnknown(),
		})
	}
	slices.SortFunc(replicas, func(a, b Replica) int { return cmp.Compare(a.ID, b.ID) })
	return replicas
}

// askEach asks replicas at once whether they are there, what room they have and
// whom they hear. One that the leader knows is there for that reason.
func (s *Store) askEach(ctx context.Context, replicas []Replica, which func(*Replica) bool) {
	ctx, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	var asked sync.WaitGroup
	for i := range replicas {
		r := &replicas[i]
		switch {
		case r.ID == s.id:
			r.Answers, r.Room = !r.Known, s.Room()
		case which(r):
			asked.Go(func() {
				resp, err := s.streams.ask(ctx, r.ID, r.Address, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Probe{Probe: &pb.ReplicaProbe{}}})
				if err == nil {
					r.Answers, r.Room, r.Hears = !r.Known, Room(resp.GetRoom()), resp.GetLeader()
				}
			})
		}
	}
	asked.Wait()
}

// Room is what room the disk of this replica has.
func (s *Store) Room() Room {
	if s.disk.guard != nil {
		if _, refused := s.disk.guard.noRoom(); refused != nil {
			return RoomNone
		}
	}
	if errors.Is(s.room(), store.ErrFull) {
		return RoomLow
	}
	return RoomEnough
}

func memberOf(server raft.Server, leader string) *pb.ReplicaMember {
	return &pb.ReplicaMember{
		Id: string(server.ID), Address: string(server.Address),
		Voter: server.Suffrage == raft.Voter, Leader: string(server.ID) == leader,
	}
}

// membersHere returns the members as this replica sees them if it leads.
func (s *Store) membersHere() ([]*pb.ReplicaMember, error) {
	role := s.role.Load()
	if !role.ready {
		return nil, notLeader(role)
	}
	last := s.raft.LastIndex()
	var list []*pb.ReplicaMember
	for _, server := range s.servers() {
		m := memberOf(server, s.id)
		if m.Leader {
			m.ContactKnown, m.Stored = true, last
		} else if p, ok := s.transport.known(server.ID); ok && !p.heard.IsZero() {
			m.ContactKnown = true
			m.ContactMs = uint64(max(time.Since(role.heard(p)).Milliseconds(), 0))
			if m.LagUnknown = p.term != role.term; !m.LagUnknown {
				m.Stored, m.Lag = p.stored, last-min(p.stored, last)
			}
		}
		list = append(list, m)
	}
	return list, nil
}

// Addresses are where those that have a part in the storage dial each other, as
// "host:port", by the latest configuration. It does not wait.
func (s *Store) Addresses() []string {
	servers := s.servers()
	list := make([]string, len(servers))
	for i, server := range servers {
		list[i] = string(server.Address)
	}
	return list
}

// servers returns the latest configuration, which may not be committed yet;
// empty while there is none.
func (s *Store) servers() []raft.Server {
	return s.raft.GetConfiguration().Configuration().Servers
}

func votersOf(servers []raft.Server) []raft.Server {
	var voters []raft.Server
	for _, server := range servers {
		if server.Suffrage == raft.Voter {
			voters = append(voters, server)
		}
	}
	return voters
}

// find returns the server with an id.
func find(servers []raft.Server, id string) (raft.Server, bool) {
	i := slices.IndexFunc(servers, func(server raft.Server) bool { return string(server.ID) == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return servers[i], true
}

// without returns the servers but for one.
func without(servers []raft.Server, id string) []raft.Server {
	return slices.DeleteFunc(slices.Clone(servers), func(server raft.Server) bool { return string(server.ID) == id })
}

// errNoID says that a change does not name a replica.
var errNoID = errors.New("no replica is named")
