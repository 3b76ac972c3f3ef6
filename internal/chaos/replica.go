// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/raftstore"
)

// replicaConfig is what a replica is told, as JSON in its environment.
type replicaConfig struct {
	ID  string
	Dir string
	// Address is where the other replicas reach this one, Serve where clients do.
	Address, Serve string
	Join           bool
	Key            string
	Keys           map[string]string // public, of all replicas
	// StaleReads leaves out what makes reads linearizable: the run must fail.
	StaleReads bool
}

// runReplica is the program of a replica: the store of a gateway, on the
// network of a gateway and its public port, with the default settings, except
// that snapshots are more frequent. In place of the API it serves the store to
// clients as lines of JSON: no call of the API writes plain keys under a
// condition. Like a gateway it ends when the store can keep no promise any
// more; it also ends with its standard input.
func runReplica(cfg replicaConfig) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	keys, self, err := cfg.parse()
	if err != nil {
		return err
	}
	replicas, err := peer.NewReplicas(peer.ReplicasConfig{
		Key: self,
		KeyOf: func(id mesh.NodeID) (mesh.PublicKey, bool) {
			key, ok := keys[id]
			return key, ok
		},
		NodeOf: func(key mesh.PublicKey) (mesh.NodeID, bool) {
			for id, k := range keys {
				if k == key {
					return id, true
				}
			}
			return "", false
		},
		Logger: log,
	})
	if err != nil {
		return err
	}
	public, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return err
	}
	front := gateway.NewFront(context.Background(), public, nil, gateway.ShareOf(0), map[string]func(context.Context, net.Conn){peer.ReplicaProtocol: replicas.Serve})
	if err := front.Listener().Close(); err != nil { // there is no API
		return err
	}
	s, err := raftstore.Open(raftstore.Config{
		Dir: cfg.Dir, ID: cfg.ID, Network: replicas, Address: cfg.Address, Join: cfg.Join, Logger: log,
		// Often enough that replicas are killed while they take a snapshot, and
		// get one because the log that they miss is gone.
		SnapshotThreshold: 1000, TrailingLogs: 200, SnapshotInterval: 3 * time.Second,
	})
	if err != nil {
		return err
	}
	clients, err := net.Listen("tcp", cfg.Serve)
	if err != nil {
		return err
	}
	server := &replicaServer{store: s, stale: cfg.StaleReads}
	go server.accept(clients)
	orphaned := make(chan struct{})
	go func() {
		defer close(orphaned)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	select {
	case <-s.Failed():
		return s.Err() // at once: nothing here has to be saved
	case <-orphaned:
		return s.Close()
	}
}

// parse reads the keys.
func (c *replicaConfig) parse() (map[mesh.NodeID]mesh.PublicKey, mesh.PrivateKey, error) {
	keys := map[mesh.NodeID]mesh.PublicKey{}
	for id, encoded := range c.Keys {
		key, err := mesh.ParsePublicKey(encoded)
		if err != nil {
			return nil, mesh.PrivateKey{}, fmt.Errorf("key of %s: %w", id, err)
		}
		keys[mesh.NodeID(id)] = key
	}
	self, err := mesh.ParsePrivateKey(c.Key)
	return keys, self, err
}

// replicaServer answers clients.
type replicaServer struct {
	store *raftstore.Store
	stale bool
}

func (s *replicaServer) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go s.serve(conn)
		}
	}
}

func (s *replicaServer) serve(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxLine)
	out := json.NewEncoder(conn)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return
		}
		if out.Encode(s.answer(r)) != nil {
			return
		}
	}
}

func (s *replicaServer) answer(r request) response {
	ctx, cancel := context.WithTimeout(context.Background(), r.Within)
	defer cancel()
	switch r.Verb {
	case verbGet:
		return s.get(ctx, r.Key)
	case verbPut:
		batch := store.Batch{Ops: []store.Op{{Key: r.Key, Value: []byte(r.Value), Delete: r.Delete}}}
		if r.Swap {
			batch.If = []store.Condition{{Key: r.Key, Version: r.If}}
		}
		version, err := s.store.Apply(ctx, batch)
		return response{Status: statusOf(err), Version: version, Error: text(err)}
	case verbLeader:
		leader, _ := s.store.Leader()
		return response{Status: statusOK, Value: leader}
	case verbTransfer:
		err := s.store.Transfer(ctx, r.Key)
		return response{Status: statusOf(err), Error: text(err)}
	case verbAdd:
		err := s.store.AddVoter(ctx, r.Key, r.Value)
		return response{Status: statusOf(err), Error: text(err)}
	}
	return response{Status: statusRefused, Error: "unknown verb " + r.Verb}
}

func (s *replicaServer) get(ctx context.Context, key string) response {
	if !s.stale {
		if err := s.store.Sync(ctx); err != nil {
			return response{Status: statusRefused, Error: err.Error()}
		}
	}
	entry, err := s.store.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return response{Status: statusRefused, Error: err.Error()}
	}
	return response{Status: statusOK, Value: string(entry.Value), Version: entry.Version}
}

// statusOf believes the store: what does not say that it is uncertain was not
// done.
func statusOf(err error) string {
	switch {
	case err == nil:
		return statusOK
	case errors.Is(err, store.ErrUncertain):
		return statusUnknown
	case errors.Is(err, store.ErrConflict):
		return statusConflict
	default:
		return statusRefused
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
