// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/store/raftstore"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/rtc"
	"github.com/meshgate/meshgate/turn"
	"github.com/meshgate/meshgate/web"
)

const (
	// turnTTL is how long a minted TURN credential opens allocations. A
	// session refreshes its own within minutes.
	turnTTL = 10 * time.Minute
	// channelRate and channelBurst bound the negotiations of one identity.
	channelRate, channelBurst = 10, 40
	// tokenFile holds the admin token of a gateway inside its data directory.
	tokenFile = "admin.token"
)

// gatewayProcess is a running gateway: a node that holds state, TURN,
// signalling, and the API on a public port.
type gatewayProcess struct {
	cfg       *upConfig
	log       *slog.Logger
	address   netip.Addr // at which nodes and browsers reach us
	token     string     // of the admin; empty when the operator gave tokens
	pin       string     // of a self-signed certificate
	public    net.Listener
	metrics   net.Listener
	registry  *prometheus.Registry
	secrets   *turn.Secrets
	turn      *turn.Server // nil without TURN
	store     *raftstore.Store
	node      *node.Node
	signaling *signaling.Service
}

// newGatewayProcess opens everything that can fail, so that a wrong
// configuration is told before anything serves. run closes it.
func newGatewayProcess(ctx context.Context, c *upConfig, log *slog.Logger) (_ *gatewayProcess, err error) {
	p := &gatewayProcess{cfg: c, log: log, registry: newRegistry()}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.address, err = publicAddress(ctx, c); err != nil {
		return nil, err
	}
	if c.dataDir != "" {
		if err := os.MkdirAll(c.dataDir, 0o700); err != nil {
			return nil, fmt.Errorf("make data directory: %w", err)
		}
	}
	if err := p.loadToken(); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	if p.public, err = lc.Listen(ctx, "tcp", c.listen); err != nil {
		return nil, fmt.Errorf("listen for the API (--listen): %w", err)
	}
	if c.metricsListen != "" {
		if p.metrics, err = lc.Listen(ctx, "tcp", c.metricsListen); err != nil {
			return nil, fmt.Errorf("listen for metrics (--metrics.listen): %w", err)
		}
	}
	if err := p.openNode(); err != nil {
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

// publicAddress is the address to advertise. A name is resolved once: records
// of nodes hold addresses.
func publicAddress(ctx context.Context, c *upConfig) (netip.Addr, error) {
	if c.publicAddress != "" {
		return netip.ParseAddr(c.publicAddress)
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", c.domain)
	if err != nil || len(found) == 0 {
		return netip.Addr{}, fmt.Errorf("resolve --domain %s (or give --public-address): %w", c.domain, err)
	}
	return found[0].Unmap(), nil
}

// loadToken reads the admin token, or makes one at the first start. With a
// token or password file of the operator's there is none.
func (p *gatewayProcess) loadToken() error {
	if p.cfg.tokensFile != "" || p.cfg.htpasswdFile != "" {
		return nil
	}
	if p.cfg.dataDir == "" {
		p.token = rand.Text()
		return nil
	}
	path := filepath.Join(p.cfg.dataDir, tokenFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		p.token = rand.Text()
		return node.WriteFile(path, []byte(p.token+"\n"))
	}
	if err != nil {
		return fmt.Errorf("read admin token: %w", err)
	}
	p.token = strings.TrimSpace(string(raw))
	return nil
}

func (p *gatewayProcess) openNode() error {
	c := p.cfg
	id, err := nodeID(c.id)
	if err != nil {
		return err
	}
	key, err := loadKey(c.dataDir)
	if err != nil {
		return err
	}
	mode, err := wireguardMode(c.wgMode)
	if err != nil {
		return err
	}
	exposed, err := parseExposes(c.expose)
	if err != nil {
		return err
	}
	routes, err := parseRoutes(c.routes)
	if err != nil {
		return err
	}
	state := ""
	if c.dataDir != "" {
		state = filepath.Join(c.dataDir, "state")
	}
	p.store, err = raftstore.Open(raftstore.Config{Dir: state, ID: string(id), Logger: p.log, Registerer: p.registry})
	if err != nil {
		return fmt.Errorf("open state: %w", err)
	}
	p.node, err = node.New(node.Config{
		ID: id, Key: key, Mode: mode, InterfaceName: c.wgInterface, ListenPort: c.wgPort, MTU: c.wgMTU,
		PrimaryEndpoint: p.address.String(), Features: p.features(), Expose: exposed, Routes: routes,
		Hold: &node.Hold{
			Store: p.store, CloseStore: p.store.Close, Admin: c.admin,
			Domain: strings.TrimSuffix(c.meshDomain, ".") + ".", IPv4: netip.MustParsePrefix(c.meshIPv4),
			AcceptByDefault: c.policy == "accept",
		},
		Logger: p.log, Registerer: p.registry,
	})
	if err != nil {
		return errors.Join(err, p.store.Close())
	}
	return nil
}

// features are what the gateway advertises to the mesh.
func (p *gatewayProcess) features() []mesh.Feature {
	list := []mesh.Feature{
		{Kind: v1.Feature_NODES, Port: meshRPCPort},
		{Kind: v1.Feature_MESH_API, Port: meshRPCPort},
		{Kind: v1.Feature_MEMBERSHIP, Port: meshRPCPort},
		{Kind: v1.Feature_ICE_NEGOTIATION, Port: meshRPCPort},
	}
	if p.cfg.turnListen != "" {
		list = append(list, mesh.Feature{Kind: v1.Feature_TURN_SERVER, Port: portOf(p.cfg.turnListen, 3478)})
	}
	return list
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
		ICEServers: p.iceServers,
		OurICEHost: func(string) bool { return false }, // this gateway names servers, it takes none
		Logger:     p.log, Registerer: p.registry,
	})
	return err
}

// rtcConfig offers the addresses that clients can use: loopback in development,
// else every address of the host but those of the mesh, and the public one in
// place of a private one behind a 1:1 NAT.
func (p *gatewayProcess) rtcConfig(udp net.PacketConn) rtc.Config {
	cfg := rtc.Config{UDP: udp, Loopback: p.cfg.dev, Logger: p.log}
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

func (p *gatewayProcess) openTURN(ctx context.Context) error {
	c := p.cfg
	if c.turnListen == "" {
		return nil
	}
	var secret []byte
	if c.turnSecretFile != "" {
		raw, err := os.ReadFile(c.turnSecretFile)
		if err != nil {
			return fmt.Errorf("read TURN secret: %w", err)
		}
		if secret = bytes.TrimSpace(raw); len(secret) == 0 {
			return usagef("--turn.secret-file %s is empty", c.turnSecretFile)
		}
	}
	var err error
	if p.secrets, err = turn.NewSecrets(secret, nil); err != nil {
		return fmt.Errorf("TURN secret: %w", err)
	}
	low, high, err := portRange(c.turnPorts)
	if err != nil {
		return err
	}
	udp, tcp, err := listenTURN(ctx, c.turnListen)
	if err != nil {
		return err
	}
	relay := turn.Relay{Public: p.address, MinPort: low, MaxPort: high}
	if isOwnAddress(p.address) {
		relay.Bind = p.address
	}
	p.turn, err = turn.New(turn.Config{
		PacketConns: []net.PacketConn{udp}, Listeners: []net.Listener{tcp},
		Relay: relay, Secrets: p.secrets, AllowPeer: p.allowPeer,
		Logger: p.log, Registerer: p.registry,
	})
	if err != nil {
		return fmt.Errorf("start TURN: %w", err)
	}
	return nil
}

// listenTURN opens one port for both transports. Port 0 takes a free one.
func listenTURN(ctx context.Context, address string) (net.PacketConn, net.Listener, error) {
	var lc net.ListenConfig
	const tries = 8 // a port that is free for TCP may be taken for UDP
	for try := 1; ; try++ {
		tcp, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, nil, fmt.Errorf("listen for TURN (--turn.listen): %w", err)
		}
		host, _, _ := net.SplitHostPort(address)
		port := strconv.Itoa(tcp.Addr().(*net.TCPAddr).Port)
		udp, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(host, port))
		if err == nil {
			return udp, tcp, nil
		}
		if _, want, _ := net.SplitHostPort(address); want != "0" || try == tries {
			return nil, nil, errors.Join(fmt.Errorf("listen for TURN (--turn.listen): %w", err), tcp.Close())
		}
		if err := tcp.Close(); err != nil {
			return nil, nil, err
		}
	}
}

// allowPeer lets relayed traffic reach the one special address that sessions
// need: the gateway's own end of DataChannels.
func (p *gatewayProcess) allowPeer(_ string, at netip.AddrPort) bool {
	return at.Port() == p.signaling.LocalPort() && (at.Addr() == p.address || isOwnAddress(at.Addr()))
}

// iceServers are this gateway's STUN and TURN with credentials for caller.
func (p *gatewayProcess) iceServers(_ context.Context, caller string) []*v1.ICEServer {
	if p.turn == nil {
		return nil
	}
	at := netip.AddrPortFrom(p.address, p.turn.UDPAddrs()[0].Port()).String()
	credential := p.secrets.Mint(caller, turnTTL)
	return []*v1.ICEServer{
		{Urls: []string{"stun:" + at}},
		{
			Urls:     []string{"turn:" + at + "?transport=udp", "turn:" + at + "?transport=tcp"},
			Username: credential.Username, Credential: credential.Password,
			ExpiresAt: timestamppb.New(credential.ExpiresAt),
		},
	}
}

// run serves until ctx ends; onReady is called once everything answers.
func (p *gatewayProcess) run(ctx context.Context, onReady func() error) error {
	nodeDone := make(chan error, 1)
	nodeCtx, stopNode := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNode()
	go func() { nodeDone <- p.node.Run(nodeCtx) }()
	err := p.serve(ctx, nodeDone, onReady)
	// The node goes last: calls and sessions that end use the mesh.
	sessionsErr := p.signaling.Close()
	p.signaling = nil
	stopNode()
	return errors.Join(err, sessionsErr, <-nodeDone, p.close())
}

func (p *gatewayProcess) serve(ctx context.Context, nodeDone chan error, onReady func() error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-nodeDone:
		nodeDone <- nil
		return err
	case <-p.node.Ready():
	}
	g, err := p.newGateway(ctx)
	if err != nil {
		return err
	}
	if err := p.leaveAccess(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.Run(ctx) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-p.store.Failed():
			// A disk that fails or hangs is left to the supervisor: what is not
			// acknowledged now can be asked for again after a restart.
			return fmt.Errorf("the state cannot be kept: %w", p.store.Err())
		case err := <-nodeDone:
			nodeDone <- nil
			return errors.Join(errors.New("the node stopped"), err)
		}
	})
	group.Go(onReady)
	return group.Wait()
}

func (p *gatewayProcess) newGateway(ctx context.Context) (*gateway.Gateway, error) {
	c := p.cfg
	console, built := web.Console()
	if !built {
		p.log.Warn("this binary has no web console; make build makes one that has")
	}
	authenticators, err := p.authenticators()
	if err != nil {
		return nil, err
	}
	listeners, err := listenMesh(ctx, p.node)
	if err != nil {
		return nil, err
	}
	cfg := gateway.Config{
		Node: p.node, Signaling: p.signaling, Build: build(),
		Public: p.public, Mesh: listeners, Metrics: p.metrics, Console: console,
		Access: gateway.Access{Authenticators: authenticators, Origins: c.origins, OpenReflection: c.dev},
		Limits: gateway.Limits{ChannelRate: channelRate, ChannelBurst: channelBurst},
		Logger: p.log, Registerer: p.registry, Gatherer: p.registry,
	}
	if c.dev {
		cfg.Access.Hosts = []string{"localhost", "127.0.0.1", "::1"}
		cfg.Limits.ChannelRate = 0
	}
	if !c.tlsOff {
		cfg.TLS = &gateway.TLS{CertFile: c.tlsCert, KeyFile: c.tlsKey}
		if c.tlsCert == "" {
			if c.dataDir == "" {
				return nil, usagef("a self-signed certificate is kept in --data-dir; give one, or --tls.cert-file")
			}
			cfg.TLS.SelfSignedDir = filepath.Join(c.dataDir, "tls")
			cfg.TLS.Names = []string{p.address.String()}
			if c.domain != "" {
				cfg.TLS.Names = append(cfg.TLS.Names, c.domain)
			}
		}
	}
	return gateway.New(cfg)
}

func (p *gatewayProcess) authenticators() ([]gateway.Authenticator, error) {
	c := p.cfg
	fixed := map[string]string{}
	if p.token != "" {
		fixed[p.token] = c.admin
	}
	tokens, err := gateway.NewTokens(fixed, c.tokensFile, p.log)
	if err != nil {
		return nil, err
	}
	list := []gateway.Authenticator{tokens}
	if c.htpasswdFile != "" {
		passwords, err := gateway.NewPasswords(c.htpasswdFile, p.log)
		if err != nil {
			return nil, err
		}
		list = append(list, passwords)
	}
	return list, nil
}

// leaveAccess tells the commands on this host how to reach the gateway.
func (p *gatewayProcess) leaveAccess() error {
	if p.cfg.dataDir == "" {
		return nil
	}
	if !p.cfg.tlsOff && p.cfg.tlsCert == "" {
		pin, err := pinOf(filepath.Join(p.cfg.dataDir, "tls"))
		if err != nil {
			return err
		}
		p.pin = pin
	}
	a := p.access()
	a.URL = p.localURL()
	return a.writeLocal(p.cfg.dataDir)
}

// access is how a client reaches this gateway as its admin.
func (p *gatewayProcess) access() *access {
	return &access{URL: p.url(), Token: p.token, Pin: p.pin}
}

// url is the API as clients see it.
func (p *gatewayProcess) url() string {
	if p.cfg.publicURL != "" {
		return p.cfg.publicURL
	}
	host := cmp.Or(p.cfg.domain, p.address.String())
	return p.schemeURL(host)
}

// localURL is the API from this host.
func (p *gatewayProcess) localURL() string {
	at := p.public.Addr().(*net.TCPAddr).AddrPort().Addr()
	if at.IsUnspecified() {
		at = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return p.schemeURL(at.Unmap().String())
}

func (p *gatewayProcess) schemeURL(host string) string {
	scheme := "https"
	if p.cfg.tlsOff {
		scheme = "http"
	}
	u := url.URL{Scheme: scheme, Host: hostPortURL(host, uint16(p.public.Addr().(*net.TCPAddr).Port))}
	return u.String()
}

// ready is the line for --output json.
func (p *gatewayProcess) ready() ready {
	r := ready{Event: "ready", URL: p.url(), Token: p.token}
	if p.metrics != nil {
		r.Metrics = "http://" + p.metrics.Addr().String() + "/metrics"
	}
	if p.turn != nil {
		r.TURN = netip.AddrPortFrom(p.address, p.turn.UDPAddrs()[0].Port()).String()
	}
	self := p.node.Snapshot().Nodes[p.node.Self()]
	if addrs := self.Addrs(); len(addrs) > 0 {
		r.Nodes = []readyNode{{ID: string(self.ID), Address: addrs[0].String()}}
	}
	return r
}

// printReady tells a person where the gateway is and how to get in.
func (a *app) printReady(p *gatewayProcess) error {
	fmt.Fprintf(a.stdout, "Gateway %s is up: %s\n", p.node.Self(), p.url())
	switch {
	case p.cfg.dev:
		fmt.Fprintf(a.stdout, "Open   %s\n", consoleURL(p.url(), p.token))
	case p.token != "":
		fmt.Fprintf(a.stdout, "The admin token is in %s\n", filepath.Join(p.cfg.dataDir, tokenFile))
	}
	if p.pin != "" {
		fmt.Fprintf(a.stdout, "The certificate is self-signed; clients believe it with --pin %s\n", p.pin)
	}
	return nil
}

// consoleURL signs in to the console. The token is in the fragment, which no
// browser sends to a server.
func consoleURL(base, token string) string { return base + "/#token=" + token }

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
	for _, l := range []net.Listener{p.public, p.metrics} {
		if l == nil {
			continue
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// pinOf reads the pin of the self-signed certificate in dir.
func pinOf(dir string) (string, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls-cert.pem"), filepath.Join(dir, "tls-key.pem"))
	if err != nil {
		return "", fmt.Errorf("read self-signed certificate: %w", err)
	}
	return fmt.Sprintf("sha256:%x", peer.PinOf(pair.Leaf)), nil
}

// isOwnAddress reports whether an interface of this host has addr.
func isOwnAddress(addr netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr.Unmap() {
			return true
		}
	}
	return false
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

// portRange reads "A-B".
func portRange(text string) (low, high uint16, err error) {
	a, b, ok := strings.Cut(text, "-")
	if ok {
		var x, y uint64
		x, err = strconv.ParseUint(a, 10, 16)
		if err == nil {
			y, err = strconv.ParseUint(b, 10, 16)
		}
		if err == nil && x > 0 && x <= y {
			return uint16(x), uint16(y), nil
		}
	}
	return 0, 0, usagef("--turn.relay-ports %q: want a range such as 49152-65535", text)
}

// hostPortURL joins a host and a port as URLs write them.
func hostPortURL(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
