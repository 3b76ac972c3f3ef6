// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// Call is the client's side of a bidirectional call, as Stream has it.
type Call[In, Out any] interface {
	// Receive returns the next message; io.EOF, unwrapped, when the server ended
	// the call without an error.
	Receive() (*In, error)
	// Send sends a message. After the server ended the call it returns io.EOF,
	// unwrapped, and Receive says why.
	Send(m *Out) error
	// CloseSend says that nothing more will be sent; Receive goes on.
	CloseSend() error
}

// Pairs is what nodes that are a pair ask of a gateway.
type Pairs struct {
	pairs  meshgatev1connect.PairsClient
	webrtc v1connect.WebRTCClient
}

// NewPairs wraps clients of one gateway.
func NewPairs(pairs meshgatev1connect.PairsClient, webrtc v1connect.WebRTCClient) *Pairs {
	return &Pairs{pairs: pairs, webrtc: webrtc}
}

// FollowPairs calls Pairs.Follow; the call ends with ctx.
func (p *Pairs) FollowPairs(ctx context.Context) Call[meshgatev1.FollowPairsResponse, meshgatev1.FollowPairsRequest] {
	return NewStream[meshgatev1.FollowPairsResponse, meshgatev1.FollowPairsRequest](p.pairs.Follow(ctx))
}

// SignalPaths calls WebRTC.StartSignalChannel, for signals with paths; the call
// ends with ctx.
func (p *Pairs) SignalPaths(ctx context.Context) Call[v1.WebRTCSignal, v1.WebRTCSignal] {
	return NewStream[v1.WebRTCSignal, v1.WebRTCSignal](p.webrtc.StartSignalChannel(ctx))
}
