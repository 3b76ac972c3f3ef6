// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

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

// minCompress is the size from which gateways compress answers, in bytes.
const minCompress = 1 << 10

// replicaReady is where a replica is reached: by the others, and by clients.
type replicaReady struct{ ID, Raft, API string }

// runReplica keeps the state that a gateway keeps, over the network that
// gateways have between them, and serves nothing but writes of keys. For each
// other replica that comes as a line of JSON it makes it a voter.
func runReplica(c replicaConfig) error {
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
	server := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	defer server.Close()
	go func() { _ = server.Serve(l) }()
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

// startReplicas starts a cluster of n replicas.
func startReplicas(ctx context.Context, b binaries, n int) (p processes, targets []target, err error) {
	defer func() {
		if err != nil {
			p.end()
		}
	}()
	private, keys := make([]string, n), map[string]string{}
	for i := range private {
		key, err := mesh.GenerateKey()
		if err != nil {
			return p, nil, err
		}
		private[i], keys[replicaName(i)] = key.Encode(), key.Public().Encode()
	}
	for i := range n {
		c := replicaConfig{ID: replicaName(i), Dir: filepath.Join(b.dir, replicaName(i)), Key: private[i], Keys: keys, Join: i > 0}
		var ready replicaReady
		one, err := startRole(ctx, roleReplica, c, &ready)
		if err != nil {
			return p, nil, err
		}
		p, targets = append(p, one), append(targets, target{ID: ready.ID, URL: ready.API})
		if i == 0 {
			continue
		}
		if err := errors.Join(p[0].Send(ready), p[0].Receive(ctx, new(bool))); err != nil {
			return p, nil, fmt.Errorf("add replica %d: %w: %s", i, err, p[0].Stderr())
		}
	}
	return p, targets, nil
}

func replicaName(i int) string { return fmt.Sprintf("replica-%d", i) }

// startGateways starts a cluster of n gateways.
func startGateways(ctx context.Context, b binaries, n int) (p processes, targets []target, err error) {
	defer func() {
		if err != nil {
			p.end()
		}
	}()
	tokens := filepath.Join(b.dir, "tokens-of-cluster")
	token := filepath.Join(b.dir, "token-of-admin")
	if err := errors.Join(writeTokens(tokens, admin), os.WriteFile(token, []byte(tokenOf(admin)), 0o600)); err != nil {
		return nil, nil, err
	}
	for i := range n {
		id, host := fmt.Sprintf("gateway-%d", i), fmt.Sprintf("127.0.0.%d", 10+i)
		var extra []string
		if i == 0 {
			port, err := freePort(host)
			if err != nil {
				return p, nil, err
			}
			extra = []string{"--cluster.address", net.JoinHostPort(host, port), "--listen", net.JoinHostPort(host, port)}
		} else {
			pin, err := pinOf(filepath.Join(b.dir, "gateway-0"))
			if err != nil {
				return p, nil, err
			}
			extra = []string{"--cluster.join", targets[0].URL, "--cluster.pin", pin, "--cluster.token-file", token}
		}
		one, address, err := startGateway(ctx, b, id, host, tokens, extra...)
		if err != nil {
			return p, nil, err
		}
		if i == 0 {
			address = extra[1]
		}
		p, targets = append(p, one), append(targets, target{ID: id, URL: "https://" + address})
	}
	return p, targets, nil
}

// pinOf reads the pin of a gateway from what it leaves for the commands of its
// host.
func pinOf(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "local.json"))
	if err != nil {
		return "", err
	}
	var local struct{ Pin string }
	err = json.Unmarshal(raw, &local)
	return local.Pin, err
}

// startEtcd starts a cluster of n members of etcd.
func startEtcd(ctx context.Context, b binaries, n int) (p processes, targets []target, err error) {
	defer func() {
		if err != nil {
			p.end()
		}
	}()
	type member struct{ Name, Dir, Client, Peer, Cluster string }
	members, cluster := make([]member, n), ""
	for i := range members {
		client, err1 := freePort("127.0.0.1")
		peer, err2 := freePort("127.0.0.1")
		if err := errors.Join(err1, err2); err != nil {
			return nil, nil, err
		}
		name := fmt.Sprintf("etcd-%d", i)
		members[i] = member{Name: name, Dir: filepath.Join(b.dir, name), Client: "http://127.0.0.1:" + client, Peer: "http://127.0.0.1:" + peer}
		if i > 0 {
			cluster += ","
		}
		cluster += name + "=" + members[i].Peer
	}
	p, targets = make(processes, n), make([]target, n)
	var group errgroup.Group // none is ready before most are
	for i, m := range members {
		m.Cluster = cluster
		group.Go(func() (err error) {
			targets[i] = target{ID: m.Name, URL: m.Client}
			p[i], err = startProgram(ctx, b.etcd, "member", m)
			return err
		})
	}
	err = group.Wait()
	return started(p), targets, err
}

// started are the processes that are there.
func started(p processes) (there processes) {
	for _, one := range p {
		if one != nil {
			there = append(there, one)
		}
	}
	return there
}
