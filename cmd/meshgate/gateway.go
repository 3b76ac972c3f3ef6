// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/secrets"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/rtc"
	"github.com/meshgate/meshgate/turn"
	"github.com/meshgate/meshgate/web"
)

const (
	// turnTTL is how long a minted TURN credential opens allocations. A
	// session refreshes its own within minutes.
	turnTTL = 10 * time.Minute
	// relayLife is how long after its credential was minted a relay may be
	// open: the last request that its user can make lets it live for as long
	// again.
	relayLife = 2 * turnTTL
	// channelRate and channelBurst bound the negotiations of one identity.
	channelRate, channelBurst = 10, 40
	// tokenFile holds the admin token of a gateway inside its data directory,
	// tokensFile the hashes of all others unless --auth.tokens-file is set.
	// stateDir holds the state.
	tokenFile  = "admin.token"
	stateDir   = "state"
	tokensFile = "tokens"
)

// gatewayProcess is a running gateway: a node that holds state, TURN,
// signalling, and the API on a public port.
type gatewayProcess struct {
	cfg       *upConfig
	log       *slog.Logger
	parsed    parsedSettings
	address   netip.Addr // at which nodes and browsers reach us
	address6  netip.Addr // at which nodes do, too; invalid for none
	held      io.Closer  // keeps others out of the data directory; nil before
	token     string     // of the admin; empty when the operator gave tokens
	pin       string     // of a self-signed certificate
	public    net.Listener
	share     gateway.Share // that public has of the open files
	metrics   net.Listener
	registry  *prometheus.Registry
	tls       *gateway.TLS       // nil without
	passwords *gateway.Passwords // nil without
	secrets   *turn.Secrets
	turn      *turn.Server // nil without TURN
	turnUsers *turn.Users  // nil without --turn.users-file
	// secretFile and usersFile are the files of TURN, and again has a word when
	// they shall be read now.
	secretFile, usersFile followedFile
	again                 <-chan os.Signal
	// configText is the configuration file as it was read last, and configGone says
	// that it cannot be read; turnOpen are the networks that are open by it.
	configText []byte
	configGone bool
	turnOpen   []netip.Prefix
	turnRates  mintedRates

	store     *raftstore.Store
	shared    *secrets.Secrets // of the mesh
	cluster   *cluster         // nil for a gateway that is alone
	joiner    *joiner          // nil for a gateway that has its seat
	node      *node.Node
	signaling *signaling.Service
	icePort   uint16     // of DataChannels that end here
	iceAddr   netip.Addr // that the port is open on; unspecified: on all
	host      hostAddrs
	// stopEarly ends what answers before the gateway serves.
	stopEarly func()
	// turnTLS gets the connections of public that speak TURN; nil without TLS or
	// TURN.
	turnTLS *handedOver
	// tunnels are where nodes may go by way of TURN.
	tunnels tunnelPorts
	// relayUsers knows whom TURN credentials were given to, and departed which of
	// the nodes that others gave them to are gone.
	relayUsers *gateway.RelayUsers
	departed   departed
}

// newGatewayProcess opens everything that can fail, so that a wrong
// configuration is told before anything serves. run closes it.
func newGatewayProcess(ctx context.Context, c *upConfig, log *slog.Logger) (_ *gatewayProcess, err error) {
	p := &gatewayProcess{
		cfg: c, log: log, registry: newRegistry(), share: shareOf(openFiles(), log),
	}
	p.relayUsers = gateway.NewRelayUsers(relayLife, p.relayStranger)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.parsed, err = c.parse(); err != nil {
		return nil, err
	}
	if p.address, err = publicAddress(ctx, c); err != nil {
		return nil, err
	}
	p.address6 = publicIPv6(c, p.address)
	if err := p.readFiles(); err != nil {
		return nil, err
	}
	if p.held, err = hold(c.dataDir, "another gateway", log); err != nil {
		return nil, err
	}
	if err := p.loadToken(); err != nil {
		return nil, err
	}
	if _, err := p.tokens(nil); err != nil { // who the admin is, only the state knows
		return nil, err
	}
	var lc net.ListenConfig
	open := net.ListenConfig{Control: narrow}
	if p.public, err = open.Listen(ctx, "tcp", c.listen); err != nil {
		return nil, fmt.Errorf("listen for the API (--listen): %w", err)
	}
	if c.metricsListen != "" {
		if p.metrics, err = lc.Listen(ctx, "tcp", c.metricsListen); err != nil {
			return nil, fmt.Errorf("listen for metrics (--metrics.listen): %w", err)
		}
	}
	if err := p.openNode(ctx); err != nil {
		return nil, err
	}
	if err := p.openSignaling(); err != nil {
		return nil, err
	}
	if err := p.openTURN(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *gatewayProcess) openSignaling() error {
	udp, err := listenUDP(p.cfg.iceListen)
	if err != nil {
		return err
	}
	sessions := gateway.Sessions{SessionNode: p.node}
	p.signaling, err = signaling.New(signaling.Config{
		Self:       p.node.Self(),
		RTC:        p.rtcConfig(udp),
		Authorizer: sessions, Dialer: sessions, Peers: sessions.Others(), WireGuard: sessions.Device(),
		ICEServers: p.sessionServers, Candidate: p.candidate,
		OurICEHost: func(string) bool { return false }, // this gateway names servers, it takes none
		Logger:     p.log, Registerer: p.registry,
	})
	if err != nil {
		return err
	}
	p.icePort = p.signaling.LocalPort()
	p.iceAddr = udp.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return nil
}

// rtcConfig offers the addresses that clients can use: loopback in development,
// else every address of the host but those of the mesh, and the public one in
// place of a private one behind a 1:1 NAT. It asks those of clients that may be
// asked.
func (p *gatewayProcess) rtcConfig(udp net.PacketConn) rtc.Config {
	cfg := rtc.Config{UDP: udp, Loopback: p.cfg.dev, Reachable: true, Remote: p.mayCheck, Logger: p.log}
	if p.cfg.dev {
		return cfg
	}
	cfg.Local = func(a netip.Addr) bool {
		s := p.node.Snapshot()
		return s == nil || !s.Contains(a)
	}
	if !isOwnAddress(p.address) {
		cfg.PublicIPs = []string{p.address.String()}
	}
	return cfg
}

// run serves until told ends, or longer if there are relays that it waits for; onReady
// is called once everything answers.
func (p *gatewayProcess) run(told context.Context, onReady func() error) error {
	ctx, cancel, gotOver := p.outlast(told)
	defer cancel(nil)
	var watching sync.WaitGroup
	watching.Go(func() { p.watchState(ctx, cancel) })
	watching.Go(func() { p.followTURN(ctx, p.again) })
	handedOver := make(chan struct{})
	go func() {
		defer close(handedOver)
		<-ctx.Done()
		p.handOver(context.WithoutCancel(ctx))
	}()
	defer func() { cancel(nil); watching.Wait() }()
	p.stopEarly = p.answerEarly(ctx, earlyAfter)
	err := p.takeSeat(ctx)
	if err == nil {
		err = runNode(ctx, p.node, p.signaling, func(ctx context.Context) error { return p.serve(ctx, onReady) })
		p.signaling = nil // runNode has closed it
	}
	cancel(nil)
	p.stopEarly()
	<-handedOver
	gotOver()
	return errors.Join(p.whyEnded(err), p.close())
}

func (p *gatewayProcess) serve(ctx context.Context, onReady func() error) error {
	p.cfg.tellFixed(p.node.Snapshot(), p.log)
	p.parsed.tellOutside(p.node.Snapshot().IPv4, p.log)
	p.markMesh()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.shared.Run(ctx) })
	group.Go(func() error { return p.followPolicy(ctx) })
	group.Go(func() error {
		if err := p.announced(ctx); err != nil {
			return err
		}
		if err := p.learnSecrets(ctx, group); err != nil {
			return err
		}
		return p.serveAPI(ctx, group, onReady)
	})
	return group.Wait()
}

// serveAPI serves, and does beside it, in group, what a gateway that serves does.
func (p *gatewayProcess) serveAPI(ctx context.Context, group *errgroup.Group, onReady func() error) error {
	g, err := p.newGateway(ctx)
	if err != nil {
		return err
	}
	if err := p.leaveAccess(g); err != nil {
		return err
	}
	p.stopEarly()
	if p.cluster != nil {
		group.Go(func() error { return p.cluster.remember(ctx, p.node.Wait) })
	}
	group.Go(onReady)
	return g.Run(ctx)
}

// watchState ends the process when its state fails, also while it waits for the
// other gateways. A disk that fails or hangs is left to the supervisor: what is
// not acknowledged now can be asked for again after a restart.
func (p *gatewayProcess) watchState(ctx context.Context, end context.CancelCauseFunc) {
	select {
	case <-ctx.Done():
	case <-p.store.Failed():
		end(p.whyEnded(nil))
	}
}

// whyEnded is why the process ends, which is err unless its state failed: all else
// follows from that, and one reason is enough.
func (p *gatewayProcess) whyEnded(err error) error {
	select {
	case <-p.store.Failed():
		return stateAdvice(p.store.Err(), filepath.Join(p.cfg.dataDir, stateDir))
	default:
		return err
	}
}

func (p *gatewayProcess) newGateway(ctx context.Context) (*gateway.Gateway, error) {
	c := p.cfg
	console, built := web.Console()
	if !built {
		p.log.Warn("this binary has no web console; make build makes one that has")
	}
	listeners, err := listenMesh(ctx, p.node)
	if err != nil {
		return nil, err
	}
	access, err := p.accessIn(p.node.Snapshot(), p.shared)
	if err != nil {
		return nil, err
	}
	access.Authenticators = append([]gateway.Authenticator{gateway.NewNodeKeys(p.node)}, access.Authenticators...)
	p.departed.follow(p.node.Snapshot())
	access.Changed, access.OpenReflection = p.rightsChanged, c.dev
	cfg := gateway.Config{
		Node: p.node, Signaling: p.signaling, Build: build(),
		Public: p.listener(), TLS: p.tls, Mesh: listeners, Metrics: p.metrics, Console: console,
		Access: access,
		Limits: gateway.Limits{ChannelRate: channelRate, ChannelBurst: channelBurst, Connections: p.share.Connections, Intake: intakeOf(debug.SetMemoryLimit(-1))},
		Logger: p.log, Registerer: p.registry, Gatherer: p.registry,
	}
	cfg.RelayServers, cfg.Relays = p.relayServers, p.relays()
	if p.turnTLS != nil {
		cfg.TURN = p.turnTLS.hand
	}
	if p.turn != nil {
		cfg.Draining = p.turn.Draining
	}
	keeps := storage{p.store, p.node}
	cfg.Replicas, cfg.Store, cfg.Tokens = keeps, p.store, p.shared
	if p.cluster != nil {
		cfg.Cluster = keeps
	}
	if c.dev {
		cfg.Access.Hosts = []string{"localhost", "127.0.0.1", "::1"}
		cfg.Limits.ChannelRate = 0
	}
	return gateway.New(cfg)
}

// close ends what newGatewayProcess opened and run has not taken over.
func (p *gatewayProcess) close() error {
	var errs []error
	if p.signaling != nil {
		errs = append(errs, p.signaling.Close())
	}
	if p.turn != nil {
		errs = append(errs, p.turn.Close())
	}
	if p.node != nil {
		errs = append(errs, p.node.Close())
	}
	if p.joiner != nil {
		p.joiner.public.Close()
	}
	if p.cluster != nil { // the node has closed the state
		errs = append(errs, p.cluster.close())
	}
	for _, l := range []net.Listener{p.public, p.metrics} {
		if l == nil {
			continue
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if p.held != nil { // let go of last
		errs = append(errs, p.held.Close())
	}
	return errors.Join(errs...)
}

// portOf is the port in "host:port", or def when there is none or it is 0.
func portOf(address string, def uint16) uint16 {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return def
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return def
	}
	return uint16(n)
}

// hostPortURL joins a host and a port as URLs write them.
func hostPortURL(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
