// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v2"
	"github.com/pion/sctp"
	"github.com/pion/webrtc/v3"
)

var (
	errClosed       = errors.New("peer connection closed")
	errNotConnected = errors.New("peer connection is not connected")
	// ErrFailed says that the other side could not be reached, or is gone.
	ErrFailed = errors.New("peer connection failed")
	// ErrInUse says that the other side has not closed the channel of that id yet.
	ErrInUse = errors.New("channel id in use")
	// ErrRecordLimit says that the DTLS association has carried as many
	// records as it may.
	ErrRecordLimit = errors.New("DTLS association reached its record limit")
)

// PeerConfig describes one peer.
type PeerConfig struct {
	// Servers are asked for reflexive and relayed candidates.
	Servers []ICEServer
	// RelayOnly keeps all traffic on TURN servers.
	RelayOnly bool
	// Caller is whom the peer belongs to. The peers of one caller share what it
	// may have of checks to addresses that do not answer.
	Caller string
	// ReceiveBuffer stands in for that of the Engine; 0 means that one.
	ReceiveBuffer uint32
}

// Peer is one side of a peer connection. Exactly one of the sequences
// Offer-SetAnswer and Answer starts it. It is safe for concurrent use.
//
// Goroutines: run, from the moment both descriptions are known; it owns the
// transports and ends with them. Everything that pion starts ends before Done
// is closed.
type Peer struct {
	engine *Engine
	agent  *ice.Agent
	net    *guardedNet
	checks *checks
	cert   *certificate
	// closeAgent ends ICE and waits. pion's own Close must not run twice at once.
	closeAgent func()

	ctx    context.Context //nolint:containedctx // the life of the peer itself
	cancel context.CancelCauseFunc

	candidates chan string   // local, encoded; closed when gathering is over
	connected  chan struct{} // closed when channels can be used
	closing    chan struct{} // closed when the peer begins to end
	done       chan struct{} // closed when nothing of the peer is left
	associated chan struct{} // closed when streams.assoc is set
	arrived    chan struct{} // of capacity 1: signalled when there is a stream for Accept
	records    recordCount
	live       atomic.Int64 // channels that have not ended
	window     uint32       // SCTP's receive buffer, in bytes

	lastTSN uint32 // the highest that arrived; of the association's reading goroutine
	anyTSN  bool   // likewise
	waited  bool   // likewise

	maxMessage int    // set before connected is closed
	firstID    uint16 // likewise
	gathered   atomic.Bool

	mu      sync.Mutex // guards the fields below
	mid     string
	remote  int // candidates taken from the other side
	offered *description
	started bool
	ports   map[portsOf][]uint16 // of the candidates taken
	ended   bool
	streams streams
	pending []ice.Candidate // remote candidates before the remote description
}

// NewPeer makes a peer, which must be closed. It outlives the end of ctx.
func (e *Engine) NewPeer(ctx context.Context, cfg PeerConfig) (*Peer, error) {
	urls, err := parseServers(cfg.Servers)
	if err != nil {
		return nil, err
	}
	cert, err := newCertificate()
	if err != nil {
		return nil, fmt.Errorf("make DTLS certificate: %w", err)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	p := &Peer{
		engine: e, cert: cert, ctx: ctx, cancel: cancel,
		net:        newGuardedNet(&e.interfaces, e.drop, urls, e.goodbye),
		candidates: make(chan string, maxLocalCandidates),
		connected:  make(chan struct{}),
		closing:    make(chan struct{}),
		done:       make(chan struct{}),
		associated: make(chan struct{}),
		arrived:    make(chan struct{}, 1),
		records:    newRecordCount(e.cfg.RenewRecords, e.cfg.MaxRecords),
		streams:    streams{current: map[uint16]*sctp.Stream{}, claimed: map[*sctp.Stream]struct{}{}},
		mid:        "0",
		ports:      map[portsOf][]uint16{},
		window:     cfg.ReceiveBuffer,
	}
	if p.window == 0 {
		p.window = e.cfg.ReceiveBuffer
	}
	if p.agent, err = e.newAgent(p, newTURNDialer(ctx, p.net, e.cfg.TLS, urls), urls, cfg.RelayOnly); err != nil {
		cancel(err)
		return nil, fmt.Errorf("make ICE agent: %w", err)
	}
	ufrag, pwd, err := p.agent.GetLocalUserCredentials()
	if err != nil {
		cancel(err)
		_ = p.agent.Close()
		return nil, fmt.Errorf("ICE credentials: %w", err)
	}
	p.checks = newChecks(e.pacer, cfg.Caller, pwd, func() { e.drops.paced.Add(1) })
	p.net.checks = p.checks
	if e.mux != nil {
		e.mux.expect(ufrag, p.checks)
	}
	p.closeAgent = sync.OnceFunc(func() {
		p.net.quit()
		_ = p.agent.GracefulClose()
		p.net.close()
		if e.mux != nil {
			e.mux.RemoveConnByUfrag(ufrag)
		}
		p.checks.finish()
	})
	if err := e.add(p); err != nil {
		p.shut(err)
		return nil, err
	}
	return p, nil
}

// Offer starts gathering and returns an offer for one data channel section.
func (p *Peer) Offer() (string, error) {
	d, err := p.local(webrtc.SDPTypeOffer, setupActpass)
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	p.offered = d
	p.mu.Unlock()
	text, err := d.encode()
	if err != nil {
		return "", err
	}
	return text, p.gather()
}

// SetAnswer takes the answer to Offer and begins to connect.
func (p *Peer) SetAnswer(text string) error {
	d, err := decodeDescription(text, webrtc.SDPTypeAnswer)
	if err != nil {
		return err
	}
	p.mu.Lock()
	offered := p.offered
	p.mu.Unlock()
	if offered == nil {
		return fmt.Errorf("%w: an answer without an offer", ErrDescription)
	}
	// The answer picks the roles: active is the DTLS client (RFC 8842 5.3).
	return p.start(d, true, d.setup == setupPassive)
}

// Answer takes an offer, starts gathering, begins to connect and returns the answer.
func (p *Peer) Answer(offer string) (string, error) {
	remote, err := decodeDescription(offer, webrtc.SDPTypeOffer)
	if err != nil {
		return "", err
	}
	setup := setupActive
	if remote.setup == setupActive {
		setup = setupPassive
	}
	p.mu.Lock()
	p.mid = remote.mid
	p.mu.Unlock()
	d, err := p.local(webrtc.SDPTypeAnswer, setup)
	if err != nil {
		return "", err
	}
	text, err := d.encode()
	if err != nil {
		return "", err
	}
	if err := p.start(remote, false, setup == setupActive); err != nil {
		return "", err
	}
	return text, p.gather()
}

// local is our description.
func (p *Peer) local(kind webrtc.SDPType, setup string) (*description, error) {
	ufrag, pwd, err := p.agent.GetLocalUserCredentials()
	if err != nil {
		return nil, fmt.Errorf("ICE credentials: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &description{
		kind: kind, mid: p.mid, ufrag: ufrag, pwd: pwd, setup: setup,
		fingerprints: []webrtc.DTLSFingerprint{p.cert.fingerprint},
	}, nil
}

func (p *Peer) gather() error {
	if p.gathered.Swap(true) {
		return fmt.Errorf("%w: a second description of ours", ErrDescription)
	}
	err := p.agent.OnCandidate(func(c ice.Candidate) {
		if c == nil {
			close(p.candidates)
			return
		}
		p.mu.Lock()
		mid := p.mid
		p.mu.Unlock()
		select {
		case p.candidates <- EncodeCandidate(c.Marshal(), mid):
		default: // more addresses than anyone will try
		}
	})
	if err != nil {
		return err
	}
	return p.agent.GatherCandidates()
}

// start begins to connect once both descriptions are known.
func (p *Peer) start(remote *description, controlling, client bool) error {
	p.mu.Lock()
	switch {
	case p.ended:
		p.mu.Unlock()
		return errClosed
	case p.started:
		p.mu.Unlock()
		return fmt.Errorf("%w: a second description", ErrDescription)
	}
	p.started = true
	p.checks.answerable(remote.pwd)
	p.maxMessage = remote.maxMessage
	if !client {
		p.firstID = 1
	}
	pending := p.pending
	p.pending = nil
	p.mu.Unlock()

	for _, c := range pending {
		_ = p.agent.AddRemoteCandidate(c) // fails only when the agent is closed, which run sees
	}
	for _, line := range remote.candidates {
		p.addCandidate(line)
	}
	go p.run(remote, controlling, client)
	return nil
}

// Connected is closed when channels can be used.
func (p *Peer) Connected() <-chan struct{} { return p.connected }

// Closing is closed when the peer begins to end; Err tells why.
func (p *Peer) Closing() <-chan struct{} { return p.closing }

// Done is closed when nothing of the peer is left: no socket, no goroutine.
func (p *Peer) Done() <-chan struct{} { return p.done }

// Renew is closed when the DTLS association nears its record limit.
func (p *Peer) Renew() <-chan struct{} { return p.records.renew }

// Records are the DTLS records sent and received so far.
func (p *Peer) Records() (sent, received uint64) {
	return p.records.sent.Load(), p.records.received.Load()
}

// Err is why the peer ended, or nil while it has not.
func (p *Peer) Err() error {
	if err := context.Cause(p.ctx); err != nil {
		return err
	}
	return nil
}

// MaxMessage is the largest message that the other side takes. It is known
// once Connected is closed.
func (p *Peer) MaxMessage() int { return p.maxMessage }

// FirstID is the first of the channel ids that this side may open; the others
// follow in steps of 2 (RFC 8832 section 6). It is known once Connected is closed.
func (p *Peer) FirstID() uint16 { return p.firstID }

// Close ends the peer and waits until nothing of it is left. It gives relays of
// TURN servers back, and waits for their answers for a second at most.
func (p *Peer) Close() error {
	p.shut(errClosed)
	<-p.done
	return nil
}

// Abandon ends the peer with a reason and does not wait.
func (p *Peer) Abandon(cause error) { p.shut(cause) }

// shut begins the end. The first cause counts.
func (p *Peer) shut(cause error) {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	p.ended = true
	started := p.started
	p.mu.Unlock()
	p.cancel(cause)
	close(p.closing)
	if !started {
		go p.finish() // run never was; finish waits for pion, and shut must not
	}
}

// finish releases what the peer holds. It runs once, as the last thing.
func (p *Peer) finish() {
	p.closeAgent()
	p.engine.remove(p)
	close(p.done)
}

// run connects the transports from the bottom up, hands out streams until the
// association ends, and takes everything down again.
func (p *Peer) run(remote *description, controlling, client bool) {
	defer p.finish()
	err := p.serve(remote, controlling, client)
	if err == nil {
		err = ErrFailed
	}
	p.shut(err)
}

func (p *Peer) serve(remote *description, controlling, client bool) error {
	setup, cancel := context.WithTimeout(p.ctx, p.engine.cfg.Setup)
	defer cancel()
	link, err := p.connectICE(setup, remote, controlling)
	if err != nil {
		return err
	}
	p.checks.finish()
	conn, err := p.connectDTLS(setup, link, remote, client)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Closing the association's connection is what ends a blocked read.
	stop := context.AfterFunc(p.ctx, func() { _ = conn.Close() })
	defer stop()
	assoc, err := sctp.ClientContext(setup, p.sctpOptions(conn)...)
	if err != nil {
		return fmt.Errorf("%w: SCTP: %w", ErrFailed, err)
	}
	defer assoc.Close()
	p.mu.Lock()
	p.streams.assoc = assoc
	p.mu.Unlock()
	close(p.associated)
	close(p.connected)
	return p.accept(assoc)
}

// Path is how a peer's packets travel.
type Path struct {
	// Kind is "direct" or "relayed"; empty before there is a path.
	Kind string
	// Local and Remote are "type address:port" of the two ends.
	Local, Remote string
	// RTT is the smoothed round trip time; 0 while unknown.
	RTT time.Duration
}

// Path is how packets travel now.
func (p *Peer) Path() Path {
	pair, err := p.agent.GetSelectedCandidatePair()
	if err != nil || pair == nil {
		return Path{}
	}
	end := func(c ice.Candidate) string {
		return fmt.Sprintf("%s %s", c.Type(), joinHostPort(c.Address(), c.Port()))
	}
	path := Path{Kind: "direct", Local: end(pair.Local), Remote: end(pair.Remote)}
	if pair.Local.Type() == ice.CandidateTypeRelay || pair.Remote.Type() == ice.CandidateTypeRelay {
		path.Kind = "relayed"
	}
	p.mu.Lock()
	assoc := p.streams.assoc
	p.mu.Unlock()
	if assoc != nil {
		path.RTT = time.Duration(assoc.SRTT() * float64(time.Millisecond))
	}
	return path
}
