// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"fmt"
	"math"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// StartDataChannel answers WebRTC.StartDataChannel: a client wants a peer
// connection to a node. It returns when the client half-closes the call, or
// with an error; the peer connection lives on.
func (s *Service) StartDataChannel(ctx context.Context, caller Caller, stream Stream[*v1.StartDataChannelRequest, *v1.DataChannelOffer]) error {
	ctx, end, err := s.call(ctx)
	if err != nil {
		return err
	}
	defer end()
	var first *v1.StartDataChannelRequest
	in := s.newInbox(ctx, func() (signal, error) {
		m, err := stream.Receive()
		if first == nil {
			first = m
		}
		return signal{description: m.GetAnswer(), candidate: m.GetCandidate()}, err
	})
	if _, err := in.next(ctx, s.cfg.Timeouts.Message, "initial request"); err != nil {
		return err
	}
	node, err := mesh.ParseNodeID(first.GetNodeId())
	if err != nil {
		return err
	}
	req, err := newRequest(first.GetInBand(), first.GetProto(), first.GetDst(), first.GetPort())
	if err != nil {
		return err
	}
	req.caller, req.node, req.allowed = caller.ID, node, caller.Allowed
	local, err := s.cfg.Peers.Local(node)
	if err != nil {
		return fmt.Errorf("node %q: %w", node, err)
	}
	servers := s.cfg.ICEServers(ctx, caller.ID)
	out := sender{
		description: func(offer string) error {
			return stream.Send(&v1.DataChannelOffer{Offer: offer, IceServers: servers, StunServers: serverURLs(servers)})
		},
		candidate: func(c string) error { return stream.Send(&v1.DataChannelOffer{Candidate: c}) },
	}
	if !local {
		return s.relayDataChannel(ctx, caller, req, in, out)
	}
	req.servers = rtcServers(s.cfg.LocalICEServers(ctx))
	return s.offer(ctx, req, in, out)
}

// NegotiateDataChannel answers Node.NegotiateDataChannel: the node from relays
// the request of one of its clients to this node. The caller of this method
// has checked that from is a gateway; the identity of the client that it names
// is believed for that reason. A v1 node names none: then it answers for its
// clients itself.
func (s *Service) NegotiateDataChannel(ctx context.Context, from mesh.NodeID, stream Stream[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]) error {
	ctx, end, err := s.call(ctx)
	if err != nil {
		return err
	}
	defer end()
	var first *v1.DataChannelNegotiation
	in := s.newInbox(ctx, func() (signal, error) {
		m, err := stream.Receive()
		if first == nil {
			first = m
		}
		return signal{description: m.GetAnswer(), candidate: m.GetCandidate()}, err
	})
	if _, err := in.next(ctx, s.cfg.Timeouts.Message, "initial request"); err != nil {
		return err
	}
	req, err := newRequest(first.GetInBand(), first.GetProto(), first.GetDst(), first.GetPort())
	if err != nil {
		return err
	}
	req.caller, req.node = first.GetCaller(), s.cfg.Self
	if req.caller == "" {
		req.caller = string(from)
	}
	req.servers = s.theirServers(first.GetIceServers(), first.GetStunServers())
	return s.offer(ctx, req, in, sender{
		description: func(offer string) error { return stream.Send(&v1.DataChannelNegotiation{Offer: offer}) },
		candidate:   func(c string) error { return stream.Send(&v1.DataChannelNegotiation{Candidate: c}) },
	})
}

// request is what a client asked for, checked.
type request struct {
	caller  string
	node    mesh.NodeID
	kind    kind
	dest    Destination // of a v1 client
	servers []rtc.ICEServer
	allowed func() error // of the Caller; nil for calls of other nodes
}

// newRequest applies the defaults of the v1 API and refuses what no node does.
func newRequest(inBand bool, proto, dst string, port uint32) (request, error) {
	if inBand {
		return request{kind: kindInBand}, nil
	}
	if proto == "" {
		proto = "tcp"
	}
	if dst == "" {
		dst = "127.0.0.1"
	}
	switch {
	case proto != "tcp" && proto != "udp":
		return request{}, fmt.Errorf("protocol %.20q: only \"tcp\" and \"udp\" are spoken: %w", proto, mesh.ErrInvalid)
	case port > math.MaxUint16:
		return request{}, fmt.Errorf("port %d: the highest is 65535: %w", port, mesh.ErrInvalid)
	case port == 0 && proto != "udp":
		return request{}, fmt.Errorf("port 0 stands for the node's WireGuard device and needs protocol \"udp\": %w", mesh.ErrInvalid)
	case len(dst) > mesh.MaxNameLen:
		return request{}, fmt.Errorf("dst is longer than %d bytes: %w", mesh.MaxNameLen, mesh.ErrInvalid)
	}
	req := request{kind: kindForward, dest: Destination{Protocol: proto, Host: dst, Port: uint16(port)}}
	if port == 0 {
		req.kind, req.dest = kindWireGuard, wireGuardDestination()
	}
	return req, nil
}

// offer negotiates a peer connection in which we offer, and starts it.
func (s *Service) offer(ctx context.Context, req request, in *inbox, out sender) error {
	if req.kind != kindInBand {
		// The first decision is made here, so that the client gets it as the
		// result of its call; each connection asks again.
		if _, err := s.authorize(ctx, req.caller, req.node, req.dest); err != nil {
			return err
		}
	}
	if req.kind == kindWireGuard && s.cfg.WireGuard == nil {
		return errNoWireGuard
	}
	x, err := s.newSession(req)
	if err != nil {
		return err
	}
	defer x.settle()
	offer, err := x.peer.Offer()
	if err != nil {
		return named(err)
	}
	if err := out.description(offer); err != nil {
		return err
	}
	return s.exchange(ctx, exchange{
		session: x, in: in, out: out, due: "answer from client",
		take: func(answer string) error { return x.peer.SetAnswer(answer) },
	})
}
