// SPDX-License-Identifier: Apache-2.0

// Package rtc makes WebRTC peer connections that carry data channels and
// nothing else: descriptions and candidates go in, message channels come out.
//
// It speaks the vocabulary of pion/webrtc v3 and is built from the modules
// that pion/webrtc v3 itself is built from: ICE, DTLS and SCTP. It does not
// use its PeerConnection, because that owns the loop which accepts SCTP
// streams, and that loop dies at the first message on a stream it does not
// know. v1 clients send data on a negotiated channel before the other side
// heard of it, so here every new stream is handed to the owner of the peer
// with what arrived on it still unread. Owning the transports also lets this
// package count the records of each DTLS association and check every packet
// before it reaches a STUN parser.
package rtc

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/ice/v2"
	"github.com/pion/logging"
	"github.com/pion/stun"
	"github.com/pion/webrtc/v3"
)

// Limits and times that follow from the protocols rather than from taste.
const (
	// MaxMessageSize is the largest message in either direction, as browsers have it.
	MaxMessageSize = 256 << 10
	// MaxDescriptionSize is the largest session description.
	MaxDescriptionSize = 64 << 10
	// MaxRemoteCandidates are the candidates of one peer that are tried. Those
	// beyond are ignored: a client with many interfaces is no attacker, and
	// checks cost packets.
	MaxRemoteCandidates = 20
	// MaxRemotePorts are the candidates of one peer on one address that are
	// tried, and as many relays: where all is on one machine, both have the same
	// address. An honest client has its own port there, what its NAT makes of it
	// for each interface, and a relay for each transport; whoever names more is
	// after somebody else's.
	MaxRemotePorts = 4

	// DefaultRenewRecords is where the owner is asked to move to a new peer
	// connection, DefaultMaxRecords where the association ends. pion/dtls v2
	// draws its 64-bit nonces at random; at 2^23 records in one direction a
	// collision has a probability below 2^-18.
	DefaultRenewRecords = 1 << 22
	DefaultMaxRecords   = 1 << 23

	maxLocalCandidates = 64
)

// Config says how an Engine makes its peers. The zero value works.
type Config struct {
	// Logger is for debugging only; nil logs nothing.
	Logger *slog.Logger
	// UDP is the one socket that all peers share, so that a firewall has to
	// know one port. The Engine owns it from New on. Nil lets each peer open
	// sockets of its own. Two engines that both share a socket can hold only
	// one peer between them, since packets are told apart by the remote
	// address: give clients no socket.
	UDP net.PacketConn
	// Loopback includes loopback addresses, ours and the peer's.
	Loopback bool
	// Reachable says that others reach this machine's addresses from the first
	// packet on. A path on which the other side's packets come is then taken at
	// once, even if their address was not announced: direct ones come before
	// those through a relay. Behind a NAT that keeps direct ones out at first it
	// may be the other way round, and such a path waits for a better one.
	Reachable bool
	// Local says which of the machine's addresses are offered; nil means all.
	Local func(netip.Addr) bool
	// Remote says to which addresses checks may be sent; nil means all
	// unicast addresses that are not link-local.
	Remote func(netip.AddrPort) bool
	// PublicIPs stand in for the machine's own addresses in candidates, for a
	// machine behind a 1:1 NAT.
	PublicIPs []string
	// TLS is for connections to TURN servers by turns: URLs; nil means the
	// defaults of crypto/tls. The server's name is filled in.
	TLS *tls.Config
	// Disconnected and Failed are how long a peer may be silent before ICE
	// calls it disconnected, and how much longer before it is given up.
	// 0 means 5 s and 10 s.
	Disconnected, Failed time.Duration
	// Keepalive is the interval of ICE checks on an idle connection; 0 means 2 s.
	Keepalive time.Duration
	// Setup bounds the time from both descriptions to open channels; 0 means 30 s.
	Setup time.Duration
	// RenewRecords and MaxRecords bound a DTLS association, each direction on
	// its own; 0 means the defaults above.
	RenewRecords, MaxRecords uint64
	// ReceiveBuffer is what SCTP holds for channels that are not read, per
	// peer; 0 means 1 MiB.
	ReceiveBuffer uint32
}

// ICEServer is a STUN or TURN server.
type ICEServer = webrtc.ICEServer

// Engine makes peers. It is safe for concurrent use.
type Engine struct {
	cfg        Config
	logger     *slog.Logger
	logs       logging.LoggerFactory
	interfaces interfaces
	mux        *udpMux // or nil
	pacer      *pacer
	drops      drops
	goodbye    time.Duration // bounds how long a peer that ends waits for TURN servers

	mu     sync.Mutex // guards the fields below
	closed bool
	peers  map[*Peer]struct{}
}

// New returns an Engine.
func New(cfg Config) (*Engine, error) {
	setDefaults(&cfg)
	e := &Engine{
		cfg: cfg, logger: cfg.Logger.With("component", "rtc"),
		pacer: newPacer(), goodbye: goodbyeTime, peers: map[*Peer]struct{}{},
	}
	e.logs = pionLogs{e.logger}
	if cfg.UDP != nil {
		if _, ok := cfg.UDP.LocalAddr().(*net.UDPAddr); !ok {
			return nil, errors.New("rtc: Config.UDP is no UDP socket")
		}
		e.mux = newUDPMux(e, cfg.UDP)
	}
	return e, nil
}

func setDefaults(cfg *Config) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&cfg.Disconnected, 5 * time.Second}, {&cfg.Failed, 10 * time.Second},
		{&cfg.Keepalive, 2 * time.Second}, {&cfg.Setup, 30 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if cfg.MaxRecords == 0 {
		cfg.MaxRecords = DefaultMaxRecords
	}
	if cfg.RenewRecords == 0 {
		cfg.RenewRecords = min(DefaultRenewRecords, cfg.MaxRecords)
	}
	if cfg.ReceiveBuffer == 0 {
		cfg.ReceiveBuffer = 1 << 20
	}
}

// LocalPort is the UDP port that all peers share, or 0.
func (e *Engine) LocalPort() uint16 {
	if e.mux == nil {
		return 0
	}
	return uint16(e.cfg.UDP.LocalAddr().(*net.UDPAddr).Port)
}

// Drops are packets that were not handed on, by reason.
type Drops struct {
	// Malformed ones never reached a parser.
	Malformed uint64
	// Stray ones came to the shared socket and were of no peer.
	Stray uint64
	// Forged ones came to the shared socket as checks or answers, and were not
	// sealed by the other side of the peer that they were for.
	Forged uint64
	// Overrun ones came faster than their peer took them.
	Overrun uint64
	// Paced ones are checks of ours to addresses that have not answered.
	Paced uint64
}

// Drops counts the packets that were not handed on so far.
func (e *Engine) Drops() Drops {
	d := &e.drops
	return Drops{d.malformed.Load(), d.stray.Load(), d.forged.Load(), d.overrun.Load(), d.paced.Load()}
}

// Close ends all peers, waits for them and closes the shared socket.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	peers := make([]*Peer, 0, len(e.peers))
	for p := range e.peers {
		peers = append(peers, p)
	}
	e.mu.Unlock()
	for _, p := range peers {
		p.shut(errClosed)
	}
	for _, p := range peers {
		<-p.done
	}
	if e.mux != nil {
		return e.mux.close()
	}
	return nil
}

func (e *Engine) add(p *Peer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errClosed
	}
	e.peers[p] = struct{}{}
	return nil
}

func (e *Engine) remove(p *Peer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.peers, p)
}

func (e *Engine) drop() { e.drops.malformed.Add(1) }

// localAddr says whether a candidate with this address may be offered.
func (e *Engine) localAddr(ip net.IP) bool {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return false
	}
	addr = addr.Unmap()
	if addr.IsLoopback() && !e.cfg.Loopback {
		return false
	}
	return e.cfg.Local == nil || e.cfg.Local(addr)
}

// newAgent makes the ICE agent of one peer.
func (e *Engine) newAgent(p *Peer, dial *turnDialer, urls []*stun.URI, relayOnly bool) (*ice.Agent, error) {
	wait := func(d time.Duration) *time.Duration { return &d }
	checks := uint16(100)
	unannounced := 150 * time.Millisecond
	if e.cfg.Reachable {
		unannounced = 0
	}
	cfg := &ice.AgentConfig{
		Urls:         urls,
		NetworkTypes: []ice.NetworkType{ice.NetworkTypeUDP4, ice.NetworkTypeUDP6},
		CandidateTypes: []ice.CandidateType{
			ice.CandidateTypeHost, ice.CandidateTypeServerReflexive, ice.CandidateTypeRelay,
		},
		DisconnectedTimeout: &e.cfg.Disconnected,
		FailedTimeout:       &e.cfg.Failed,
		KeepaliveInterval:   &e.cfg.Keepalive,
		// A pair is nominated by the next check after it worked, so the interval
		// is part of the time to connect. A pair that failed is never tried
		// again: 100 checks are 5 s, in which a slow call has to carry our
		// candidates to the other side of a NAT.
		CheckInterval:      wait(50 * time.Millisecond),
		MaxBindingRequests: &checks,
		// pion's own waits (0, 0.5, 1, 2 s) are most of the time to connect. The
		// third counts for most browsers, which announce no address of their own.
		HostAcceptanceMinWait:  wait(0),
		SrflxAcceptanceMinWait: wait(100 * time.Millisecond),
		PrflxAcceptanceMinWait: wait(unannounced),
		RelayAcceptanceMinWait: wait(500 * time.Millisecond),
		MulticastDNSMode:       ice.MulticastDNSModeDisabled,
		IncludeLoopback:        e.cfg.Loopback,
		IPFilter:               e.localAddr,
		NAT1To1IPs:             e.cfg.PublicIPs,
		DisableActiveTCP:       true,
		Net:                    p.net,
		ProxyDialer:            dial,
		LoggerFactory:          e.logs,
	}
	if len(e.cfg.PublicIPs) > 0 {
		cfg.NAT1To1IPCandidateType = ice.CandidateTypeHost
	}
	if relayOnly {
		cfg.CandidateTypes = []ice.CandidateType{ice.CandidateTypeRelay}
	}
	if e.mux != nil {
		cfg.UDPMux = e.mux
	}
	return ice.NewAgent(cfg)
}
