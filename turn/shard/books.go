// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// port is a socket that belongs to a shard: a listener or a relay.
type port struct {
	socket   *Socket
	relay    core.RelayID   // 0 is a listener
	listener uint16         // its index
	addr     netip.AddrPort // of a relay, as peers see it
	closed   bool
	conn     *net.UDPConn // in the portable engine
	way      way          // of the last datagram to a peer
	lane     lane         // what the engine of this system knows of it
	// locals is where clients come in, on a listener at all addresses; nil on others.
	locals map[netip.AddrPort]local
}

// close closes the socket.
func (p *port) close() {
	p.closed = true
	if p.conn != nil {
		p.conn.Close()
	}
	p.socket.close()
}

// way is where datagrams for a peer go.
type way struct {
	peer netip.AddrPort
	turn uint64         // in which it was found; any later it may have changed
	to   netip.AddrPort // the peer, as this host reaches it
	hand core.RelayID   // or a relay of this shard, and no socket is needed
}

// transmitter sends datagrams for the books, and watches their ports.
type transmitter interface {
	// adopt begins to receive from a port.
	adopt(p *port) error
	// abandon sends what is left for a port, and receives no more from it.
	abandon(p *port)
	// send takes a datagram. The data stays as it is until the batch ends.
	send(p *port, to netip.AddrPort, whole bool, data []byte)
}

// books are what a shard knows, and how it does what the core asks for. They
// belong to the shard's thread.
type books struct {
	shard     *Shard
	cfg       Config
	core      *core.Core
	tx        transmitter
	log       *slog.Logger
	listeners []*port // by index; nil for streams
	relays    []*port // by the low half of RelayID
	turn      uint64  // number of the batch at hand
	stats     Stats
	complain  time.Time // not before then about relays again
	locals    int       // how many clients are remembered (port.locals) before some are forgotten

	offloaded map[core.Flow]struct{}
	credit    time.Time           // when Offload is asked for its counters again
	carried   map[core.Flow]uint8 // clients whose allocation another shard has
	looked    time.Time           // when others were asked last whether that is still so
}

func newBooks(s *Shard, cfg Config) (*books, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.Core.Offload = cfg.Offload != nil
	cfg.Core.Offers.DontFragment = cfg.Core.Offers.DontFragment && keepsWhole
	now := time.Now()
	c, err := core.New(now, cfg.Core)
	if err != nil {
		return nil, err
	}
	b := &books{
		shard: s, cfg: cfg, core: c, log: cfg.Logger, listeners: make([]*port, len(cfg.Core.Listeners)), relays: make([]*port, 1),
		offloaded: make(map[core.Flow]struct{}), carried: make(map[core.Flow]uint8), credit: now,
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.log = b.log.With("component", "turn", "shard", cfg.Core.Shard)
	for i, socket := range cfg.Listeners {
		b.listeners[i] = &port{socket: socket, listener: i}
	}
	return b, nil
}

// open begins to receive from the listeners.
func (b *books) open(tx transmitter) error {
	b.tx = tx
	for _, p := range b.listeners {
		if p == nil {
			continue
		}
		if err := tx.adopt(p); err != nil {
			return err
		}
	}
	return nil
}

// close closes every socket.
func (b *books) close() {
	for _, p := range b.listeners {
		if p != nil {
			p.close()
		}
	}
	for i, p := range b.relays {
		if p != nil {
			b.relays[i] = nil
			b.release(p)
		}
	}
}

// release closes the socket of a relay.
func (b *books) release(p *port) {
	p.close()
	b.stats.Relays--
	b.cfg.Relays.Closed(p.addr)
}

// relay returns the port of a relay, nil when it is not open any more.
func (b *books) relay(id core.RelayID) *port {
	if i := uint32(id); int(i) < len(b.relays) {
		if p := b.relays[i]; p != nil && p.relay == id {
			return p
		}
	}
	return nil
}

// execute does what the core asks for. Some answers ask for more.
func (b *books) execute(now time.Time, out *core.Output) {
	for i := 0; i < len(out.Actions); i++ {
		a := &out.Actions[i] // good until out grows
		switch a.Kind {
		case core.SendClient:
			if p := b.listeners[a.Flow.Listener]; p != nil {
				b.tx.send(p, a.Flow.Client, false, a.Data)
			} else if b.cfg.Streams != nil && !b.cfg.Streams.Send(a.Flow, a.Data) {
				b.unsentClient(a.Flow, a.Data)
			}
		case core.SendPeer:
			b.sendPeer(now, a, out)
		case core.OpenRelay:
			b.openRelay(now, *a, out)
		case core.CloseRelay:
			b.closeRelay(a.Relay)
		case core.ChannelsChanged:
			b.channelsChanged(now, a.Flow)
		default:
			b.executeStream(*a)
		}
	}
}

// executeStream hands an action over that is only about streams.
func (b *books) executeStream(a core.Action) {
	if b.cfg.Streams == nil {
		return
	}
	switch a.Kind {
	case core.Connect:
		b.cfg.Streams.Connect(a)
	case core.Disconnect:
		b.cfg.Streams.Disconnect(a.Connection)
	case core.Splice:
		b.cfg.Streams.Splice(a.Flow, a.Connection)
	}
}

// sendPeer sends a datagram from a relay, or hands it over when the peer is a
// relay of the same core. What comes of that is for a client: it ends there.
func (b *books) sendPeer(now time.Time, a *core.Action, out *core.Output) {
	p := b.relay(a.Relay)
	if p == nil {
		return
	}
	b.stats.ToPeers.add(1, uint64(len(a.Data)))
	if p.way.turn != b.turn || p.way.peer != a.Peer {
		hand, _ := b.core.RelayAt(a.Peer)
		p.way = way{peer: a.Peer, turn: b.turn, to: a.Peer, hand: hand}
		if hand == 0 {
			p.way.to = b.cfg.Relays.Inside(a.Peer)
		}
	}
	if p.way.hand != 0 {
		b.stats.Handed++
		b.fromPeer(now, p.way.hand, p.addr, a.Data, 0, out)
		return
	}
	b.tx.send(p, p.way.to, a.DontFragment, a.Data)
}

// fromPeer hands a datagram for a relay to the core, and counts it if it goes on.
func (b *books) fromPeer(now time.Time, id core.RelayID, from netip.AddrPort, buf []byte, off int, out *core.Output) {
	before := len(out.Actions)
	b.core.FromPeer(now, id, from, buf, off, out)
	if len(out.Actions) > before {
		b.stats.ToClients.add(1, uint64(len(buf)-off))
	}
}

func (b *books) openRelay(now time.Time, a core.Action, out *core.Output) {
	if a.Transport == core.TCP && b.cfg.Streams != nil {
		b.cfg.Streams.OpenRelay(a)
		return
	}
	err := errors.ErrUnsupported
	var first, second Opened
	if a.Transport == core.UDP {
		first, second, err = b.cfg.Relays.Open(a)
	}
	if err == nil {
		err = b.adoptRelays(a, first, second)
	}
	if err == nil {
		b.core.RelayOpened(now, a.Relay, first.Addr, out)
		return
	}
	b.relayFailed(now, a.Relay, err, out)
}

// adoptRelays takes opened relays over: all or none.
func (b *books) adoptRelays(a core.Action, first, second Opened) error {
	err := b.adoptRelay(a.Relay, first)
	if a.Second == 0 {
		return err
	}
	if err != nil {
		second.Socket.close()
		b.cfg.Relays.Closed(second.Addr)
		return err
	}
	if err = b.adoptRelay(a.Second, second); err != nil {
		b.closeRelay(a.Relay)
	}
	return err
}

func (b *books) adoptRelay(id core.RelayID, o Opened) error {
	p := &port{socket: o.Socket, relay: id, addr: o.Addr}
	b.stats.Relays++
	if err := b.tx.adopt(p); err != nil {
		b.release(p)
		return err
	}
	for int(uint32(id)) >= len(b.relays) {
		b.relays = append(b.relays, nil)
	}
	b.relays[uint32(id)] = p
	return nil
}

func (b *books) closeRelay(id core.RelayID) {
	p := b.relay(id)
	if p == nil {
		if b.cfg.Streams != nil {
			b.cfg.Streams.CloseRelay(id)
		}
		return
	}
	b.tx.abandon(p)
	b.relays[uint32(id)] = nil
	b.release(p)
}

// relayBroke closes a relay whose socket does not work.
func (b *books) relayBroke(now time.Time, p *port, err error, out *core.Output) {
	b.closeRelay(p.relay)
	b.relayFailed(now, p.relay, err, out)
}

// complaints is how often a log says that relays fail.
const complaints = time.Minute

func (b *books) relayFailed(now time.Time, id core.RelayID, err error, out *core.Output) {
	if b.stats.RelaysFailed++; !now.Before(b.complain) {
		b.complain = now.Add(complaints)
		b.log.Warn("turn relay failed; clients get no allocations while this goes on", "err", err, "failed_total", b.stats.RelaysFailed)
	}
	b.core.RelayFailed(now, id, out)
}
