// SPDX-License-Identifier: Apache-2.0

// Package v1client is a literal client of the v1 data channel protocol, for
// tests: it does on the wire what existing v1 clients do, over the
// PeerConnection of pion/webrtc that they use. Unlike them it sends data as
// soon as its own side of a channel is open, which v1 nodes lose.
package v1client

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/pion/datachannel"
	"github.com/pion/ice/v2"
	"github.com/pion/webrtc/v3"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// Stream is a call of WebRTC.StartDataChannel.
type Stream interface {
	Send(*v1.StartDataChannelRequest) error
	Receive() (*v1.DataChannelOffer, error)
	CloseSend() error
}

// Config says what to ask for and how.
type Config struct {
	// Request is the first message: node, proto, dst and port.
	Request *v1.StartDataChannelRequest
	// Vanilla puts all candidates into the answer and half-closes at once.
	Vanilla bool
	// RawCandidates sends the candidate line where others send JSON.
	RawCandidates bool
	// Credentials for TURN servers; v1 clients use the node id for both.
	Username, Password string
	// IPFilter says which addresses are offered; nil offers loopback only.
	IPFilter func(net.IP) bool
	// RelayOnly keeps the traffic on TURN servers.
	RelayOnly bool
	// Socket carries all packets of the client, so that closing it makes the
	// client vanish; nil lets it open its own.
	Socket net.PacketConn
}

// Client is a peer connection as a v1 client has it.
type Client struct {
	PC *webrtc.PeerConnection
	// Offer is what the server sent first.
	Offer *v1.DataChannelOffer

	api     *webrtc.API
	control datachannel.ReadWriteCloser // CHANNELS, or wireguard-proxy
	proto   string

	mu     sync.Mutex // guards next
	next   uint32
	opened chan struct{}
}

// Dial runs the negotiation and waits for the control channel.
func Dial(ctx context.Context, stream Stream, cfg Config) (*Client, error) {
	c := &Client{api: newAPI(cfg), proto: cfg.Request.GetProto(), next: 1, opened: make(chan struct{})}
	if c.proto == "" {
		c.proto = "tcp"
	}
	if err := stream.Send(cfg.Request); err != nil {
		return nil, first(stream, err)
	}
	var err error
	if c.Offer, err = stream.Receive(); err != nil {
		return nil, err
	}
	if err := c.prepare(cfg); err != nil {
		return nil, err
	}
	if err := c.negotiate(ctx, stream, cfg); err != nil {
		return nil, errors.Join(err, c.PC.Close())
	}
	return c, nil
}

func newAPI(cfg Config) *webrtc.API {
	var s webrtc.SettingEngine
	s.DetachDataChannels()
	s.SetIncludeLoopbackCandidate(true)
	s.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	filter := cfg.IPFilter
	if filter == nil {
		filter = func(ip net.IP) bool { return ip.IsLoopback() && ip.To4() != nil }
	}
	s.SetIPFilter(filter)
	if cfg.Socket != nil {
		s.SetICEUDPMux(ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: cfg.Socket}))
	}
	return webrtc.NewAPI(webrtc.WithSettingEngine(s))
}

// prepare makes the peer connection with the channel of id 0.
func (c *Client) prepare(cfg Config) error {
	config := webrtc.Configuration{}
	if urls := c.Offer.GetStunServers(); len(urls) > 0 {
		config.ICEServers = []webrtc.ICEServer{{URLs: urls, Username: cfg.Username, Credential: cfg.Password}}
	}
	if cfg.RelayOnly {
		config.ICETransportPolicy = webrtc.ICETransportPolicyRelay
	}
	var err error
	if c.PC, err = c.api.NewPeerConnection(config); err != nil {
		return err
	}
	id, negotiated, label, proto := uint16(0), true, "CHANNELS", "tcp"
	init := &webrtc.DataChannelInit{ID: &id, Negotiated: &negotiated, Protocol: &proto}
	if cfg.Request.GetProto() == "udp" && cfg.Request.GetPort() == 0 {
		label, init.Protocol = "wireguard-proxy", nil
	}
	dc, err := c.PC.CreateDataChannel(label, init)
	if err != nil {
		return err
	}
	dc.OnOpen(func() {
		c.control, _ = dc.Detach() // cannot fail in OnOpen
		close(c.opened)
	})
	return nil
}

func (c *Client) negotiate(ctx context.Context, stream Stream, cfg Config) error {
	var offer webrtc.SessionDescription
	if err := json.Unmarshal([]byte(c.Offer.GetOffer()), &offer); err != nil {
		return fmt.Errorf("offer: %w", err)
	}
	if err := c.PC.SetRemoteDescription(offer); err != nil {
		return err
	}
	ours := make(chan *webrtc.ICECandidate, 64)
	c.PC.OnICECandidate(func(i *webrtc.ICECandidate) { ours <- i })
	failed := make(chan struct{})
	c.PC.OnConnectionStateChange(func(s webrtc.PeerConnectionState) {
		if s == webrtc.PeerConnectionStateFailed {
			close(failed)
		}
	})
	gathered := webrtc.GatheringCompletePromise(c.PC)
	answer, err := c.PC.CreateAnswer(nil)
	if err != nil {
		return err
	}
	if err := c.PC.SetLocalDescription(answer); err != nil {
		return err
	}
	if cfg.Vanilla {
		<-gathered
	}
	text, err := json.Marshal(c.PC.LocalDescription())
	if err != nil {
		return err
	}
	if err := stream.Send(&v1.StartDataChannelRequest{Answer: string(text)}); err != nil {
		return first(stream, err)
	}
	if cfg.Vanilla {
		if err := stream.CloseSend(); err != nil {
			return err
		}
	} else {
		go c.sendCandidates(stream, ours, cfg)
	}
	theirs := make(chan error, 1)
	go func() { theirs <- c.takeCandidates(stream) }()
	for {
		select {
		case err := <-theirs:
			if !errors.Is(err, io.EOF) {
				return err
			}
			theirs = nil
		case <-c.opened:
			return stream.CloseSend()
		case <-failed:
			return errors.New("peer connection failed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Client) sendCandidates(stream Stream, ours <-chan *webrtc.ICECandidate, cfg Config) {
	for i := range ours {
		if i == nil {
			return
		}
		line := i.ToJSON().Candidate
		if !cfg.RawCandidates {
			b, err := json.Marshal(i.ToJSON())
			if err != nil {
				return
			}
			line = string(b)
		}
		if stream.Send(&v1.StartDataChannelRequest{Candidate: line}) != nil {
			return
		}
	}
}

// takeCandidates decodes candidates as v1 clients do: JSON or nothing.
func (c *Client) takeCandidates(stream Stream) error {
	for {
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		var init webrtc.ICECandidateInit
		if err := json.Unmarshal([]byte(m.GetCandidate()), &init); err != nil {
			return fmt.Errorf("candidate %q: %w", m.GetCandidate(), err)
		}
		if strings.TrimSpace(init.Candidate) == "" {
			return errors.New("empty candidate")
		}
		if err := c.PC.AddICECandidate(init); err != nil {
			return err
		}
	}
}

func first(stream Stream, err error) error {
	if _, reason := stream.Receive(); reason != nil {
		return reason
	}
	return err
}

// Control is the channel of id 0: CHANNELS, or wireguard-proxy.
func (c *Client) Control() datachannel.ReadWriteCloser { return c.control }

// Open opens the next connection. It does not wait for the server.
func (c *Client) Open() (datachannel.ReadWriteCloser, error) {
	c.mu.Lock()
	n := c.next
	c.next++
	c.mu.Unlock()
	return c.OpenID(n)
}

// OpenID opens connection n: it sends the four bytes and creates the channel,
// whose data may be sent at once.
func (c *Client) OpenID(n uint32) (datachannel.ReadWriteCloser, error) {
	var open [4]byte
	binary.BigEndian.PutUint32(open[:], n)
	if _, err := c.control.Write(open[:]); err != nil {
		return nil, err
	}
	return c.Channel(uint16(n))
}

// Channel creates our side of the negotiated channel id, and nothing else.
func (c *Client) Channel(id uint16) (datachannel.ReadWriteCloser, error) {
	negotiated := true
	dc, err := c.PC.CreateDataChannel("CONNECTIONS", &webrtc.DataChannelInit{ID: &id, Negotiated: &negotiated, Protocol: &c.proto})
	if err != nil {
		return nil, err
	}
	opened := make(chan datachannel.ReadWriteCloser, 1)
	dc.OnOpen(func() {
		d, _ := dc.Detach() // cannot fail in OnOpen
		opened <- d
	})
	return <-opened, nil
}

// Close ends the peer connection.
func (c *Client) Close() error { return c.PC.GracefulClose() }
