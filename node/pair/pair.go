// SPDX-License-Identifier: Apache-2.0

// Package pair keeps a node's own WireGuard sessions with nodes that it would
// else reach through a gateway, and the ways of their packets.
//
// It is told of the destinations of the node's packets (Seek), asks a gateway
// who is there (Directory), exchanges signals with that node (Signals), has
// package path find a way between the two, over the WireGuard port and over
// relays, and leads the peer of the WireGuard device that way. Until the session
// of the pair stands its packets go by way of the gateway, and again when it
// breaks: View says which peers the node is to have beside those of its plan.
//
// The ways to the gateways themselves are kept in the same manner, but without
// signals: a gateway answers at its WireGuard port whoever asks.
//
// All state belongs to the one goroutine of Run; everything else is told to it,
// and none of it waits.
package pair

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
	"github.com/meshgate/meshgate/node/wg"
)

const (
	// maxWanted bounds what is asked of the directory, and so the pairs.
	maxWanted = 256
	// maxCallers bounds the callers of whom the directory has not told yet.
	maxCallers = 64
	// idleAfter is how long a pair stays without packets.
	idleAfter = 10 * time.Minute
	// lookEvery is how often the addresses of the host are looked at.
	lookEvery = 2 * time.Second
	// eventQueue, seekQueue and packetQueue are how much may wait for Run. Seeks
	// and packets beyond that are lost: there will be others.
	eventQueue, seekQueue, packetQueue = 64, 64, 512
)

// Way is a path of the device; *wg.Path is one.
type Way interface {
	Route(s wg.Socket, to netip.AddrPort)
	Accept(routes []wg.Route) error
	Narrow(on bool)
	Activity() wg.Activity
	Closed() bool
	Close()
}

// Device is the WireGuard device.
type Device interface {
	ListenPort() uint16
	// OpenPath is that of wg.Device.
	OpenPath(key mesh.WireGuardKey) (Way, error)
	AddSocket(s wg.PacketSocket) (wg.Socket, func(), error)
	SendSTUN(s wg.Socket, to netip.AddrPort, b []byte) error
	Handshake(key mesh.WireGuardKey)
	Stats() (mesh.InterfaceStats, error)
}

// Config says what Pairs work with. All of it is required but Beside, Logger
// and Registerer.
type Config struct {
	Self   mesh.NodeID
	Device Device
	// Directory says who other nodes are.
	Directory Directory
	// Signals reaches them.
	Signals Signals
	// Allocate gets relays.
	Allocate Allocate
	// Addrs are the addresses of this host's interfaces.
	Addrs func() ([]netip.Addr, error)
	// Beside reports whether this host sends what is for an address into a tunnel
	// that is not the node's own, which may run in this one. It is quick; nil knows
	// of no such tunnel.
	Beside func(netip.Addr) bool
	// Publish is told that View has changed. It must not wait.
	Publish func()
	// Logger may be nil, which discards.
	Logger *slog.Logger
	// Registerer takes the metrics; nil leaves them unregistered.
	Registerer prometheus.Registerer
}

// Pairs are those of a node. Make them with New, and run them with Run; the
// other methods may be called at any time, from any goroutine.
type Pairs struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	events  chan func(now time.Time)
	seeks   chan netip.Addr
	packets chan datagram
	ended   chan struct{} // closed when Run has returned
	view    atomic.Pointer[View]
	status  atomic.Pointer[[]Status]

	// The fields below belong to Run.
	began   time.Time
	ctx     context.Context //nolint:containedctx // that of Run, for what it starts
	running sync.WaitGroup  // what Run started
	plan    mesh.Plan
	inMesh  func(netip.Addr) bool
	wanted  map[string]*want
	asking  requests
	links   map[mesh.NodeID]*link
	tags    map[path.Tag]*link
	claims  claims
	callers map[mesh.NodeID][]*call
	relays  relays
	native  natives
	fresh   bool // View has to be made anew
	slept   slept
	late    late
	held    mesh.NodeID // of Hold
	// veilless is true when no packets may go veiled, since addresses that those have
	// are behind a node; veilsRouted when the plan has them.
	veilless, veilsRouted bool
}

// datagram is a STUN message that came in.
type datagram struct {
	socket wg.Socket
	from   netip.AddrPort
	bytes  []byte
}

// New returns the pairs of a node that knows nobody yet. It fails when the
// metrics cannot be registered.
func New(cfg Config) (*Pairs, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	p := &Pairs{
		cfg: cfg, log: cfg.Logger.With("component", "pair"), metrics: m,
		events: make(chan func(time.Time), eventQueue), seeks: make(chan netip.Addr, seekQueue),
		packets: make(chan datagram, packetQueue), ended: make(chan struct{}),
		wanted: make(map[string]*want), links: make(map[mesh.NodeID]*link), tags: make(map[path.Tag]*link),
		callers: make(map[mesh.NodeID][]*call), claims: make(claims),
		inMesh: func(netip.Addr) bool { return false },
	}
	p.began = time.Now()
	p.asking.init()
	p.relays.init(p)
	p.native.init(p)
	p.view.Store(&View{})
	p.status.Store(&[]Status{})
	return p, nil
}

// Run keeps the pairs until ctx ends.
func (p *Pairs) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	p.ctx = ctx
	defer p.running.Wait()
	defer close(p.ended) // whoever wants something done waits no longer
	defer p.end()
	defer cancel()
	p.running.Go(func() { p.follow(ctx) })
	timer, due := time.NewTimer(0), time.Now()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case event := <-p.events:
			event(time.Now())
		case dst := <-p.seeks:
			p.seek(time.Now(), dst)
		case d := <-p.packets:
			p.packet(time.Now(), d)
		case <-timer.C:
			p.late.saw(time.Since(due))
		}
		now := time.Now()
		if p.slept.since(time.Since(p.began), now.Round(0)) {
			p.woke(now)
		}
		due = later(p.tend(now), now)
		timer.Reset(due.Sub(now))
	}
}

// do has Run do something, unless Run has ended. It waits while Run is busy.
func (p *Pairs) do(event func(now time.Time)) bool {
	select {
	case p.events <- event:
		return true
	case <-p.ended:
		return false
	}
}

// Follow tells the plan of the node without pairs, and which addresses are of
// the mesh.
func (p *Pairs) Follow(plan mesh.Plan, inMesh func(netip.Addr) bool) {
	p.do(func(now time.Time) { p.replan(now, plan, inMesh) })
}

// Offer tells of TURN servers, with credentials, until the directory does.
func (p *Pairs) Offer(servers []Server) {
	if len(servers) > 0 {
		p.do(func(now time.Time) { p.relays.offer(now, servers) })
	}
}

// Hold has the node keep a pair with another one, or go on trying for one, in place
// of the one that it kept before; empty: with nobody.
func (p *Pairs) Hold(id mesh.NodeID) {
	p.do(func(now time.Time) {
		p.held = id
		p.hold(now)
		p.fresh = true // see mayVeil
	})
}

// Seek tells of a packet of this node to an address. It does not wait.
func (p *Pairs) Seek(dst netip.Addr) {
	select {
	case p.seeks <- dst:
	default:
		p.metrics.drop(dropSeek)
	}
}

// STUN takes a STUN message that came to a socket of the device. It does not
// wait, and keeps nothing of b.
func (p *Pairs) STUN(socket wg.Socket, from netip.AddrPort, b []byte) {
	select {
	case p.packets <- datagram{socket, from, slices.Clone(b)}:
	default:
		p.metrics.drop(dropPacket)
	}
}

// View is what the node's plan is to have besides; see View.Apply. Publish is
// called when it has changed.
func (p *Pairs) View() *View { return p.view.Load() }

// packet hands a STUN message to whom it is for.
func (p *Pairs) packet(now time.Time, d datagram) {
	tag, ok := path.Owner(d.bytes)
	if !ok {
		return
	}
	if l := p.tags[tag]; l != nil {
		l.finder.Packet(now, path.Socket(d.socket), d.from, d.bytes)
		l.due = now
		return
	}
	p.native.packet(now, d)
}

// tend does all that is due, and returns when to do so again at the latest.
func (p *Pairs) tend(now time.Time) time.Time {
	next := p.native.tend(now)
	p.shake(now)
	if p.fresh {
		p.declare(now)
	}
	for _, l := range p.links {
		if !l.due.After(now) {
			l.due = l.tend(now)
		}
		next = earlier(next, l.due)
	}
	next = earlier(next, p.relays.tend(now))
	next = earlier(next, p.forget(now))
	if p.fresh {
		p.fresh = false
		p.publish()
	}
	return next
}

// end gives everything back.
func (p *Pairs) end() {
	for _, l := range p.links {
		l.end()
	}
	for _, list := range p.callers {
		for _, c := range list {
			c.end()
		}
	}
	p.relays.end()
}

// earlier returns the earlier of two times.
func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
