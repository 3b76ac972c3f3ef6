// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store/raftstore"
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
		early := &gateway.Early{Reason: p.waitsFor, Gatherer: p.registry, Logger: p.log}
		if p.cluster != nil {
			early.Public, early.TLS = p.cluster.front.Loan(), p.tls
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

// waitsFor is why the gateway does not serve yet.
func (p *gatewayProcess) waitsFor() error {
	if leader, _ := p.store.Leader(); leader != "" {
		return fmt.Errorf("%w: the gateway has not entered the mesh yet; gateway %s leads it", mesh.ErrUnavailable, leader)
	}
	now, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // has ended: what others know is not waited for
	cancel()
	self := string(p.node.Self())
	others := slices.DeleteFunc(p.store.Members(now), func(r raftstore.Replica) bool { return !r.Voter || r.ID == self })
	if len(others) == 0 {
		return fmt.Errorf("%w: waits for the state", mesh.ErrUnavailable)
	}
	var names []string
	for _, r := range others {
		names = append(names, fmt.Sprintf("%s (%s)", r.ID, r.Address))
	}
	return fmt.Errorf("%w: waits for a majority of the gateways: is it running, and in reach: %s?", mesh.ErrUnavailable, strings.Join(names, ", "))
}
