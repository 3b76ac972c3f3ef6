// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/secrets"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/web"
)

// earlyAfter is how long a start may take before the gateway says, on its ports
// and in its log, what it waits for. Most are over by then, and their callers
// were better off waiting than being turned away.
const earlyAfter = 2 * time.Second

// answerEarly answers probes and callers from after on, until the returned
// function is called, which waits for the end of it and may be called again. A
// gateway that is alone waits for nobody; only its operators can ask then.
func (p *gatewayProcess) answerEarly(ctx context.Context, after time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		if pause(ctx, after) != nil {
			return
		}
		p.log.Warn("not serving yet", "err", p.waitsFor())
		early := &gateway.Early{Self: p.node.Self(), Reason: p.waitsFor, Gatherer: p.registry, Logger: p.log}
		if p.cluster != nil {
			early.Public, early.TLS = p.cluster.front.Loan(), p.tls
			early.Known = p.known(ctx, &running)
		}
		if l, ok := p.metrics.(*net.TCPListener); ok {
			early.Metrics = gateway.Loan(l)
		}
		if err := early.Run(ctx); err != nil {
			p.log.Warn("nothing answers until the gateway serves", "err", err)
		}
	})
	return func() { cancel(); running.Wait() }
}

// known is what the gateway may answer without the others; nil: nothing. State,
// tokens and roles in it are of one moment, until ctx ends.
func (p *gatewayProcess) known(ctx context.Context, running *sync.WaitGroup) *gateway.Known {
	held, err := p.store.Held()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			p.log.Warn("nothing is answered from the state until the gateway serves", "err", err)
		}
		return nil
	}
	entries, version, err := held.List(ctx, "")
	if err != nil {
		return nil // it cannot fail
	}
	s := registry.SnapshotOf(entries, version)
	if !s.Node(p.node.Self()).HoldsState() {
		return nil // it was no gateway of this mesh yet
	}
	shared := secrets.New(held, p.log)
	running.Go(func() { _ = shared.Run(ctx) }) // it ends with ctx only
	select {
	case <-shared.Ready():
	case <-ctx.Done():
		return nil
	}
	access, err := p.accessIn(s, shared)
	if err != nil {
		p.log.Warn("nobody can sign in until the gateway serves", "err", err)
		return nil
	}
	console, _ := web.Console()
	keeps := heldStorage{storage{p.store, p.node}, held}
	p.log.Info("answering from the state of the last time until this gateway serves", "n", version)
	return &gateway.Known{
		State: s, Keys: node.StoredKeys{Store: held}, Replicas: keeps, Cluster: keeps,
		Access: access, Build: build(), Console: console,
	}
}

// heldStorage is the cluster of a gateway that shows one moment: a backup is of
// that one, too, as are the rights by which it may be taken.
type heldStorage struct {
	storage
	held *raftstore.Held
}

// BackupStale implements api.Replicas.
func (s heldStorage) BackupStale(w io.Writer) error {
	_, err := s.held.Backup(w)
	return storageError(err)
}

// waitsFor is why the gateway does not serve yet.
func (p *gatewayProcess) waitsFor() error {
	if p.cluster != nil {
		if lacks := p.cluster.lacks.Load(); lacks != nil {
			return fmt.Errorf("%w: %s", mesh.ErrUnavailable, *lacks)
		}
	}
	if leader, _ := p.store.Leader(); leader != "" {
		if room := p.store.Room(); room == raftstore.RoomLow || room == raftstore.RoomNone {
			return fmt.Errorf("%w: the disk of this gateway is full, so that it does not get into the mesh, which gateway %s leads: make room in %s",
				mesh.ErrUnavailable, leader, p.cfg.dataDir)
		}
		return fmt.Errorf("%w: the gateway has not entered the mesh yet; gateway %s leads it", mesh.ErrUnavailable, leader)
	}
	self := string(p.node.Self())
	others := slices.DeleteFunc(p.store.Configured(), func(r raftstore.Replica) bool { return !r.Voter || r.ID == self })
	if len(others) == 0 {
		return fmt.Errorf("%w: waits for the state", mesh.ErrUnavailable)
	}
	var names []string
	for _, r := range others {
		names = append(names, fmt.Sprintf("%s (%s)", r.ID, r.Address))
	}
	return fmt.Errorf("%w: waits for a majority of the gateways: is it running, and in reach: %s?", mesh.ErrUnavailable, strings.Join(names, ", "))
}
