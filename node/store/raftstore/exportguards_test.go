// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"net"

	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// Committed returns the ids of the replicas of this leader's configuration, if it
// is committed.
func (s *Store) Committed() (members []string, ok bool) {
	future := s.raft.GetConfiguration()
	if future.Error() != nil || future.Index() > s.raft.CommitIndex() {
		return nil, false
	}
	return ids(future.Configuration().Servers), true
}

// ServeLost answers one stream as a replica does that has lost its disk: raft's
// are refused, and on those of calls it can be probed and admitted. It tells of
// each admission before it answers.
func ServeLost(conn net.Conn, admitted func()) {
	defer conn.Close()
	var kind [1]byte
	var hello pb.ReplicaHello
	if _, err := conn.Read(kind[:]); err != nil {
		return
	}
	if _, err := readFrame(conn, &hello, maxGreeting); err != nil || kind[0] != streamCalls {
		return
	}
	if writeFrame(conn, &pb.ReplicaWelcome{Status: statusOf(nil)}, maxGreeting) != nil {
		return
	}
	nonce := make([]byte, nonceSize)
	for {
		var req pb.ReplicaRequest
		if _, err := readFrame(conn, &req, maxFrame); err != nil {
			return
		}
		resp := &pb.ReplicaResponse{Id: req.GetId(), Status: statusOf(nil)}
		switch req.GetCall().(type) {
		case *pb.ReplicaRequest_Probe:
			resp.Nonce = nonce
		case *pb.ReplicaRequest_Admit:
			admitted()
		}
		if writeFrame(conn, resp, maxFrame) != nil {
			return
		}
	}
}
