// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// kind is what a peer connection carries.
type kind string

const (
	kindInBand    kind = "in_band"
	kindForward   kind = "forward"
	kindWireGuard kind = "wireguard"
)

// maxRefused is how many channels a client may have refused before it is taken
// for an attacker: SCTP keeps a refused stream until the client gives it up.
const maxRefused = 1024

// session is one peer connection and all that runs inside it.
//
// Goroutines: run, from begin to the end of the peer; and one for each channel
// and each reader of a control channel, which run waits for. A session that
// never began has none.
type session struct {
	svc    *Service
	peer   *rtc.Peer
	logger *slog.Logger
	kind   kind
	caller string
	node   mesh.NodeID
	dest   Destination
	since  time.Time
	// allowed is Caller.Allowed; nil: always.
	allowed func() error

	endNegotiation func()
	memory         *account        // what the session holds
	ctx            context.Context //nolint:containedctx // done when the session ends
	cancel         context.CancelFunc
	children       sync.WaitGroup
	channels       atomic.Int64  // that are being served
	quiet          chan struct{} // of capacity 1: signalled when channels falls to 0
	refused        atomic.Int64
	started        atomic.Bool
}

// SessionInfo describes a peer connection.
type SessionInfo struct {
	// Kind is "in_band", "forward" or "wireguard".
	Kind string
	// Caller is who uses it, Node the node that it was asked for.
	Caller string
	Node   mesh.NodeID
	// Channels are being served now.
	Channels int
	Since    time.Time
	// Path is how its packets travel.
	Path rtc.Path
}

func (x *session) info() SessionInfo {
	return SessionInfo{
		Kind: string(x.kind), Caller: x.caller, Node: x.node,
		Channels: int(x.channels.Load()), Since: x.since, Path: x.peer.Path(),
	}
}

// newSession makes the peer for a request. The caller ends with settle.
func (s *Service) newSession(req request) (*session, error) {
	end, err := s.negotiation(req.caller)
	if err != nil {
		s.metrics.refused.Inc()
		return nil, err
	}
	x := &session{
		svc: s, kind: req.kind, caller: req.caller, node: req.node, dest: req.dest, since: time.Now(), allowed: req.allowed,
		endNegotiation: end, memory: s.budget.account(req.caller, s.cfg.Limits.Memory),
		quiet:  make(chan struct{}, 1),
		logger: s.logger.With("session", s.serial.Add(1), "peer", req.caller),
	}
	peer := rtc.PeerConfig{Servers: req.servers, Caller: req.caller, ReceiveBuffer: s.receiveBuffer(req.caller)}
	if x.peer, err = s.engine.NewPeer(s.ctx, peer); err != nil {
		end()
		x.memory.close()
		return nil, named(err)
	}
	x.ctx, x.cancel = context.WithCancel(context.WithoutCancel(s.ctx))
	if err := s.admit(x); err != nil {
		s.metrics.refused.Inc()
		end()
		x.cancel()
		x.memory.close()
		_ = x.peer.Close()
		return nil, err
	}
	return x, nil
}

// begun says whether the session runs on its own.
func (x *session) begun() bool { return x.started.Load() }

// begin starts the session. Both descriptions are known.
func (x *session) begin() {
	x.started.Store(true)
	go x.run()
}

// settle ends a session that never began.
func (x *session) settle() {
	if x.begun() {
		return
	}
	x.endNegotiation()
	x.cancel()
	_ = x.peer.Close()
	x.svc.dismiss(x)
}

// run is the life of a session from the answer on.
func (x *session) run() {
	begin := time.Now()
	defer x.svc.dismiss(x)
	defer x.peer.Close()
	defer x.children.Wait()
	defer x.cancel()
	defer x.endNegotiation()
	select {
	case <-x.peer.Connected():
	case <-x.peer.Closing():
		x.svc.metrics.failed.Inc()
		x.logger.Debug("no peer connection", "err", x.peer.Err(), "dur", time.Since(begin))
		return
	case <-x.svc.ctx.Done():
		return
	}
	x.endNegotiation()
	m := x.svc.metrics
	m.connect.Observe(time.Since(begin).Seconds())
	m.started.WithLabelValues(string(x.kind)).Inc()
	m.active.WithLabelValues(string(x.kind)).Inc()
	defer m.active.WithLabelValues(string(x.kind)).Dec()
	x.logger.Debug("peer connection stands", "kind", string(x.kind), "dur", time.Since(begin))
	err := x.serve()
	x.peer.Abandon(err) // which ends the channels, and with them the children
	x.logger.Debug("peer connection ends", "err", err, "dur", time.Since(begin))
}

// serve runs the kind's protocol until the peer ends. What it returns is for
// the log.
func (x *session) serve() error {
	if err := x.stands(); err != nil {
		return err
	}
	switch x.kind {
	case kindForward:
		return x.serveForward()
	case kindWireGuard:
		return x.serveWireGuard()
	}
	return x.serveInBand()
}

// over is why the peer ended.
func (x *session) over() error {
	if err := x.peer.Err(); err != nil {
		return err
	}
	return io.EOF
}

// spawn runs f as the server of one channel.
func (x *session) spawn(f func()) {
	x.channels.Add(1)
	x.children.Go(func() {
		defer func() {
			if x.channels.Add(-1) == 0 {
				select {
				case x.quiet <- struct{}{}:
				default:
				}
			}
		}()
		f()
	})
}

// queue is how many bytes one channel may have waiting to be sent.
func (x *session) queue() int {
	return int(min(max(x.memory.share(), 4*bridge.MessageSize), bridge.Window))
}

// enter takes the place of one more channel, which x.memory.leave gives back.
func (x *session) enter() error {
	if x.full() {
		return fmt.Errorf("more than %d channels: %w", x.svc.cfg.Limits.Channels, mesh.ErrExhausted)
	}
	return x.memory.open()
}

// full says whether the client has more channels than it may, its control
// channel aside. Channels that it does not close after we did count.
func (x *session) full() bool { return x.peer.Live()-1 > x.svc.cfg.Limits.Channels }

// refuse counts a refused channel and gives up on a client that does nothing else.
func (x *session) refuse() {
	if x.refused.Add(1) == maxRefused {
		x.logger.Warn("peer connection ended: too many refused channels", "n", maxRefused)
		x.peer.Abandon(fmt.Errorf("%d refused channels: %w", maxRefused, mesh.ErrExhausted))
	}
}

// connect asks for leave and dials. The error is what the client may know.
func (x *session) connect(ctx context.Context, d Destination) (net.Conn, *bridge.Error) {
	addr, err := x.authorize(ctx, d)
	if err != nil {
		told := refusal(err)
		x.svc.metrics.opened(d.Protocol, result(told.Code))
		switch {
		case told.Code == "internal":
			x.logger.Error("authorize a destination", "err", err)
		case errors.Is(err, mesh.ErrDenied): // for the audit; maxRefused bounds them
			x.logger.Info("destination refused", "dest", d.String(), "err", err)
		default:
			x.logger.Debug("destination refused", "dest", d.String(), "err", err)
		}
		return nil, told
	}
	ctx, cancel := context.WithTimeout(ctx, x.svc.cfg.Timeouts.Dial)
	defer cancel()
	conn, err := x.svc.cfg.Dialer.DialContext(ctx, d.Protocol, addr.String())
	if err != nil {
		x.svc.metrics.opened(d.Protocol, resultDial)
		x.logger.Debug("dial failed", "dest", d.String(), "addr", addr, "err", err)
		return nil, dialFailure(x.node, d, err)
	}
	if k, ok := conn.(interface{ SetKeepAlive(bool) error }); ok {
		_ = k.SetKeepAlive(true) // best effort: the kernel's default stays
	}
	x.svc.metrics.opened(d.Protocol, resultOK)
	return conn, nil
}

func result(code string) string {
	switch code {
	case "permission_denied":
		return resultDenied
	case "invalid_argument", "not_found":
		return resultInvalid
	}
	return resultError
}

// discard closes a channel and waits, not long, until the client has too.
func discard(ch *rtc.Channel) {
	_ = ch.Close()
	_ = ch.SetReadDeadline(time.Now().Add(closeWait))
	buf := make([]byte, bridge.MessageSize)
	for {
		if _, _, err := ch.ReadMessage(buf); err != nil {
			if errors.Is(err, io.ErrShortBuffer) {
				buf = make([]byte, rtc.MaxMessageSize)
				continue
			}
			return
		}
	}
}

// closeWait is how long a client has to answer the end of a channel.
const closeWait = 10 * time.Second
