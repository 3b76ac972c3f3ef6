// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"fmt"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// StartSignalChannel answers WebRTC.StartSignalChannel: the client signals
// with a node as it likes, and offers a peer connection of its own. Messages
// are relayed in both directions. The node id of the first message decides: it
// is the one that the caller of this method has checked, so later ones are
// ignored and an empty one is mesh.ErrInvalid. The service sends one message of its own first, with
// the client's ICE servers.
//
// A channel whose first message has a path is between two nodes, and about paths
// until its end; the service sends nothing of its own then. The caller of this
// method has checked that the client is a node which may signal to the other one.
func (s *Service) StartSignalChannel(ctx context.Context, caller Caller, stream Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
	ctx, end, err := s.call(ctx)
	if err != nil {
		return err
	}
	defer end()
	var opening *v1.WebRTCSignal
	in := s.newInbox(ctx, func() (signal, error) {
		m, err := stream.Receive()
		if opening == nil {
			opening = m
		}
		return signalOf(m), err
	})
	first, err := in.next(ctx, s.cfg.Timeouts.Message, "initial signal")
	if err != nil {
		return err
	}
	if opening.GetNodeId() == "" {
		return fmt.Errorf("node_id of the first signal is empty; name the node to signal with: %w", mesh.ErrInvalid)
	}
	node, err := mesh.ParseNodeID(opening.GetNodeId())
	if err != nil {
		return err
	}
	if first.path != nil {
		return s.startPaths(ctx, caller, node, first, in, stream)
	}
	local, err := s.cfg.Peers.Local(node)
	if err != nil {
		return fmt.Errorf("node %q: %w", node, err)
	}
	if err := stream.Send(&v1.WebRTCSignal{NodeId: string(node), IceServers: s.cfg.ICEServers(ctx, caller.ID)}); err != nil {
		return err
	}
	out := sender{
		description: func(d string) error { return stream.Send(&v1.WebRTCSignal{NodeId: string(node), Description: d}) },
		candidate:   func(c string) error { return stream.Send(&v1.WebRTCSignal{NodeId: string(node), Candidate: c}) },
	}
	in = in.prepend(ctx, s, first)
	if !local {
		return s.relaySignals(ctx, caller, node, in, out)
	}
	req := request{caller: caller.ID, node: node, kind: kindInBand, allowed: caller.Allowed, servers: rtcServers(s.cfg.LocalICEServers(ctx))}
	return s.answer(ctx, req, in, out)
}

// ReceiveSignalChannel answers Node.ReceiveSignalChannel: the node from relays
// the signals of one of its clients, or its own. This node waits for the
// offer, answers it and exchanges candidates; the peer connection accepts
// in-band channels, and a channel with the label "wireguard-proxy". As in
// NegotiateDataChannel, from is a gateway and the client that it names is
// believed. A channel whose first message has a path goes to Config.Paths.
func (s *Service) ReceiveSignalChannel(ctx context.Context, from mesh.NodeID, stream Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
	ctx, end, err := s.call(ctx)
	if err != nil {
		return err
	}
	defer end()
	var opening *v1.WebRTCSignal
	in := s.newInbox(ctx, func() (signal, error) {
		m, err := stream.Receive()
		if opening == nil {
			opening = m
		}
		return signalOf(m), err
	})
	first, err := in.next(ctx, s.cfg.Timeouts.Message, "initial signal")
	if err != nil {
		return err
	}
	caller := opening.GetCaller()
	if caller == "" {
		caller = string(from)
	}
	reply := opening.GetNodeId() // who is to get our messages, as the relay named it
	if first.path != nil {
		path, err := first.inPath()
		if err != nil {
			return err
		}
		return s.servePaths(ctx, caller, path, in, func(p *v1.PathSignal) error {
			return stream.Send(&v1.WebRTCSignal{NodeId: reply, Path: p})
		})
	}
	req := request{caller: caller, node: s.cfg.Self, kind: kindInBand, servers: s.theirServers(opening.GetIceServers(), nil)}
	return s.answer(ctx, req, in.prepend(ctx, s, first), sender{
		description: func(d string) error { return stream.Send(&v1.WebRTCSignal{NodeId: reply, Description: d}) },
		candidate:   func(c string) error { return stream.Send(&v1.WebRTCSignal{NodeId: reply, Candidate: c}) },
	})
}

// signalOf is what a message says; m may be nil.
func signalOf(m *v1.WebRTCSignal) signal {
	return signal{description: m.GetDescription(), candidate: m.GetCandidate(), path: m.GetPath()}
}

// answer negotiates a peer connection in which the other side offers.
func (s *Service) answer(ctx context.Context, req request, in *inbox, out sender) error {
	x, err := s.newSession(req)
	if err != nil {
		return err
	}
	defer x.settle()
	return s.exchange(ctx, exchange{
		session: x, in: in, out: out, due: "offer", early: true,
		take: func(offer string) error {
			answer, err := x.peer.Answer(offer)
			if err != nil {
				return err
			}
			return out.description(answer)
		},
	})
}

// relaySignals carries the signals between a client and another node.
func (s *Service) relaySignals(ctx context.Context, caller Caller, node mesh.NodeID, in *inbox, out sender) error {
	end, err := s.negotiation(caller.ID)
	if err != nil {
		s.metrics.refused.Inc()
		return err
	}
	defer end()
	call, err := s.cfg.Peers.Signal(ctx, node)
	if err != nil {
		return unreachable(node, err)
	}
	send := func(m *v1.WebRTCSignal) error {
		m.NodeId, m.Caller = caller.ID, caller.ID // whatever the client wrote there
		return call.Send(m)
	}
	if err := send(&v1.WebRTCSignal{IceServers: s.cfg.ICEServers(ctx, string(node))}); err != nil {
		return sendFailed(call.Receive, node, err)
	}
	s.metrics.relayed.Inc()
	return s.relay(ctx, relay{
		node: node, client: in, toClient: s.telling(caller.ID, string(node), out), due: "offer",
		fromNode: s.newInbox(ctx, func() (signal, error) {
			m, err := call.Receive()
			return signalOf(m), err
		}),
		toNode: s.telling(string(node), caller.ID, sender{
			description: func(d string) error { return send(&v1.WebRTCSignal{Description: d}) },
			candidate:   func(c string) error { return send(&v1.WebRTCSignal{Candidate: c}) },
		}),
		closeNode: call.CloseSend,
		connected: end,
	})
}
