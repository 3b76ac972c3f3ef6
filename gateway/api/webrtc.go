// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
	"github.com/meshgate/meshgate/signaling"
)

// Signaling negotiates WebRTC sessions; *signaling.Service is one. Each method
// returns when its call is over.
type Signaling interface {
	StartDataChannel(ctx context.Context, caller signaling.Caller, stream signaling.Stream[*v1.StartDataChannelRequest, *v1.DataChannelOffer]) error
	StartSignalChannel(ctx context.Context, caller signaling.Caller, stream signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error
	NegotiateDataChannel(ctx context.Context, from mesh.NodeID, stream signaling.Stream[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]) error
	ReceiveSignalChannel(ctx context.Context, from mesh.NodeID, stream signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error
}

// webRTCService serves v1.WebRTC.
type webRTCService struct{ signaling Signaling }

var _ v1connect.WebRTCHandler = (*webRTCService)(nil)

// StartDataChannel negotiates a data channel between the client and a node.
func (w *webRTCService) StartDataChannel(ctx context.Context, stream *connect.BidiStream[v1.StartDataChannelRequest, v1.DataChannelOffer]) error {
	return w.signaling.StartDataChannel(ctx, signalingCaller(ctx), serverStream[v1.StartDataChannelRequest, v1.DataChannelOffer]{stream})
}

// StartSignalChannel relays signals between the client and a node.
func (w *webRTCService) StartSignalChannel(ctx context.Context, stream *connect.BidiStream[v1.WebRTCSignal, v1.WebRTCSignal]) error {
	return w.signaling.StartSignalChannel(ctx, signalingCaller(ctx), serverStream[v1.WebRTCSignal, v1.WebRTCSignal]{stream})
}

func signalingCaller(ctx context.Context) signaling.Caller {
	c := CallerFrom(ctx)
	return signaling.Caller{ID: c.ID, Addr: c.Addr, Allowed: c.Allowed}
}

// serverStream is a signaling.Stream on the server's side of a call.
type serverStream[In, Out any] struct {
	*connect.BidiStream[In, Out]
}

// Receive returns io.EOF, unwrapped, after the client's last message.
func (s serverStream[In, Out]) Receive() (*In, error) {
	m, err := s.BidiStream.Receive()
	if err != nil && errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	return m, err
}
