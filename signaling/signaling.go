// SPDX-License-Identifier: Apache-2.0

// Package signaling negotiates WebRTC peer connections and runs what is inside
// them: it answers StartDataChannel, NegotiateDataChannel, StartSignalChannel
// and ReceiveSignalChannel over small Stream interfaces, and carries the
// channels of each peer connection to the addresses that policy grants.
//
// A call that names this node is answered here; one that names another node is
// relayed to it, message by message. The peer connection itself always runs
// between the client and the answering node; it outlives the call.
//
// Three kinds of peer connections exist:
//
//   - in-band: the client opens a channel for each connection and names its
//     destination in the label; protocol "meshgate.1" (package bridge);
//   - port forwarding of v1 clients: one destination, fixed in the call, and
//     negotiated channels that are opened by four bytes in a control channel;
//   - WireGuard: one channel whose messages are WireGuard packets.
//
// Policy is not decided here. The caller of a Service has authenticated the
// Caller and checked that it may use the node; every destination then goes to
// the Authorizer, and exactly the address that it returns is dialled.
package signaling

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// Stream is the server's side of one call, or the client's without its end.
// Receive returns io.EOF after the other side's half-close, and an error once
// the context of the call is done or the call has returned: a goroutine of
// the Service may wait in it until then. One goroutine calls Receive and
// another Send.
type Stream[In, Out any] interface {
	Receive() (In, error)
	Send(Out) error
}

// ClientStream is the client's side of a call to another node.
type ClientStream[In, Out any] interface {
	Stream[In, Out]
	// CloseSend half-closes the call.
	CloseSend() error
}

// Caller is who made a call.
type Caller struct {
	// ID is the authenticated identity.
	ID string
	// Addr is where the call came from, as the server saw it.
	Addr netip.AddrPort
	// Allowed says whether the caller may keep what the call made; its error
	// is for the caller to read. It is asked for each connection and by
	// Service.Review, long after the call. Nil: always.
	Allowed func() error
}

// Destination is what a channel is to be connected to.
type Destination struct {
	// Protocol is "tcp" or "udp".
	Protocol string
	// Host is an IP address, a node id, or "localhost" for the answering node.
	Host string
	// Port is 0 only with udp: it stands for the node's WireGuard device.
	Port uint16
}

// String returns the destination as people write it.
func (d Destination) String() string {
	return d.Protocol + " " + net.JoinHostPort(d.Host, fmt.Sprint(d.Port))
}

// Authorizer decides about destinations. It is asked for each connection, so
// that a change of policy counts from then on.
type Authorizer interface {
	// Authorize returns the one address to dial for d on behalf of caller on
	// this node, or an error that wraps mesh.ErrDenied, mesh.ErrInvalid or
	// mesh.ErrNotFound and whose text the caller may read. For port 0 the
	// address is not used.
	Authorize(ctx context.Context, caller string, node mesh.NodeID, d Destination) (netip.AddrPort, error)
}

// Dialer opens the connections to destinations.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Negotiation is the call Node.NegotiateDataChannel from our side.
type Negotiation = ClientStream[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]

// Signals is the call Node.ReceiveSignalChannel from our side.
type Signals = ClientStream[*v1.WebRTCSignal, *v1.WebRTCSignal]

// Peers are the other nodes. Calls end with their context; one that ends because
// the connection to the node was lost fails with an error that wraps
// mesh.ErrUnavailable.
type Peers interface {
	// Negotiate calls Node.NegotiateDataChannel of node over the mesh.
	Negotiate(ctx context.Context, node mesh.NodeID) (Negotiation, error)
	// Signal calls Node.ReceiveSignalChannel of node over the mesh.
	Signal(ctx context.Context, node mesh.NodeID) (Signals, error)
	// Local says whether this node answers for node: it is this node, or a
	// stock WireGuard peer that runs nothing which could answer. The error
	// wraps mesh.ErrNotFound when there is no such node.
	Local(node mesh.NodeID) (bool, error)
}

// ICEServers returns STUN and TURN servers with credentials for one session of
// caller, which is a user or, for the node's end of a relayed session, the
// node's id.
type ICEServers func(ctx context.Context, caller string) []*v1.ICEServer

// WireGuard is the node's WireGuard device.
type WireGuard interface {
	// Attach makes conn a path on which peers may call. The device reads from
	// conn until an error, and detach makes it forget conn.
	Attach(conn PacketConn) (detach func(), err error)
}

// PacketConn is a path for WireGuard packets; one call is one packet.
type PacketConn interface {
	ReadPacket(buf []byte) (int, error)
	WritePacket(buf []byte) error
	Close() error
}

var _ PacketConn = (*bridge.Packets)(nil)

// Limits bound what callers may hold. Zero fields take the defaults.
type Limits struct {
	// HalfOpen are negotiations that have no connection yet; 0 means 4096.
	HalfOpen int
	// HalfOpenPerCaller is the same for one caller; 0 means 64.
	HalfOpenPerCaller int
	// Sessions are peer connections; 0 means 8192.
	Sessions int
	// SessionsPerCaller is the same for one caller; 0 means 256.
	SessionsPerCaller int
	// PathChannels are the channels of paths, served and relayed; 0 means 4096.
	PathChannels int
	// Channels are the open channels of one peer connection; 0 means 256.
	Channels int
	// Memory is what the channels of one peer connection may hold together in
	// each direction, in bytes; 0 means 16 MiB.
	Memory int64
	// MemoryPerCaller is the same for all peer connections of one caller; 0
	// means 64 MiB. Each open channel counts 64 KiB of it, but for the first few
	// of a peer connection.
	MemoryPerCaller int64
	// MemoryTotal is the same for all peer connections; 0 means 512 MiB, or a
	// quarter of the memory that the process may use if that is less.
	MemoryTotal int64
}

// Timeouts are the deadlines of the states. Zero fields take the defaults.
type Timeouts struct {
	// Message is the wait for each message that a client or node has to send
	// next: the request, the offer, the answer; 0 means 10 s.
	Message time.Duration
	// Authorize bounds one decision of the Authorizer; 0 means 5 s.
	Authorize time.Duration
	// Dial bounds the dialling of a destination; 0 means 10 s.
	Dial time.Duration
	// UDPIdle ends a udp channel that carries nothing; 0 means 5 min.
	UDPIdle time.Duration
	// SessionIdle ends an in-band peer connection without channels; 0 means 1 h.
	SessionIdle time.Duration
	// Renewed is how long an in-band peer connection may finish its channels
	// after it asked the client to renew; 0 means 10 min.
	Renewed time.Duration
}

// Config is what a Service works with.
type Config struct {
	// Self is this node.
	Self mesh.NodeID
	// RTC says how peer connections are made.
	RTC rtc.Config
	// Authorizer, Dialer and Peers are required.
	Authorizer Authorizer
	Dialer     Dialer
	Peers      Peers
	// WireGuard is the node's device; nil means that it takes no packets from
	// data channels.
	WireGuard WireGuard
	// Paths answers other nodes that look for a path to this one; nil: calls that
	// do are mesh.ErrUnsupported.
	Paths PathSignals
	// ICEServers gives clients and nodes their servers; nil gives none.
	ICEServers ICEServers
	// Candidate is told each address that namer names to user in a relayed
	// negotiation, both of whom are users or nodes as in ICEServers: user may have
	// to reach it by way of TURN. It must be quick. Nil: nobody is told.
	Candidate func(user, namer string, at netip.AddrPort)
	// LocalICEServers are asked by this node when it answers itself; nil asks
	// none, which is right for a node with a public address.
	LocalICEServers func(ctx context.Context) []*v1.ICEServer
	// OurICEHost says whether host is a STUN or TURN server of this mesh.
	// Servers that another node names are used only if it is; nil trusts none.
	OurICEHost func(host string) bool
	Limits     Limits
	Timeouts   Timeouts
	// Logger may be nil, which discards.
	Logger *slog.Logger
	// Registerer may be nil, which leaves metrics unregistered.
	Registerer prometheus.Registerer
}

// ErrClosed says that the Service is closing.
var ErrClosed = fmt.Errorf("signaling is closing: %w", mesh.ErrUnavailable)

// Service answers the signalling calls of a node. It is safe for concurrent use.
type Service struct {
	cfg     Config
	logger  *slog.Logger
	engine  *rtc.Engine
	metrics *metrics
	ctx     context.Context //nolint:containedctx // the life of the sessions, which outlive calls
	cancel  context.CancelFunc
	running sync.WaitGroup // sessions and the goroutines of calls
	serial  atomic.Uint64  // of sessions, for logs
	budget  *budget
	freed   chan struct{} // of capacity 1: signalled when a session gave much back

	mu     sync.Mutex // guards the fields below
	closed bool
	census census
}

// New returns a Service, which must be closed.
func New(cfg Config) (*Service, error) {
	if cfg.Authorizer == nil || cfg.Dialer == nil || cfg.Peers == nil || cfg.Self == "" {
		return nil, errors.New("signaling needs Self, Authorizer, Dialer and Peers")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.setDefaults()
	if cfg.RTC.Logger == nil {
		cfg.RTC.Logger = cfg.Logger
	}
	engine, err := rtc.New(cfg.RTC)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, engine: engine,
		logger: cfg.Logger.With("component", "signaling"),
		census: newCensus(cfg.Limits),
		budget: newBudget(cfg.Limits.MemoryTotal, cfg.Limits.MemoryPerCaller),
		freed:  make(chan struct{}, 1),
	}
	if s.metrics, err = newMetrics(cfg.Registerer, s.budget.held, engine.Drops); err != nil {
		return nil, errors.Join(err, engine.Close())
	}
	s.ctx, s.cancel = context.WithCancel(context.Background()) //nolint:forbidigo // ended by Close
	s.running.Go(s.reclaim)
	return s, nil
}

func (c *Config) setDefaults() {
	setDefault(&c.Limits.HalfOpen, 4096)
	setDefault(&c.Limits.HalfOpenPerCaller, 64)
	setDefault(&c.Limits.Sessions, 8192)
	setDefault(&c.Limits.SessionsPerCaller, 256)
	setDefault(&c.Limits.PathChannels, 4096)
	setDefault(&c.Limits.Channels, 256)
	setDefault(&c.Limits.Memory, 16<<20)
	setDefault(&c.Limits.MemoryPerCaller, 64<<20)
	if c.Limits.MemoryTotal == 0 {
		c.Limits.MemoryTotal = min(512<<20, availableMemory()/4)
	}
	setDefault(&c.Timeouts.Message, 10*time.Second)
	setDefault(&c.Timeouts.Authorize, 5*time.Second)
	setDefault(&c.Timeouts.Dial, 10*time.Second)
	setDefault(&c.Timeouts.UDPIdle, 5*time.Minute)
	setDefault(&c.Timeouts.SessionIdle, time.Hour)
	setDefault(&c.Timeouts.Renewed, 10*time.Minute)
	if c.ICEServers == nil {
		c.ICEServers = func(context.Context, string) []*v1.ICEServer { return nil }
	}
	if c.LocalICEServers == nil {
		c.LocalICEServers = func(context.Context) []*v1.ICEServer { return nil }
	}
	if c.OurICEHost == nil {
		c.OurICEHost = func(string) bool { return false }
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// LocalPort is the UDP port of all peer connections, or 0 if each has its own.
func (s *Service) LocalPort() uint16 { return s.engine.LocalPort() }

// Close says goodbye to all clients, ends all sessions and waits for them. The
// servers of the calls must have been told to stop: Close waits for calls too.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.running.Wait()
	return s.engine.Close()
}

// call notes a call that Close has to wait for. The returned context is that
// of the call, and ends when the Service closes too.
func (s *Service) call(ctx context.Context) (_ context.Context, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	s.running.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(context.Canceled)
		s.running.Done()
	}, nil
}

// Sessions lists the peer connections that run now.
func (s *Service) Sessions() []SessionInfo {
	s.mu.Lock()
	list := s.census.list()
	s.mu.Unlock()
	out := make([]SessionInfo, 0, len(list))
	for _, x := range list {
		out = append(out, x.info())
	}
	return out
}
