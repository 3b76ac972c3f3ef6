// SPDX-License-Identifier: Apache-2.0

// Package client is the client of StartDataChannel: one peer connection to a
// node, and as many connections through it as are needed. It speaks the
// in-band protocol "meshgate.1".
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// Stream is a call of WebRTC.StartDataChannel. It ends with the context that
// it was made with; Dial closes its sending side when it is done.
type Stream interface {
	Send(*v1.StartDataChannelRequest) error
	Receive() (*v1.DataChannelOffer, error)
	CloseSend() error
}

// Options say how Dial works.
type Options struct {
	// Node is the node to reach; required.
	Node string
	// RTC says how the peer connection is made. Its UDP must be nil.
	RTC rtc.Config
	// RelayOnly keeps the traffic on TURN servers.
	RelayOnly bool
	// OnRenew is called once when the server asks for a new peer connection:
	// further connections should go through a new Conn, and this one ends some
	// minutes later. It runs in a goroutine of the Conn and must not block.
	OnRenew func()
	// Logger may be nil, which discards.
	Logger *slog.Logger
}

// Error is a refusal or failure that the node named, with an rpc code in snake
// case.
type Error = bridge.Error

const (
	controlID    = 0
	controlLabel = "meshgate-control"
	openTimeout  = 30 * time.Second
	closeTimeout = 10 * time.Second
)

// Conn is a peer connection to a node. It is safe for concurrent use.
//
// Goroutines: one reads the control channel, one refuses channels that the
// node opens, and each connection has one. Close waits for all.
type Conn struct {
	engine *rtc.Engine
	peer   *rtc.Peer
	opts   Options
	logger *slog.Logger
	tasks  sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	closed  bool
	next    int // id of the next channel to try
	used    map[uint16]struct{}
	udp     map[uint16]chan *Error // udp channels that wait for the node's answer
	goodbye string
}

// Dial asks for a peer connection through stream and waits until it stands.
// The call is over when Dial returns.
func Dial(ctx context.Context, stream Stream, opts Options) (*Conn, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.RTC.UDP != nil {
		return nil, errors.New("a client's peer connection cannot share a socket")
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	engine, err := rtc.New(opts.RTC)
	if err != nil {
		return nil, err
	}
	c := &Conn{
		engine: engine, opts: opts, logger: opts.Logger.With("component", "client", "node", opts.Node),
		used: map[uint16]struct{}{controlID: {}}, udp: map[uint16]chan *Error{},
	}
	if err := c.negotiate(ctx, stream); err != nil {
		_ = engine.Close()
		c.tasks.Wait()
		return nil, fmt.Errorf("connect to node %q: %w", opts.Node, err)
	}
	return c, nil
}

// negotiate runs the call until channels can be opened.
func (c *Conn) negotiate(ctx context.Context, stream Stream) error {
	defer func() { _ = stream.CloseSend() }()
	if err := stream.Send(&v1.StartDataChannelRequest{NodeId: c.opts.Node, InBand: true}); err != nil {
		return sendFailed(stream, err)
	}
	incoming := c.receive(ctx, stream)
	var first received
	select {
	case first = <-incoming:
	case <-ctx.Done():
		return ctx.Err()
	}
	if first.err != nil {
		return first.err
	}
	var err error
	if c.peer, err = c.engine.NewPeer(ctx, rtc.PeerConfig{Servers: servers(first.m.GetIceServers()), RelayOnly: c.opts.RelayOnly}); err != nil {
		return err
	}
	answer, err := c.peer.Answer(first.m.GetOffer())
	if err != nil {
		return err
	}
	if err := stream.Send(&v1.StartDataChannelRequest{NodeId: c.opts.Node, InBand: true, Answer: answer}); err != nil {
		return answerLost(ctx, incoming, err)
	}
	if err := c.trickle(ctx, stream, incoming); err != nil {
		return err
	}
	return c.start(context.WithoutCancel(ctx))
}

type received struct {
	m   *v1.DataChannelOffer
	err error
}

// receive takes messages until the call ends. The goroutine may outlive Dial
// until the call's own context ends, so nobody waits for it.
func (c *Conn) receive(ctx context.Context, stream Stream) <-chan received {
	out := make(chan received)
	go func() {
		for {
			m, err := stream.Receive()
			select {
			case out <- received{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

// trickle exchanges candidates until the peer connection stands.
func (c *Conn) trickle(ctx context.Context, stream Stream, incoming <-chan received) error {
	ours := c.peer.Candidates()
	for {
		select {
		case r := <-incoming:
			switch {
			case errors.Is(r.err, io.EOF):
				incoming = nil // the node has nothing more to say; ICE goes on
			case r.err != nil:
				return r.err
			case r.m.GetCandidate() != "":
				if err := c.peer.AddCandidate(r.m.GetCandidate()); err != nil {
					return err
				}
			}
		case line, ok := <-ours:
			if !ok {
				ours = nil
				continue
			}
			if err := stream.Send(&v1.StartDataChannelRequest{NodeId: c.opts.Node, InBand: true, Candidate: line}); err != nil {
				ours = nil // the reason shows on the receiving side
			}
		case <-c.peer.Connected():
			return nil
		case <-c.peer.Closing():
			return c.peer.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sendFailed prefers the server's reason, which the receiving side has.
func sendFailed(stream Stream, err error) error {
	if _, reason := stream.Receive(); reason != nil && !errors.Is(reason, io.EOF) {
		return reason
	}
	return err
}

// answerLost is sendFailed once receive runs, which alone may call Receive.
func answerLost(ctx context.Context, incoming <-chan received, err error) error {
	for {
		select {
		case r := <-incoming:
			switch {
			case r.err == nil:
			case errors.Is(r.err, io.EOF):
				return err
			default:
				return r.err
			}
		case <-ctx.Done():
			return err
		}
	}
}

// start opens the control channel and the goroutines of c.
func (c *Conn) start(ctx context.Context) error {
	control, err := c.peer.Negotiated(rtc.ChannelConfig{ID: controlID, Label: controlLabel, Protocol: bridge.Protocol})
	if err != nil {
		return err
	}
	c.next = int(c.peer.FirstID())
	c.tasks.Go(func() { c.control(control) })
	c.tasks.Go(func() { c.refuse(ctx) })
	return nil
}

// control reads the control channel to its end.
func (c *Conn) control(ch *rtc.Channel) {
	buf := make([]byte, bridge.MaxControlSize)
	renewed := false
	for {
		n, text, err := ch.ReadMessage(buf)
		if err != nil {
			c.peer.Abandon(io.EOF)
			return
		}
		m, err := bridge.ParseControl(buf[:n])
		if !text || err != nil {
			continue
		}
		switch m.Type {
		case bridge.TypePing:
			_ = ch.WriteMessage(bridge.Control{Type: bridge.TypePong, ID: m.ID}.Encode(), true)
		case bridge.TypeRenew:
			if !renewed && c.opts.OnRenew != nil {
				c.opts.OnRenew()
			}
			renewed = true
		case bridge.TypeGoodbye:
			c.mu.Lock()
			c.goodbye = m.Message
			c.mu.Unlock()
			c.logger.Debug("the node says goodbye", "reason", m.Message)
		case bridge.TypeOpen:
			c.answered(m.Channel, nil)
		case bridge.TypeError:
			c.answered(m.Channel, &Error{Code: m.Code, Message: m.Message})
		}
	}
}

// answered passes the node's answer to the one that opens a udp channel.
func (c *Conn) answered(id *uint16, answer *Error) {
	if id == nil {
		return
	}
	c.mu.Lock()
	wait := c.udp[*id]
	delete(c.udp, *id)
	c.mu.Unlock()
	if wait != nil {
		wait <- answer // of capacity 1, and removed above
	}
}

// refuse resets channels that the node opens; it has no reason to.
func (c *Conn) refuse(ctx context.Context) {
	for {
		in, err := c.peer.Accept(ctx)
		if err != nil {
			return
		}
		if in.ID() != controlID {
			in.Reset()
		}
	}
}

// Path is how packets to the node travel now.
func (c *Conn) Path() rtc.Path { return c.peer.Path() }

// Done is closed when the peer connection begins to end; Err tells why.
func (c *Conn) Done() <-chan struct{} { return c.peer.Closing() }

// Err is why the peer connection ended, or nil while it has not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.peer.Err(); err != nil {
		if c.goodbye != "" {
			return fmt.Errorf("the node ended the connection: %s", c.goodbye)
		}
		return err
	}
	return nil
}

// Close ends all connections and waits until nothing is left.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := c.engine.Close()
	c.tasks.Wait()
	return err
}

func servers(list []*v1.ICEServer) []rtc.ICEServer {
	out := make([]rtc.ICEServer, 0, len(list))
	for _, s := range list {
		out = append(out, rtc.ICEServer{URLs: s.GetUrls(), Username: s.GetUsername(), Credential: s.GetCredential()})
	}
	return out
}

var _ net.Conn = (*bridge.Stream)(nil)
