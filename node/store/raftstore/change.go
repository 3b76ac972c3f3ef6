// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// changeTimeout bounds a change of the cluster whose caller would wait longer.
const changeTimeout = time.Minute

// change is what is to be done to the cluster.
type change struct {
	action      pb.ReplicaAction
	id, address string
}

// AddVoter makes a replica that was opened with Join, or that already is an
// observer, a voter of the cluster. It is an observer first, and gets its vote
// when it holds all that the leader holds. A replica of the same id whose disk
// was lost is removed before. For a voter only the address changes.
//
// Like all changes of the cluster, this works on every replica, goes on until
// ctx ends or for a minute, and may be repeated: an error that wraps
// store.ErrUncertain leaves open whether it happened.
func (s *Store) AddVoter(ctx context.Context, id, address string) error {
	return s.change(ctx, change{pb.ReplicaAction_REPLICA_ACTION_ADD_VOTER, id, address})
}

// AddObserver makes a replica that was opened with Join one that holds the
// state but has no vote. See AddVoter.
func (s *Store) AddObserver(ctx context.Context, id, address string) error {
	return s.change(ctx, change{pb.ReplicaAction_REPLICA_ACTION_ADD_OBSERVER, id, address})
}

// Remove takes a replica out of the cluster, and tells it so if it is in reach.
// The leader hands its role over before it is removed.
func (s *Store) Remove(ctx context.Context, id string) error {
	return s.change(ctx, change{pb.ReplicaAction_REPLICA_ACTION_REMOVE, id, ""})
}

// Promote makes a voter of an observer, once it holds all that the leader
// holds.
func (s *Store) Promote(ctx context.Context, id string) error {
	return s.change(ctx, change{pb.ReplicaAction_REPLICA_ACTION_PROMOTE, id, ""})
}

// Demote makes an observer of a voter. The leader hands its role over before.
func (s *Store) Demote(ctx context.Context, id string) error {
	return s.change(ctx, change{pb.ReplicaAction_REPLICA_ACTION_DEMOTE, id, ""})
}

// Transfer makes a voter the leader; the empty id lets the leader choose
// another one.
func (s *Store) Transfer(ctx context.Context, id string) error {
	return s.change(ctx, change{pb.ReplicaAction_REPLICA_ACTION_TRANSFER, id, ""})
}

// change makes a change where the leader is.
func (s *Store) change(ctx context.Context, c change) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	err := s.route(ctx, changeTimeout, false, func(ctx context.Context) error {
		return s.changeHere(ctx, c, s.id)
	}, func(ctx context.Context, stream leaderStream) error {
		_, err := send(ctx, stream, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Change{
			Change: &pb.ReplicaChange{Action: c.action, Id: c.id, Address: c.address},
		}})
		return err
	})
	if err != nil {
		return fmt.Errorf("%s replica %q: %w", c.verb(), c.id, err)
	}
	return nil
}

func (c change) verb() string {
	verb := strings.ToLower(strings.TrimPrefix(c.action.String(), "REPLICA_ACTION_"))
	return strings.ReplaceAll(verb, "_", " ")
}

// changeHere makes a change that a replica asked for if this one leads.
func (s *Store) changeHere(ctx context.Context, c change, peer string) error {
	select {
	case s.changing <- struct{}{}:
		defer func() { <-s.changing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	role := s.role.Load()
	if !role.ready {
		return notLeader(role)
	}
	if c.id == "" && c.action != pb.ReplicaAction_REPLICA_ACTION_TRANSFER {
		return fmt.Errorf("%w: %w", store.ErrInvalid, errNoID)
	}
	switch c.action {
	case pb.ReplicaAction_REPLICA_ACTION_ADD_VOTER:
		return s.add(ctx, c.id, c.address, true)
	case pb.ReplicaAction_REPLICA_ACTION_ADD_OBSERVER:
		return s.add(ctx, c.id, c.address, false)
	case pb.ReplicaAction_REPLICA_ACTION_REMOVE:
		return s.remove(ctx, c, peer)
	case pb.ReplicaAction_REPLICA_ACTION_DEMOTE:
		return s.takeVote(ctx, c)
	case pb.ReplicaAction_REPLICA_ACTION_PROMOTE:
		return s.promote(ctx, c.id)
	case pb.ReplicaAction_REPLICA_ACTION_TRANSFER:
		return s.transfer(ctx, c.id)
	case pb.ReplicaAction_REPLICA_ACTION_MOVE:
		if c.id != peer {
			return fmt.Errorf("%w: only replica %q itself may change its address", store.ErrInvalid, c.id)
		}
		return s.move(ctx, c.id, c.address)
	}
	return fmt.Errorf("%w: a change that this replica does not know", store.ErrInvalid)
}

func notLeader(role *role) error { return &store.NotLeaderError{Leader: role.leader} }

// configure waits for a change of raft's configuration.
func (s *Store) configure(ctx context.Context, begin func() raft.IndexFuture) error {
	var index uint64
	err := s.await(ctx, func() error {
		future := begin()
		if err := future.Error(); err != nil {
			return err
		}
		index = future.Index()
		return nil
	})
	if err == nil {
		s.spread(ctx, index)
	}
	return err
}

// spreadTimeout bounds the wait of spread.
const spreadTimeout = time.Second

// spread waits until the voters in reach hold an entry that changed the
// cluster, if they soon do. A voter gives no vote to a replica that is none as
// far as it knows: if the leader went meanwhile, those two could elect nobody.
func (s *Store) spread(ctx context.Context, index uint64) {
	role := s.role.Load()
	timer := time.NewTimer(spreadTimeout)
	defer timer.Stop()
	for {
		moved := s.transport.changed()
		behind := func(v raft.Server) bool {
			p, ok := s.transport.known(v.ID)
			return string(v.ID) != s.id && ok && s.inReach(string(v.ID)) && (p.term != role.term || p.stored < index)
		}
		if !slices.ContainsFunc(votersOf(s.servers()), behind) {
			return
		}
		select {
		case <-moved:
		case <-role.over:
			return
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-s.closing:
			return
		}
	}
}

// add makes a replica an observer or a voter; s.changing is held.
func (s *Store) add(ctx context.Context, id, address string, voter bool) error {
	if address == "" {
		return fmt.Errorf("%w: no address at which replica %q is dialled", store.ErrInvalid, id)
	}
	server, found := find(s.servers(), id)
	if found && server.Suffrage == raft.Voter && !voter {
		return fmt.Errorf("%w: replica %q is a voter: demote it instead", store.ErrInvalid, id)
	}
	if id == s.id {
		return s.move(ctx, id, address)
	}
	if err := s.letIn(ctx, id, address, found); err != nil {
		return err
	}
	if server, found = find(s.servers(), id); !found {
		err := s.configure(ctx, func() raft.IndexFuture {
			return s.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, enqueueTimeout)
		})
		if err != nil {
			return err
		}
	} else if err := s.move(ctx, id, address); err != nil {
		return err
	}
	if voter && (!found || server.Suffrage != raft.Voter) {
		return s.promote(ctx, id)
	}
	return nil
}

// letIn makes sure that the replica at an address belongs to this cluster. If
// it belongs to none it has forgotten what it may have voted and stored in an
// earlier life, so that life ends first: the cluster stops counting on it.
func (s *Store) letIn(ctx context.Context, id, address string, found bool) error {
	resp, err := s.streams.ask(ctx, id, address, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Probe{Probe: &pb.ReplicaProbe{}}})
	if err != nil {
		return fmt.Errorf("ask at %q: %w", address, err)
	}
	switch cluster := resp.GetCluster(); {
	case string(cluster) == string(s.identity.cluster()):
		return nil
	case len(cluster) > 0:
		return fmt.Errorf("%w: replica %q has data of another cluster: empty its data directory", ErrOtherCluster, id)
	}
	if found {
		if err := s.takeVote(ctx, change{pb.ReplicaAction_REPLICA_ACTION_REMOVE, id, ""}); err != nil {
			return err
		}
	}
	_, err = s.streams.ask(ctx, id, address, &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Admit{
		Admit: &pb.ReplicaAdmit{Cluster: s.identity.cluster(), Nonce: resp.GetNonce()},
	}})
	if err != nil {
		return fmt.Errorf("admit at %q: %w", address, err)
	}
	return nil
}

// move changes the address of a replica and leaves it its vote.
func (s *Store) move(ctx context.Context, id, address string) error {
	server, found := find(s.servers(), id)
	switch {
	case !found:
		return fmt.Errorf("%w: %q", ErrNotMember, id)
	case address == "":
		return fmt.Errorf("%w: no address at which replica %q is dialled", store.ErrInvalid, id)
	case string(server.Address) == address:
		return nil
	}
	return s.configure(ctx, func() raft.IndexFuture {
		if server.Suffrage == raft.Voter {
			return s.raft.AddVoter(server.ID, raft.ServerAddress(address), 0, enqueueTimeout)
		}
		return s.raft.AddNonvoter(server.ID, raft.ServerAddress(address), 0, enqueueTimeout)
	})
}

// promote gives a replica that is not behind a vote.
func (s *Store) promote(ctx context.Context, id string) error {
	servers := s.servers()
	server, found := find(servers, id)
	switch {
	case !found:
		return fmt.Errorf("%w: %q", ErrNotMember, id)
	case server.Suffrage == raft.Voter:
		return nil
	}
	if err := s.caughtUp(ctx, server.ID); err != nil {
		return err
	}
	if err := s.safe(ctx, append(votersOf(servers), server)); err != nil {
		return err
	}
	return s.configure(ctx, func() raft.IndexFuture {
		return s.raft.AddVoter(server.ID, server.Address, 0, enqueueTimeout)
	})
}

// caughtUp waits until a replica holds all that the log had at the call.
func (s *Store) caughtUp(ctx context.Context, id raft.ServerID) error {
	role, last := s.role.Load(), s.raft.LastIndex()
	for {
		moved := s.transport.changed()
		if p, ok := s.transport.known(id); ok && p.term == role.term && p.stored >= last {
			return nil
		}
		select {
		case <-moved:
		case <-role.over:
			return notLeader(s.role.Load())
		case <-ctx.Done():
			return fmt.Errorf("wait until it has caught up: %w", ctx.Err())
		case <-s.closing:
			return store.ErrClosed
		}
	}
}

// takeVote removes or demotes a replica.
func (s *Store) takeVote(ctx context.Context, c change) error {
	servers := s.servers()
	server, found := find(servers, c.id)
	demote := c.action == pb.ReplicaAction_REPLICA_ACTION_DEMOTE
	switch {
	case !found:
		return fmt.Errorf("%w: %q", ErrNotMember, c.id)
	case demote && server.Suffrage != raft.Voter:
		return nil
	}
	if server.Suffrage == raft.Voter {
		if err := s.safe(ctx, without(votersOf(servers), c.id)); err != nil {
			return err
		}
	}
	if c.id == s.id { // the next leader does it
		if err := s.transfer(ctx, ""); err != nil {
			return err
		}
		return &store.NotLeaderError{}
	}
	err := s.configure(ctx, func() raft.IndexFuture {
		if demote {
			return s.raft.DemoteVoter(server.ID, 0, enqueueTimeout)
		}
		return s.raft.RemoveServer(server.ID, 0, enqueueTimeout)
	})
	if err == nil && !demote {
		s.transport.forget(func(id raft.ServerID) bool { return id != server.ID })
	}
	return err
}

// safe says whether a majority of voters-to-be is in reach and holds what the log
// has now: one that answers and stores nothing, such as with a full disk, would keep
// the change itself from being committed.
func (s *Store) safe(ctx context.Context, voters []raft.Server) error {
	if len(voters) == 0 {
		return fmt.Errorf("%w: no voter would remain", ErrUnsafe)
	}
	away, behind, err := s.awaitReach(ctx, voters, len(voters)/2+1, s.raft.LastIndex())
	if err != nil {
		return err
	}
	if live := len(voters) - len(away) - len(behind); live > len(voters)/2 {
		return nil
	}
	why := ""
	if len(away) > 0 {
		why = fmt.Sprintf(", %q are out of reach", away)
	}
	if len(behind) > 0 {
		why += fmt.Sprintf(", %q are behind what the leader holds: wait until they have caught up, or see whether their disks are full", behind)
	}
	return fmt.Errorf("%w: of the %d voters that there would be%s", ErrUnsafe, len(voters), why)
}

// awaitReach returns which of some replicas are out of reach, and which of the others
// do not hold an entry of the log. A leader that has just begun has not heard from
// all of them yet, and who is sent entries needs time for them: it waits for that
// until enough are neither.
func (s *Store) awaitReach(ctx context.Context, servers []raft.Server, enough int, entry uint64) (away, behind []string, err error) {
	role := s.role.Load()
	heard, held := time.NewTimer(time.Until(role.since.Add(reachTimeouts*s.election))), time.NewTimer(keepTimeouts*s.election)
	defer heard.Stop()
	defer held.Stop()
	for old, late := false, false; ; {
		moved := s.transport.changed()
		away, behind = nil, nil
		for _, server := range servers {
			if id := string(server.ID); !s.inReach(id) {
				away = append(away, id)
			} else if p, _ := s.transport.known(server.ID); id != s.id && (p.term != role.term || p.stored < entry) {
				behind = append(behind, id)
			}
		}
		live := len(servers) - len(away)
		if live-len(behind) >= enough || late || old && live < enough {
			return away, behind, nil
		}
		select {
		case <-moved:
		case <-heard.C:
			old = true
		case <-held.C:
			late = true
		case <-role.over:
			return nil, nil, notLeader(s.role.Load())
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-s.closing:
			return nil, nil, store.ErrClosed
		}
	}
}

// reachTimeouts is for how many election timeouts a replica may be silent that is in
// reach: it is heard from several times in each. keepTimeouts is for how many one
// may need to store what the log has.
const (
	reachTimeouts = 2
	keepTimeouts  = 2 * missedTimeouts
)

// inReach says whether this leader heard from a replica within the time in
// which it hears from each several times.
func (s *Store) inReach(id string) bool {
	if id == s.id {
		return true
	}
	p, ok := s.transport.known(raft.ServerID(id))
	return ok && time.Since(p.heard) < reachTimeouts*s.election
}

// mayLead refuses a replica that would hand the leadership back at once. One that
// does not answer in time is none that is known to.
func (s *Store) mayLead(ctx context.Context, server raft.Server) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := s.streams.ask(ctx, string(server.ID), string(server.Address), &pb.ReplicaRequest{Call: &pb.ReplicaRequest_Probe{Probe: &pb.ReplicaProbe{}}})
	if err != nil {
		return nil
	}
	if room := Room(resp.GetRoom()); room == RoomLow || room == RoomNone {
		return fmt.Errorf("%w: replica %q has a full disk and would hand the leadership on at once: make room on it first", store.ErrFull, server.ID)
	}
	return nil
}

// transfer makes another voter lead.
func (s *Store) transfer(ctx context.Context, id string) error {
	if id == s.id {
		return nil
	}
	role := s.role.Load()
	begin := s.raft.LeadershipTransfer
	if id != "" {
		server, found := find(s.servers(), id)
		switch {
		case !found:
			return fmt.Errorf("%w: %q", ErrNotMember, id)
		case server.Suffrage != raft.Voter:
			return fmt.Errorf("%w: replica %q is an observer: promote it first", store.ErrInvalid, id)
		}
		if away, _, err := s.awaitReach(ctx, []raft.Server{server}, 1, 0); err != nil {
			return err
		} else if len(away) > 0 {
			return fmt.Errorf("%w: replica %q is out of reach", ErrUnsafe, id)
		}
		if err := s.mayLead(ctx, server); err != nil {
			return err
		}
		begin = func() raft.Future { return s.raft.LeadershipTransferToServer(server.ID, server.Address) }
	} else if len(votersOf(s.servers())) < 2 {
		return fmt.Errorf("%w: there is no other voter", ErrUnsafe)
	}
	err := s.await(ctx, func() error { return begin().Error() })
	if err != nil && errors.Is(err, store.ErrUncertain) && ctx.Err() == nil && s.Err() == nil {
		return fmt.Errorf("hand over the leadership: %w", err)
	}
	if err != nil {
		return err
	}
	select { // until this replica knows that it leads no more
	case <-role.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return store.ErrClosed
	}
}
