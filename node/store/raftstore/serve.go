// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/semaphore"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

const (
	// callIdle ends a stream on which nothing arrives: callers ping more often.
	callIdle = 4 * pingIdle
	// maxCallBytes bounds the requests of one stream that are being answered;
	// each counts its size and callWeight, so it bounds their number as well.
	maxCallBytes = 16 << 20
	callWeight   = 64 << 10
	// maxCall bounds a call whose caller would wait longer.
	maxCall = time.Minute
)

// serveCalls answers the calls of a replica until the stream ends.
func (s *Store) serveCalls(conn net.Conn, peer string) {
	ctx, cancel := context.WithCancel(s.streams.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	budget := semaphore.NewWeighted(maxCallBytes)
	out := newFrameWriter(conn, maxFrame)
	wg.Go(func() {
		if out.run(ctx.Done()) != nil {
			_ = conn.Close() // half a message may be on its way
		}
	})
	for in := newFrameReader(conn); ; {
		if err := conn.SetReadDeadline(time.Now().Add(callIdle)); err != nil {
			return
		}
		var req pb.ReplicaRequest
		n, err := readFrame(in, &req, maxFrame)
		if err != nil {
			s.logger.Debug("stream of calls ended", "peer", peer, "err", err)
			return
		}
		weight := int64(n + callWeight)
		if budget.Acquire(ctx, weight) != nil {
			return
		}
		wg.Go(func() {
			defer budget.Release(weight)
			resp := s.answer(ctx, &req, peer)
			resp.Id = req.GetId()
			if err := out.put(ctx.Done(), resp); err != nil && ctx.Err() == nil {
				_ = conn.Close() // the caller would wait for it
			}
		})
	}
}

// answer does what a replica asks for.
func (s *Store) answer(ctx context.Context, req *pb.ReplicaRequest, peer string) *pb.ReplicaResponse {
	limit := maxCall
	if ms := req.GetTimeoutMs(); ms > 0 && ms < uint64(maxCall.Milliseconds()) {
		limit = time.Duration(ms) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp := &pb.ReplicaResponse{}
	var err error
	switch call := req.GetCall().(type) {
	case *pb.ReplicaRequest_Ping:
	case *pb.ReplicaRequest_Probe:
		resp.Cluster, resp.Nonce = s.identity.probe()
		resp.Leader, resp.Room = s.role.Load().leader, pb.ReplicaRoom(s.Room())
	case *pb.ReplicaRequest_Admit:
		err = s.admit(call.Admit)
	case *pb.ReplicaRequest_Removed:
		err = s.dismissed(call.Removed, peer)
	case *pb.ReplicaRequest_Apply:
		resp.Version, err = s.applyHere(ctx, store.BatchFromProto(call.Apply))
	case *pb.ReplicaRequest_Read:
		resp.Version, err = s.readHere(ctx)
	case *pb.ReplicaRequest_Change:
		err = s.changeHere(ctx, change{call.Change.GetAction(), call.Change.GetId(), call.Change.GetAddress()}, peer)
	case *pb.ReplicaRequest_Members:
		resp.Members, err = s.membersHere()
	default:
		err = fmt.Errorf("%w: a call that this replica does not know", store.ErrInvalid)
	}
	if version := resp.GetVersion(); version > 0 { // also with a conflict: the replica waits until it shows that
		s.transport.hasten(raft.ServerID(peer), version)
	}
	resp.Status = statusOf(err)
	s.decorate(resp.Status)
	return resp
}

// decorate adds to a refusal who leads.
func (s *Store) decorate(status *pb.ReplicaStatus) {
	if status.GetCode() == pb.ReplicaCode_REPLICA_CODE_OK {
		return
	}
	role := s.role.Load()
	status.Leader, status.LeaderAddress = role.leader, role.address
	status.Leads = role.ready
}

// hello is what this replica says first on a stream.
func (s *Store) hello(to string) *pb.ReplicaHello {
	return &pb.ReplicaHello{Cluster: s.identity.cluster(), To: to}
}

// judge decides whether a replica may open a stream here: a configured member
// of the same cluster may. While this replica belongs to no cluster it may be
// called only, to be admitted; until it hears who the members are, the id of
// the cluster, which only members know, has to do.
func (s *Store) judge(kind byte, peer string, hello *pb.ReplicaHello) *pb.ReplicaStatus {
	err := s.mayOpen(kind, peer, hello)
	status := statusOf(err)
	s.decorate(status)
	return status
}

func (s *Store) mayOpen(kind byte, peer string, hello *pb.ReplicaHello) error {
	cluster := s.identity.cluster()
	switch {
	case kind != streamRaft && kind != streamCalls:
		return fmt.Errorf("%w: no stream is of kind %q", store.ErrInvalid, kind)
	case hello.GetTo() != s.id:
		return fmt.Errorf("%w: this is replica %q, not %q: the address is of another one", store.ErrInvalid, s.id, hello.GetTo())
	case cluster == nil && kind == streamCalls:
		return nil
	case cluster == nil:
		return fmt.Errorf("%w: replica %q was not admitted to a cluster yet", ErrNotMember, s.id)
	case len(hello.GetCluster()) > 0 && string(hello.GetCluster()) != string(cluster):
		return fmt.Errorf("%w: replicas %q and %q", ErrOtherCluster, s.id, peer)
	}
	servers := s.servers()
	if len(servers) == 0 && len(hello.GetCluster()) > 0 {
		return nil
	}
	if _, ok := find(servers, peer); !ok || len(hello.GetCluster()) == 0 {
		return fmt.Errorf("%w: replica %q", ErrNotMember, peer)
	}
	return nil
}
