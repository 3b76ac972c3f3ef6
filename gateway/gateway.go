// SPDX-License-Identifier: Apache-2.0

// Package gateway is the network face of a node: it listens, tells who calls,
// decides what they may do, and hands the call to gateway/api.
//
// One public port serves the console and the RPC services in the Connect,
// gRPC, gRPC-web and grpc-websockets protocols. The mesh listeners serve the
// RPC services to members, which are known by the address that WireGuard
// authenticated. Whatever no rule allows is denied.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/gateway/gather"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// maxLocalConnections bounds those of this host's operator; more wait.
const maxLocalConnections = 64

// drainTimeout is how long calls under way may go on after Run was told to end.
const drainTimeout = 10 * time.Second

// strangersRate and strangersBurst bound the log records, per second, of calls
// without valid credentials: some tell who tries, more only fill the disk.
const (
	strangersRate  = 1
	strangersBurst = 10
)

// Node is what the gateway asks the node that it belongs to; *node.Node is one.
type Node interface {
	api.State
	api.Members
	api.Objects
	api.Keys
	api.Links
	api.Remote
	api.Ways
	api.RemoteWays
	api.PairPlans
	// Healthy is nil while the node serves; the error says what it waits for.
	Healthy() error
}

// Config says what the gateway serves, where and to whom.
type Config struct {
	// Node and Signaling are required.
	Node      Node
	Signaling api.Signaling
	// Cluster is the nodes that keep the state of the mesh; nil: this one alone.
	Cluster api.Cluster
	// Replicas changes which they are; nil on a node that keeps no state.
	Replicas api.Replicas
	// Store is the state itself; nil on a node that keeps none.
	Store api.Store
	// Tokens are those that count at every gateway; nil likewise.
	Tokens api.Tokens
	// RelayServers mints STUN and TURN servers for a node that takes part in
	// pairs or a user that looks at its network, and for nobody ("") those of STUN;
	// nil: there are none. It may ask api.CallerFrom.
	RelayServers func(ctx context.Context, node string) []*v1.ICEServer
	// Relays is the TURN server of this gateway, for operators; nil: it has none.
	Relays api.Relays
	// Draining reports whether new work should go to other gateways, because this one
	// ends when what it has here is over; until then it serves as before. nil: it
	// ends as soon as Run is told to.
	Draining func() bool
	// Trust is whom the node believes at gateways, for the operator who calls on
	// Local; nil: it was told nobody.
	Trust *meshgatev1.GatewayTrust
	// Build is what Node.GetStatus shows of the program.
	Build api.Build

	// Public is the TCP listener for everybody; nil: none.
	Public net.Listener
	// TLS secures Public; nil serves HTTP and cleartext HTTP/2.
	TLS *TLS
	// TURN takes over those connections of a Public with TLS that speak TURN;
	// nil: none do. It owns the connection and may block.
	TURN func(net.Conn)
	// Mesh are listeners on the node's mesh addresses. Who connects to them is
	// the node that the snapshot says has the source address.
	Mesh []net.Listener
	// Exits is how the node uses an exit; nil: it cannot use one.
	Exits api.Exits
	// Local is a listener that only the operator of this node can connect to, such
	// as a socket of the file system. Who does reads what this node knows and has it
	// ping others, without credentials, and nothing else. Nil: none.
	Local net.Listener
	// Metrics is the listener for /metrics and health, for operators only: it
	// asks for no credentials. Nil: none.
	Metrics net.Listener
	// Console holds the files of the web console, index.html at its root; nil: none.
	Console fs.FS

	// Access says who may come in.
	Access Access
	// Limits bound what callers may use; zero fields mean their defaults.
	Limits Limits

	// Logger gets one record per call; nil discards them.
	Logger *slog.Logger
	// Registerer takes the metrics; nil leaves them unregistered.
	Registerer prometheus.Registerer
	// Gatherer is what /metrics shows; nil: the default one.
	Gatherer prometheus.Gatherer
}

// Access says who may come in on the public listener.
type Access struct {
	// Authenticators check credentials, in this order. None: only public
	// procedures (health) are served to callers outside the mesh.
	Authenticators []Authenticator
	// Changed is called when credentials or roles may have changed, at most
	// every two seconds and never twice at once: what calls left behind, such
	// as sessions, has to be asked for its api.Caller.Allowed. Nil: nothing is
	// left behind.
	Changed func()
	// Origins are the web origins, "https://host[:port]", whose pages may call
	// beside the gateway's own; exact, without wildcards.
	Origins []string
	// Hosts are the values of the Host header that are served, without port;
	// empty: all. A gateway on loopback needs it, because a page can make its
	// own name resolve to 127.0.0.1 (DNS rebinding).
	Hosts []string
	// TrustedProxies are the networks of proxies in front of Public. A request
	// from them comes from whom their X-Forwarded-For names, and only from
	// them is the header read. Empty: nobody is believed.
	TrustedProxies []netip.Prefix
	// OpenReflection serves gRPC reflection to everybody, for development.
	// Otherwise it needs a role that grants everything.
	OpenReflection bool
}

// Limits bound what one caller may use.
type Limits struct {
	// ChannelRate is how many StartDataChannel and StartSignalChannel calls an
	// identity may begin per second, and ChannelBurst how many at once. A zero
	// rate switches the limit off.
	ChannelRate  float64
	ChannelBurst int
	// Streams is how many streaming calls an identity may have open; 0 means
	// 256. Gateways that relay for others are not counted.
	Streams int
	// Sockets is how many of them may be in WebSockets; 0 means 64.
	Sockets int
	// Connections is how many TCP connections the public listener keeps, and
	// each mesh listener; 0 means 16384. When the public ones are taken, those on
	// which nobody has shown credentials make room for new ones.
	Connections int
	// NetworkConnections is how many of the public ones may come from one IPv4
	// address or IPv6 /64; 0 means a quarter of Connections, and at least 64.
	// Trusted proxies are not counted.
	NetworkConnections int
	// MemberConnections is how many connections to the mesh listeners a node
	// may hold; 0 means 64. Nodes speak HTTP/2, and need one or two.
	MemberConnections int
	// Intake is how many bytes of messages may be unpacked and decoded at a time,
	// of all calls together; 0 means 64 MiB. More wait, for a moment, or are
	// refused.
	Intake int64
}

// setDefaults replaces zero fields.
func (l *Limits) setDefaults() {
	for field, value := range map[*int]int{
		&l.Streams: 256, &l.Sockets: 64, &l.Connections: maxConnections, &l.MemberConnections: 64,
	} {
		if *field == 0 {
			*field = value
		}
	}
	if l.NetworkConnections == 0 {
		l.NetworkConnections = networkShare(l.Connections)
	}
	if l.Intake == 0 {
		l.Intake = defaultIntake
	}
}

// Validate says what in c can never work, naming the field.
func (c *Config) Validate() error {
	switch {
	case c.Node == nil:
		return errors.New("gateway: Config.Node is nil")
	case c.Signaling == nil:
		return errors.New("gateway: Config.Signaling is nil")
	case c.Public == nil && (c.TLS != nil || c.TURN != nil):
		return errors.New("gateway: Config.TLS and Config.TURN need Config.Public")
	case c.TURN != nil && c.TLS == nil:
		return errors.New("gateway: Config.TURN shares the port of Config.TLS, which is nil")
	case c.Limits.ChannelRate < 0 || min(c.Limits.ChannelBurst, c.Limits.Streams, c.Limits.Sockets, c.Limits.Connections, c.Limits.NetworkConnections, c.Limits.MemberConnections) < 0, c.Limits.Intake < 0:
		return errors.New("gateway: a field of Config.Limits is negative")
	case c.Limits.ChannelRate > 0 && c.Limits.ChannelBurst == 0:
		return errors.New("gateway: Config.Limits.ChannelRate without ChannelBurst lets nobody in")
	}
	if err := CheckOrigins(c.Access.Origins); err != nil {
		return fmt.Errorf("gateway: allowed %w", err)
	}
	if slices.Contains(c.Access.Hosts, "") {
		return errors.New("gateway: an allowed host is empty")
	}
	for _, p := range c.Access.TrustedProxies {
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
			return fmt.Errorf("gateway: trusted proxies %s: write a network as 192.0.2.0/24, a single address as 192.0.2.1/32", p)
		}
	}
	if c.TLS != nil {
		return c.TLS.Validate()
	}
	return nil
}

// CheckOrigins refuses what Access.Origins cannot be.
func CheckOrigins(origins []string) error {
	for _, o := range origins {
		u, err := url.Parse(o)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || o != u.Scheme+"://"+u.Host {
			return fmt.Errorf("origin %q: write it as https://host[:port], without path and wildcards", o)
		}
	}
	return nil
}

// Gateway serves a node's APIs. Make one with New, run it with Run.
type Gateway struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	rules   map[string]rule
	errors  *connect.ErrorWriter
	tls     *certificates // nil without TLS

	channels *buckets // one per identity; nil: no limit
	writes   *buckets // one per identity
	volumes  *buckets // likewise, of bytes
	unary    *slots   // other calls by identity
	streams  *slots   // streaming calls by identity
	nameless *waiting // requests without an identity yet, by network
	flood    overflow // of those
	pending  *waiting // WebSockets likewise
	sockets  *slots   // WebSockets by identity
	open     *tracker // WebSockets that are served
	grants   *grants  // of streaming calls
	// calls is how many requests are being served, WebSockets among them.
	calls atomic.Int64
	// quiet is until when guarded calls are not tried, in Unix nanoseconds.
	quiet atomic.Int64

	// strangers bounds the records of callers without a right to be here.
	strangers *rate.Limiter

	intake *intake // of all calls

	rpc http.Handler // every RPC service, behind gate and interceptor

	// waits is why the gateway answers reads of what it knew only; nil: it
	// serves. See Early.
	waits func() error
	// drain is how long calls under way may go on at the end.
	drain time.Duration
}

// New makes a gateway. It opens nothing; the listeners of cfg are closed by Run.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Gatherer == nil {
		cfg.Gatherer = prometheus.DefaultGatherer
	}
	cfg.Limits.setDefaults()
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		cfg:       cfg,
		log:       cfg.Logger.With("component", "gateway"),
		metrics:   m,
		rules:     newRules(cfg.Access.OpenReflection),
		errors:    connect.NewErrorWriter(),
		unary:     newSlots(maxUnary),
		streams:   newSlots(cfg.Limits.Streams),
		writes:    newBuckets(writeRate, writeBurst),
		volumes:   newBuckets(publishRate, publishBurst),
		strangers: rate.NewLimiter(strangersRate, strangersBurst),
		nameless:  newWaiting(maxAnonymous, maxAnonymousAll),
		pending:   newWaiting(maxPendingSockets, 0),
		sockets:   newSlots(cfg.Limits.Sockets),
		open:      newTracker(),
		grants:    newGrants(),
		intake:    newIntake(cfg.Limits.Intake, m),
		drain:     drainTimeout,
	}
	g.flood.log, g.flood.msg = g.log, "many requests without credentials are open: the oldest make room for new ones"
	if cfg.Limits.ChannelRate > 0 {
		g.channels = newBuckets(cfg.Limits.ChannelRate, cfg.Limits.ChannelBurst)
	}
	if cfg.TLS != nil {
		if g.tls, err = openCertificates(*cfg.TLS, g.log); err != nil {
			return nil, err
		}
	}
	if err := registerCertificate(cfg.Registerer, g.tls); err != nil {
		return nil, err
	}
	if err := registerFront(cfg.Registerer, cfg.Public); err != nil {
		return nil, err
	}
	if g.rpc, err = g.services(); err != nil {
		return nil, err
	}
	return g, nil
}

// Pin is the SHA-256 of the public key that the public listener shows now, by
// which a client can recognise a self-signed gateway; false without TLS.
func (g *Gateway) Pin() (pin [32]byte, ok bool) {
	if g.tls == nil {
		return pin, false
	}
	return g.tls.pin(), true
}

// Run serves until ctx ends. Then it says so (health, GOAWAY), lets calls
// under way finish for at most drainTimeout, and returns nil. It returns an
// error when a listener fails. Call it once.
func (g *Gateway) Run(ctx context.Context) error {
	// Calls outlive ctx by the time it takes to drain them.
	base, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(api.ErrClosing)
	// Streams that would never end by themselves end when draining begins.
	draining, drain := context.WithCancelCause(base)
	defer drain(api.ErrClosing)
	defer g.flood.end()

	group, running := errgroup.WithContext(ctx)
	var servers []*http.Server
	serve := func(l net.Listener, h http.Handler, idle time.Duration) {
		s := newServer(base, g.counted(h), g.log)
		s.IdleTimeout = idle
		servers = append(servers, s)
		group.Go(func() error {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	if g.cfg.Public != nil {
		l := gather.Listener(g.publicListener())
		if g.tls != nil {
			l = newTLSListener(base, l, g.tls.config(g.cfg.TURN != nil), newHandshakes(g.metrics.shaken, g.log), g.cfg.TURN)
		}
		serve(l, g.publicHandler(draining), idleTimeout)
	}
	members := newSlots(g.cfg.Limits.MemberConnections) // of all mesh listeners together
	for _, l := range g.cfg.Mesh {
		l = gather.Listener(limitListener(networkListener{
			l, members, g.memberKey, g.metrics.refused.WithLabelValues(listenerMesh),
		}, g.cfg.Limits.Connections))
		serve(l, g.meshHandler(draining), meshIdleTimeout)
	}
	if g.cfg.Local != nil {
		serve(limitListener(g.cfg.Local, maxLocalConnections), g.localHandler(draining), meshIdleTimeout)
	}
	if g.cfg.Metrics != nil {
		serve(g.cfg.Metrics, g.metricsHandler(draining), idleTimeout)
	}
	if g.tls != nil {
		group.Go(func() error { g.tls.watch(running); return nil })
	}
	group.Go(func() error {
		g.watchRights(running)
		return nil
	})
	group.Go(func() error {
		<-running.Done()
		drain(api.ErrClosing)
		g.shutdown(base, stop, servers)
		return nil
	})
	return group.Wait()
}

// counted counts the requests that h serves.
func (g *Gateway) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.calls.Add(1)
		defer g.calls.Add(-1)
		h.ServeHTTP(w, r)
	})
}

// shutdown ends the servers: in peace within g.drain, then by stop.
func (g *Gateway) shutdown(ctx context.Context, stop context.CancelCauseFunc, servers []*http.Server) {
	ctx, cancel := context.WithTimeout(ctx, g.drain)
	defer cancel()
	tell := sync.OnceFunc(g.tellCut) // before the first is cut off
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			if err := s.Shutdown(ctx); err != nil {
				tell()
				_ = s.Close() // nobody is left to be told
			}
		})
	}
	idle := g.open.close() // Shutdown does not know WebSockets
	select {
	case <-idle:
	case <-ctx.Done():
		tell()
	}
	wg.Wait()
	stop(api.ErrClosing)
	<-idle
}

// tellCut says what ends at shutdown because its time is over. Most often it is
// connections on which nothing was asked yet: nobody loses an answer with them.
func (g *Gateway) tellCut() {
	if n := g.calls.Load(); n > 0 {
		g.log.Warn("calls cut off at shutdown", "n", n, "dur", g.drain)
		return
	}
	g.log.Debug("connections without a call closed at shutdown", "dur", g.drain)
}
