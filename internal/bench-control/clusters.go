// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/node/mesh"
)

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
