// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// storage is the cluster as the API knows it.
type storage struct {
	store *raftstore.Store
	node  *node.Node
}

var (
	_ api.Cluster  = storage{}
	_ api.Replicas = storage{}
)

// AddVoter implements api.Cluster.
func (s storage) AddVoter(ctx context.Context, id mesh.NodeID, address string) error {
	return storageError(s.store.AddVoter(ctx, string(id), address))
}

// AddObserver implements api.Cluster.
func (s storage) AddObserver(ctx context.Context, id mesh.NodeID, address string) error {
	return storageError(s.store.AddObserver(ctx, string(id), address))
}

// Servers implements api.Cluster. It asks nobody, so it never waits.
func (s storage) Servers() []api.StorageServer {
	var list []api.StorageServer
	for _, r := range s.store.Configured() {
		server := api.StorageServer{ID: mesh.NodeID(r.ID), Address: r.Address, Status: v1.ClusterStatus_CLUSTER_OBSERVER}
		switch {
		case r.Leader:
			server.Status = v1.ClusterStatus_CLUSTER_LEADER
		case r.Voter:
			server.Status = v1.ClusterStatus_CLUSTER_VOTER
		}
		list = append(list, server)
	}
	return list
}

// seats are the ids of the gateways in the storage, sorted, as Servers.
func (s storage) seats() []string {
	var ids []string
	for _, r := range s.store.Configured() {
		ids = append(ids, r.ID)
	}
	return ids
}

// Replicas implements api.Replicas.
func (s storage) Replicas(ctx context.Context) []api.Replica {
	var list []api.Replica
	for _, r := range s.store.Survey(ctx) {
		list = append(list, api.Replica{
			ID: mesh.NodeID(r.ID), Address: r.Address, Voter: r.Voter, Leader: r.Leader,
			Answers: r.Answers, Known: r.Known, LastContact: r.LastContact, Lag: r.Lag, LagUnknown: r.LagUnknown,
			Room: meshgatev1.Room(r.Room), Hears: r.Hears,
		})
	}
	return list
}

// Leads implements api.Replicas.
func (s storage) Leads() bool { id, _ := s.store.Leader(); return id != "" }

// Promote implements api.Replicas.
func (s storage) Promote(ctx context.Context, id mesh.NodeID) error {
	return storageError(s.store.Promote(ctx, string(id)))
}

// Demote implements api.Replicas.
func (s storage) Demote(ctx context.Context, id mesh.NodeID) error {
	return storageError(s.store.Demote(ctx, string(id)))
}

// Remove implements api.Replicas. Who is removed is no gateway any more for the
// ACLs, either; one that already has no seat may still be one for them.
func (s storage) Remove(ctx context.Context, id mesh.NodeID) error {
	if err := s.store.Remove(ctx, string(id)); err != nil {
		if !errors.Is(err, raftstore.ErrNotMember) {
			return storageError(err)
		}
		state, stateErr := s.node.Sync(ctx)
		if stateErr != nil {
			return stateErr
		}
		if !registry.IsGateway(state, id) {
			return storageError(err)
		}
	}
	return s.node.RemoveGateway(ctx, id)
}

// Transfer implements api.Replicas.
func (s storage) Transfer(ctx context.Context, id mesh.NodeID) error {
	return storageError(s.store.Transfer(ctx, string(id)))
}

// Backup implements api.Replicas.
func (s storage) Backup(ctx context.Context, w io.Writer) error {
	_, err := s.store.Backup(ctx, w)
	return storageError(err)
}

// BackupStale implements api.Replicas.
func (s storage) BackupStale(w io.Writer) error {
	_, err := s.store.BackupStale(w)
	return storageError(err)
}

// storageError adds to an error of the storage what it means to callers of the
// API. That a replica does not answer may pass.
func storageError(err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, raftstore.ErrOtherCluster), errors.Is(err, raftstore.ErrUnsafe):
		return fmt.Errorf("%w: %w", mesh.ErrPrecondition, err)
	case errors.Is(err, raftstore.ErrNotMember):
		return fmt.Errorf("%w: %w", mesh.ErrNotFound, err)
	case errors.Is(err, store.ErrFull):
		return fmt.Errorf("%w: %w", mesh.ErrExhausted, err)
	case errors.Is(err, store.ErrInvalid):
		return fmt.Errorf("%w: %w", mesh.ErrInvalid, err)
	}
	// What the cause means between replicas, it does not mean to the caller.
	return fmt.Errorf("%w: %v", mesh.ErrUnavailable, err)
}
