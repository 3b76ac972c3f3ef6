// SPDX-License-Identifier: Apache-2.0

// Package turn is a TURN and STUN server (RFC 8656, RFC 8489) that can face the
// open Internet: it relays for holders of a short-lived credential, towards
// peers that a policy allows, within quotas, and denies the rest.
//
// Secrets mints the credentials. A Server listens on UDP and TCP; listeners
// that the caller hands in (TLS, a port shared with HTTPS) work alike. DESIGN.md
// beside this file says how the parts fit and what the present engine lacks.
package turn

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/turn/limiter"
)

// DefaultRealm is the realm of a server whose Config names none. It is short
// because each challenge to a stranger carries it.
const DefaultRealm = "meshgate"

// Config says what a Server does. Secrets, Relay.Public and something to listen
// on are required.
type Config struct {
	// UDP and TCP are the addresses to listen on; port 0 lets the kernel choose.
	UDP, TCP []netip.AddrPort
	// PacketConns and Listeners are served beside those. The server owns and
	// closes them, also when New fails. Addresses of their clients must be
	// *net.UDPAddr or *net.TCPAddr. A connection that has a method Settled(holds
	// bool) is told when its client gets an allocation and when that has ended, by
	// the goroutine that reads from it, so that it may make room for others until
	// it holds one.
	PacketConns []net.PacketConn
	Listeners   []net.Listener
	// Relay says where relayed traffic leaves and enters.
	Relay Relay
	// Realm is the realm of all credentials; "" means DefaultRealm.
	Realm string
	// Secrets verifies credentials. Share it with whoever mints them.
	Secrets *Secrets
	// AllowPeer is asked about every peer but the relays of this server, which
	// reach each other, its listeners, which nothing reaches, and those of
	// AllowNetworks. nil denies all of them. Allowing one port of an address
	// allows no other. It is called for every packet to and from such a peer,
	// from several goroutines: it must be quick, must not block and must not
	// call the Server.
	AllowPeer func(user string, peer netip.AddrPort) bool
	// AllowNetworks are networks that every user may reach, but for addresses
	// of this host. A network that holds public addresses opens only those:
	// 0.0.0.0/0 is the Internet without private networks. Loopback, link-local
	// and multicast networks are refused.
	AllowNetworks []netip.Prefix
	// AllowUser is asked with each authenticated request; a user that it
	// refuses is answered as if the credential were wrong. nil allows all.
	AllowUser func(user string) bool
	// Limits bounds what clients can take.
	Limits Limits
	// Logger gets changes of the server's state; nil discards them. Packets,
	// users and credentials are never logged.
	Logger *slog.Logger
	// Registerer gets the metrics; nil leaves them unregistered.
	Registerer prometheus.Registerer
}

// Relay says where relays are.
type Relay struct {
	// Public is the IPv4 address at which peers reach the relays. Required.
	Public netip.Addr
	// Bind is the address of this host to which packets for Public come: Public
	// itself, or a private one behind a one-to-one NAT. Zero binds to all.
	Bind netip.Addr
	// Here are UDP ports of this host, open on all of its IPv4 addresses or on Bind,
	// that peers have at Public. Relays reach them on the host itself: many routers
	// do not turn back what a host sends to its own public address. Which of them a
	// user may reach is for AllowPeer to say.
	Here []uint16
	// MinPort and MaxPort are the range of relay ports; both 0 leaves the choice to the kernel.
	MinPort, MaxPort uint16
}

// Limits bounds what clients can take; the zero value of each field means its default.
type Limits struct {
	// AllocationsPerUser is how many allocations a user holds at a time. Default 10.
	AllocationsPerUser int
	// Allocations is how many all users hold. Default 4096, or one per relay port.
	Allocations int
	// Permissions is how many peer addresses an allocation talks to. Default 16.
	Permissions int
	// Channels is how many channels an allocation binds. Default 16.
	Channels int
	// Lifetime is how long an allocation lasts, and lasts again after each
	// Refresh, in whole seconds below one hour. Default 10 minutes.
	Lifetime time.Duration
	// AnswersPerSecond is how many packets a second each /24 (IPv6: /56) of UDP
	// clients without an allocation is answered, after a burst of three
	// seconds' worth. Default 10.
	AnswersPerSecond int
	// Connections and ConnectionsPerSource bound open TCP connections in total
	// and by address (IPv6: /64). Defaults 4096 and 128.
	Connections, ConnectionsPerSource int
}

// margin is the end of an allocation's life in which nothing is granted to it
// any more: the engine must not be adding a permission while its own timer ends
// the allocation. Clients refresh long before.
func (l Limits) margin() time.Duration { return min(l.Lifetime/10, 5*time.Second) }

func (l Limits) withDefaults(relay Relay) Limits {
	set := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	ports := portRange{relay.MinPort, relay.MaxPort}
	total := 4096
	if relay.MaxPort != 0 {
		total = min(total, ports.size())
	}
	set(&l.AllocationsPerUser, 10)
	set(&l.Allocations, total)
	set(&l.Permissions, 16)
	set(&l.Channels, 16)
	set(&l.AnswersPerSecond, 10)
	set(&l.Connections, 4096)
	set(&l.ConnectionsPerSource, 128)
	if l.Lifetime == 0 {
		l.Lifetime = 10 * time.Minute
	}
	return l
}

func (l Limits) validate() error {
	for _, n := range []int{l.AllocationsPerUser, l.Allocations, l.Permissions, l.Channels,
		l.AnswersPerSecond, l.Connections, l.ConnectionsPerSource} {
		if n < 0 {
			return fmt.Errorf("turn limit %d is negative", n)
		}
	}
	if l.Lifetime < time.Second || l.Lifetime >= time.Hour || l.Lifetime%time.Second != 0 {
		return fmt.Errorf("turn allocation lifetime %s is not whole seconds below one hour", l.Lifetime)
	}
	return nil
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case len(c.UDP)+len(c.TCP)+len(c.PacketConns)+len(c.Listeners) == 0:
		return errors.New("turn has no address to listen on")
	case c.Secrets == nil:
		return errors.New("turn has no secrets")
	case !c.Relay.Public.Is4() || c.Relay.Public.IsUnspecified():
		return fmt.Errorf("turn relay address %s is not an IPv4 address that peers can reach", c.Relay.Public)
	case c.Relay.Bind.IsValid() && !c.Relay.Bind.Is4():
		return fmt.Errorf("turn relay bind address %s is not IPv4", c.Relay.Bind)
	case slices.Contains(c.Relay.Here, 0):
		return errors.New("turn relay here holds port 0, which is none")
	case c.Relay.MinPort > c.Relay.MaxPort || c.Relay.MinPort == 0 && c.Relay.MaxPort != 0:
		return fmt.Errorf("turn relay ports %d-%d are no range", c.Relay.MinPort, c.Relay.MaxPort)
	}
	if _, err := openNetworks(c.AllowNetworks, newBlocks(specialPurpose())); err != nil {
		return err
	}
	return c.Limits.withDefaults(c.Relay).validate()
}

// Server is a running TURN server. It is safe for concurrent use.
type Server struct {
	realm     string
	limits    Limits
	secrets   *Secrets
	allowUser func(string) bool
	policy    *policy
	relays    *relays
	full      *fullness
	answers   *limiter.Limiter
	conns     *connections
	metrics   *metrics
	log       *slog.Logger

	listeners []net.Listener
	sockets   []net.PacketConn
	done      chan struct{}
	running   sync.WaitGroup // gates, relays, accept loops, the address watcher

	mu     sync.Mutex // guards the fields below
	gates  map[*gate]struct{}
	closed bool
}

// New opens the listeners of cfg and serves until Close.
func New(cfg Config) (_ *Server, err error) {
	s := &Server{
		sockets:   append([]net.PacketConn(nil), cfg.PacketConns...),
		listeners: append([]net.Listener(nil), cfg.Listeners...),
		done:      make(chan struct{}),
		gates:     make(map[*gate]struct{}),
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := s.configure(cfg); err != nil {
		return nil, err
	}
	if err := s.listen(cfg.UDP, cfg.TCP); err != nil {
		return nil, err
	}
	for _, c := range s.sockets {
		fitNarrow(c)
	}
	for _, l := range s.listeners {
		fitNarrow(l)
	}
	s.policy.listeners = s.UDPAddrs()
	if err := s.serve(); err != nil {
		return nil, err
	}
	s.log.Info("turn server listens", "udp", s.UDPAddrs(), "tcp", s.TCPAddrs(), "relay", s.relays.public)
	return s, nil
}

// configure makes the parts of s that need no socket.
func (s *Server) configure(cfg Config) (err error) {
	s.realm, s.limits = cfg.Realm, cfg.Limits.withDefaults(cfg.Relay)
	if s.realm == "" {
		s.realm = DefaultRealm
	}
	s.secrets, s.allowUser = cfg.Secrets, cfg.AllowUser
	s.log = cfg.Logger
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("component", "turn")
	bind := cfg.Relay.Bind
	if !bind.IsValid() {
		bind = netip.IPv4Unspecified()
	}
	s.relays = &relays{
		public: cfg.Relay.Public, bind: bind, here: slices.Clone(cfg.Relay.Here), ports: portRange{cfg.Relay.MinPort, cfg.Relay.MaxPort},
		secrets: cfg.Secrets, perUser: s.limits.AllocationsPerUser, total: s.limits.Allocations,
		users: make(map[string]int), open: make(map[uint16]struct{}),
	}
	s.full = &fullness{log: s.log, relays: s.relays}
	s.policy = &policy{
		special: newBlocks(specialPurpose()), relayIP: cfg.Relay.Public, isRelay: s.relays.isOpen,
		allow: cfg.AllowPeer,
	}
	if s.policy.open, err = openNetworks(cfg.AllowNetworks, s.policy.special); err != nil {
		return err
	}
	if err := s.policy.refresh(); err != nil {
		return fmt.Errorf("read interface addresses: %w", err)
	}
	s.answers = limiter.New(s.limits.AnswersPerSecond, 3*s.limits.AnswersPerSecond)
	s.conns = &connections{
		total: s.limits.Connections, perSource: s.limits.ConnectionsPerSource, bySource: make(map[netip.Addr]int),
	}
	s.metrics, err = newMetrics(cfg.Registerer)
	if err != nil {
		return fmt.Errorf("register turn metrics: %w", err)
	}
	s.metrics.most.Set(float64(s.limits.Allocations))
	return nil
}

// UDPAddrs returns the addresses of the UDP listeners.
func (s *Server) UDPAddrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, c := range s.sockets {
		if a, ok := addrPort(c.LocalAddr()); ok {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// TCPAddrs returns the addresses of the stream listeners.
func (s *Server) TCPAddrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, l := range s.listeners {
		if a, ok := addrPort(l.Addr()); ok {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// Users lists those who hold allocations, in no order.
func (s *Server) Users() []string { return s.relays.holders() }

// Evict ends all allocations of user at once and returns how many there were.
// It refuses no credential: that is for AllowUser to do.
func (s *Server) Evict(user string) (n int) {
	s.mu.Lock()
	gates := make([]*gate, 0, len(s.gates))
	for g := range s.gates {
		gates = append(gates, g)
	}
	s.mu.Unlock()
	for _, g := range gates {
		n += g.evict(user)
	}
	return n
}
