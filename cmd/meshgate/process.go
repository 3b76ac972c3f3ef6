// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// meshRPCPort is where a node serves RPCs on its mesh addresses: the default
// of v1 nodes.
const meshRPCPort = 8443

// nodeOptions are what a node that follows a gateway is made of.
type nodeOptions struct {
	config  node.Config
	gateway *peer.Public
	// trust is whom to believe of the gateways; zero: the authorities of the
	// system, and the keys that the mesh names.
	trust peer.TLSOptions
	// told is trust as the operator of this host may ask for it.
	told    *meshgatev1.GatewayTrust
	dataDir string
	// again joins anew, whatever dataDir says of an earlier membership.
	again bool
	// iceListen is the UDP address of DataChannels that end here.
	iceListen string
	// loopback offers loopback addresses as candidates, for a demo.
	loopback bool
	// metrics listens for operators; nil: no metrics are served.
	metrics net.Listener
	log     *slog.Logger
}

// nodeProcess is a running node behind a gateway: the node, its end of
// DataChannels, and the RPCs that it serves to the mesh.
type nodeProcess struct {
	node      *node.Node
	signaling *signaling.Service
	options   nodeOptions
	registry  *prometheus.Registry
	others    *otherGateways
}

// newRegistry holds the metrics of one process.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func newNodeProcess(o nodeOptions) (_ *nodeProcess, err error) {
	p := &nodeProcess{
		options: o, registry: newRegistry(),
		others: &otherGateways{id: o.config.ID, key: o.config.Key, first: o.gateway, trust: o.trust},
	}
	o.config.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: meshRPCPort}}
	o.config.Logger, o.config.Registerer = o.log, p.registry
	o.config.Follow = &node.Follow{
		Public:     o.gateway.Member(),
		Mesh:       func(at netip.AddrPort) node.Gateway { return p.node.Peers().Member(at) },
		Other:      p.others.client,
		MeshPairs:  func(at netip.AddrPort) node.PairGateway { return p.node.Peers().Pairs(at) },
		OtherPairs: p.others.pairs,
		Paths:      true,
		RelayTLS: func(uri string) *tls.Config {
			return p.others.relayTLS(p.node.Snapshot(), node.HostOf(uri))
		},
		DataDir: o.dataDir,
		Again:   o.again,
		Name:    o.gateway.URL(),
		Refused: peer.Refused,
		Removed: peer.Removed,

		Distrusted: peer.Distrusted,
		Explain:    explain,
	}
	if p.node, err = node.New(o.config); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.node.Close())
		}
	}()
	udp, err := listenUDP(o.iceListen)
	if err != nil {
		return nil, err
	}
	sessions := gateway.Sessions{SessionNode: p.node}
	p.signaling, err = signaling.New(signaling.Config{
		Self:       o.config.ID,
		RTC:        rtc.Config{UDP: udp, Loopback: o.loopback, Reachable: o.config.PrimaryEndpoint != "", Logger: o.log},
		Authorizer: sessions, Dialer: sessions, Peers: sessions.Others(), WireGuard: sessions.Device(),
		OurICEHost: p.gatewayHost, Paths: nodePaths{p.node},
		Logger: o.log, Registerer: p.registry,
	})
	return p, err
}

// foresee is why a node did not get what it needs of its host, which err says, or
// what the gateway would have said next to one that is no member yet: who gave a
// wrong token or URL shall not first look for another name of an interface.
func (o *nodeOptions) foresee(ctx context.Context, err error) error {
	if o.dataDir != "" && node.SavedID(o.dataDir) != "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, foreseePatience)
	defer cancel()
	_, no := o.gateway.Enrolment().GetChallenge(ctx, connect.NewRequest(&meshgatev1.GetChallengeRequest{Id: string(o.config.ID)}))
	switch {
	case no == nil, connect.CodeOf(no) == connect.CodeUnimplemented, connect.CodeOf(no) == connect.CodeNotFound: // of v1, too
		return err
	}
	return fmt.Errorf("join: %w", no)
}

// foreseePatience is how long the gateway may take for an answer of that kind.
const foreseePatience = 5 * time.Second

// nodePaths answers other nodes that look for a path to this one.
type nodePaths struct{ *node.Node }

// ServePaths implements signaling.PathSignals.
func (n nodePaths) ServePaths(ctx context.Context, from mesh.NodeID, channel signaling.PathStream) error {
	return n.AnswerPath(ctx, from, channel)
}

// gatewayHost reports whether host is a gateway of the mesh, or the one that
// this node joined at. Other STUN and TURN servers that a call names are not
// contacted.
func (p *nodeProcess) gatewayHost(host string) bool {
	if host == p.options.gateway.Host() {
		return true
	}
	s := p.node.Snapshot()
	if s == nil {
		return false
	}
	for _, o := range s.Nodes.All() {
		if o.ID == p.node.Self() || !o.HasFeature(v1.Feature_TURN_SERVER) {
			continue
		}
		if o.PrimaryEndpoint == host {
			return true
		}
		for _, e := range o.WireGuardEndpoints {
			if e.Addr().String() == host {
				return true
			}
		}
	}
	return false
}

// run serves until ctx ends. onReady, when set, is called once the node is in
// the mesh and answers there.
func (p *nodeProcess) run(ctx context.Context, onReady func() error) error {
	defer p.others.Close()
	err := runNode(ctx, p.node, p.signaling, func(ctx context.Context) error { return p.serve(ctx, onReady) })
	return errors.Join(err, p.node.Close())
}

// serve answers calls on the mesh.
func (p *nodeProcess) serve(ctx context.Context, onReady func() error) error {
	listeners, err := listenMesh(ctx, p.node)
	if err != nil {
		return err
	}
	local := p.openDoor(ctx)
	g, err := gateway.New(gateway.Config{
		Node: p.node, Signaling: p.signaling, Build: build(),
		Mesh: listeners, Metrics: p.options.metrics, Local: local, Exits: p.node,
		RelayServers: func(ctx context.Context, _ string) []*v1.ICEServer { return p.node.FreshRelayServers(ctx) },
		Trust:        p.options.told,
		Logger:       p.options.log, Registerer: p.registry, Gatherer: p.registry,
	})
	if err != nil {
		if local != nil {
			err = errors.Join(err, local.Close())
		}
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.Run(ctx) })
	if onReady != nil {
		group.Go(onReady)
	}
	return group.Wait()
}

// runNode runs n and, once it is in the mesh, serve beside it, until ctx ends
// or one of them does. The node ends last: calls and sessions that end use the
// mesh.
func runNode(ctx context.Context, n *node.Node, sessions *signaling.Service, serve func(context.Context) error) error {
	nodeCtx, stopNode := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNode()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() {
		err := n.Run(nodeCtx)
		cancel(errNodeStopped)
		ended <- err
	}()
	var err error
	select {
	case <-ctx.Done():
	case <-n.Ready():
		err = serve(ctx)
	}
	if err == nil || errors.Is(err, context.Canceled) {
		err = context.Cause(ctx) // says why, where serve knows only that
	}
	sessionsErr := sessions.Close()
	stopNode()
	nodeErr := <-ended
	if nodeErr != nil && errors.Is(err, errNodeStopped) {
		err = nil // why it stopped says it better
	}
	return errors.Join(err, sessionsErr, nodeErr)
}

// errNodeStopped says that the node ended by itself.
var errNodeStopped = errors.New("the node stopped")

// listenMesh opens the RPC port on each of the node's mesh addresses.
func listenMesh(ctx context.Context, n *node.Node) (_ []net.Listener, err error) {
	var out []net.Listener
	defer func() {
		if err != nil {
			for _, l := range out {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	self := n.Snapshot().Node(n.Self())
	port, _ := self.FeaturePort(v1.Feature_NODES)
	for _, addr := range self.Addrs() {
		l, err := n.Listen(ctx, "tcp", netip.AddrPortFrom(addr, port).String())
		if err != nil {
			return nil, fmt.Errorf("listen on the mesh: %w", err)
		}
		out = append(out, l)
	}
	return out, nil
}

// listenUDP opens the socket that all DataChannels of the process share.
func listenUDP(address string) (net.PacketConn, error) {
	at, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, usagef("UDP address %q: %w", address, err)
	}
	c, err := net.ListenUDP("udp", at)
	if err != nil {
		return nil, fmt.Errorf("listen for data channels: %w", err)
	}
	return c, nil
}

func build() api.Build { return api.Build{Version: version, Commit: commit, Date: date} }

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
