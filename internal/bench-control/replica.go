// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/gateway/gather"
	"github.com/meshgate/meshgate/node/heap"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// replicaConfig says which replica of a cluster to be.
type replicaConfig struct {
	ID, Dir string
	// Key is the private key of the replica, Keys are the public ones of all.
	Key  string
	Keys map[string]string
	// Join waits for the first replica to add this one.
	Join bool
}

// gcPercent and gcLeast are by how much the heap of a gateway grows between two
// collections, in percent and in bytes.
const (
	gcPercent = 75
	gcLeast   = 32 << 20
)

// minCompress is the size from which gateways compress answers, in bytes.
const minCompress = 1 << 10

// replicaReady is where a replica is reached: by the others, and by clients.
type replicaReady struct{ ID, Raft, API string }

// runReplica keeps the state that a gateway keeps, over the network that
// gateways have between them, and serves nothing but writes of keys. For each
// other replica that comes as a line of JSON it makes it a voter.
func runReplica(c replicaConfig) error {
	defer heap.Keep(gcPercent, gcLeast)()
	network, raft, err := openNetwork(c)
	if err != nil {
		return err
	}
	defer raft.Close()
	s, err := raftstore.Open(raftstore.Config{
		ID: c.ID, Dir: c.Dir, Network: network, Address: raft.Addr().String(), Join: c.Join,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return errors.Join(err, network.Close())
	}
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewNodeHandler(replicaStatus{id: c.ID, store: s}))
	// Answers are empty: to compress them, as the library does, costs and gains
	// nothing. Gateways do not do it either.
	mux.Handle(v1connect.NewStorageQueryServiceHandler(replicaKeys{store: s}, connect.WithCompressMinBytes(minCompress)))
	server := &http.Server{Handler: mux, Protocols: new(http.Protocols), ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		gather.Start(c)
		return ctx
	}}
	server.Protocols.SetUnencryptedHTTP2(true)
	defer server.Close()
	go func() { _ = server.Serve(gather.Listener(l)) }()
	if err := say(replicaReady{ID: c.ID, Raft: raft.Addr().String(), API: "http://" + l.Addr().String()}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var other replicaReady
		if err := json.Unmarshal(lines.Bytes(), &other); err != nil {
			return err
		}
		if err := s.AddVoter(context.Background(), other.ID, other.Raft); err != nil {
			return err
		}
		if err := say(true); err != nil {
			return err
		}
	}
	return nil
}

// openNetwork opens the port on which other replicas are heard.
func openNetwork(c replicaConfig) (*peer.Replicas, net.Listener, error) {
	key, err := mesh.ParsePrivateKey(c.Key)
	if err != nil {
		return nil, nil, err
	}
	byID, byKey := map[mesh.NodeID]mesh.PublicKey{}, map[mesh.PublicKey]mesh.NodeID{}
	for id, text := range c.Keys {
		k, err := mesh.ParsePublicKey(text)
		if err != nil {
			return nil, nil, err
		}
		byID[mesh.NodeID(id)], byKey[k] = k, mesh.NodeID(id)
	}
	network, err := peer.NewReplicas(peer.ReplicasConfig{
		Key:    key,
		KeyOf:  func(id mesh.NodeID) (mesh.PublicKey, bool) { k, ok := byID[id]; return k, ok },
		NodeOf: func(k mesh.PublicKey) (mesh.NodeID, bool) { id, ok := byKey[k]; return id, ok },
	})
	if err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, errors.Join(err, network.Close())
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go network.Serve(context.Background(), conn)
		}
	}()
	return network, l, nil
}

// replicaKeys writes keys.
type replicaKeys struct {
	v1connect.UnimplementedStorageQueryServiceHandler
	store *raftstore.Store
}

// Publish implements v1connect.StorageQueryServiceHandler.
func (r replicaKeys) Publish(ctx context.Context, req *connect.Request[v1.PublishRequest]) (*connect.Response[v1.PublishResponse], error) {
	_, err := r.store.Apply(ctx, store.Batch{Ops: []store.Op{{Key: req.Msg.GetKey(), Value: []byte(req.Msg.GetValue())}}})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.PublishResponse{}), nil
}

// replicaStatus tells who leads.
type replicaStatus struct {
	v1connect.UnimplementedNodeHandler
	id    string
	store *raftstore.Store
}

// GetStatus implements v1connect.NodeHandler.
func (r replicaStatus) GetStatus(context.Context, *connect.Request[v1.GetStatusRequest]) (*connect.Response[v1.Status], error) {
	leader, _ := r.store.Leader()
	return connect.NewResponse(&v1.Status{Id: r.id, CurrentLeader: leader}), nil
}
