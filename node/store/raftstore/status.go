// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"unicode/utf8"

	"github.com/meshgate/meshgate/node/store"
	pb "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// maxMessage bounds the text of an error between replicas, in bytes.
const maxMessage = 2 << 10

// statusError is an error that another replica answered. errors.Is and As
// find in it what they would find in the error over there.
type statusError struct{ status *pb.ReplicaStatus }

// Error is the text of the error over there.
func (e *statusError) Error() string {
	if m := e.status.GetMessage(); m != "" {
		return m
	}
	return "replica answered " + e.status.GetCode().String()
}

// Unwrap returns what the code stands for.
func (e *statusError) Unwrap() error {
	if e.status.GetCode() == pb.ReplicaCode_REPLICA_CODE_NOT_LEADER {
		return &store.NotLeaderError{Leader: e.status.GetLeader()}
	}
	return sentinels()[e.status.GetCode()]
}

// sentinels are the errors that cross the network.
func sentinels() map[pb.ReplicaCode]error {
	return map[pb.ReplicaCode]error{
		pb.ReplicaCode_REPLICA_CODE_UNCERTAIN:     store.ErrUncertain,
		pb.ReplicaCode_REPLICA_CODE_CONFLICT:      store.ErrConflict,
		pb.ReplicaCode_REPLICA_CODE_FULL:          store.ErrFull,
		pb.ReplicaCode_REPLICA_CODE_INVALID:       store.ErrInvalid,
		pb.ReplicaCode_REPLICA_CODE_NOT_MEMBER:    ErrNotMember,
		pb.ReplicaCode_REPLICA_CODE_UNSAFE:        ErrUnsafe,
		pb.ReplicaCode_REPLICA_CODE_OTHER_CLUSTER: ErrOtherCluster,
	}
}

// statusOf returns an error as a status. That an outcome is unknown goes
// before all else that the error says.
func statusOf(err error) *pb.ReplicaStatus {
	if err == nil {
		return &pb.ReplicaStatus{}
	}
	status := &pb.ReplicaStatus{Code: pb.ReplicaCode_REPLICA_CODE_FAILED, Message: err.Error()}
	if len(status.Message) > maxMessage {
		status.Message = status.Message[:maxMessage]
	}
	for !utf8.ValidString(status.Message) {
		status.Message = status.Message[:len(status.Message)-1]
	}
	var leads *store.NotLeaderError
	switch {
	case errors.Is(err, store.ErrUncertain):
		status.Code = pb.ReplicaCode_REPLICA_CODE_UNCERTAIN
	case errors.As(err, &leads):
		status.Code, status.Leader = pb.ReplicaCode_REPLICA_CODE_NOT_LEADER, leads.Leader
	case errors.Is(err, store.ErrClosed), errors.Is(err, ErrDisk): // another one will lead
		status.Code = pb.ReplicaCode_REPLICA_CODE_NOT_LEADER
	default:
		for code, sentinel := range sentinels() {
			if errors.Is(err, sentinel) {
				status.Code = code
			}
		}
	}
	return status
}

// errorOf is the reverse of statusOf.
func errorOf(status *pb.ReplicaStatus) error {
	if status.GetCode() == pb.ReplicaCode_REPLICA_CODE_OK {
		return nil
	}
	return &statusError{status}
}
