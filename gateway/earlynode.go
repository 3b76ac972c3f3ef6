// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
)

// errEarly is what callers are told. Who the others are, and whether one of them
// leads, is for operators, and for those who may ask for the status of the cluster.
var errEarly = fmt.Errorf("%w: this gateway has just started and does not serve yet: it catches up with the others, or waits for a majority of them: "+
	"ask another one, or try again in a few seconds; meshgate cluster status says whether one has to be started, "+
	"and meshgate get --stale (X-Meshgate-Stale: true) shows what this one held when it ended", mesh.ErrUnavailable)

// KnownKeys are the raw keys of a state that does not change. The methods are
// those of api.Keys.
type KnownKeys interface {
	Key(ctx context.Context, key string) (mesh.Item, error)
	Keys(ctx context.Context, prefix, after string, limit int) ([]mesh.Item, error)
}

// earlyNode is the node of a gateway that is not in the mesh since its start: it
// knows what was, or nothing, and changes nothing.
type earlyNode struct {
	self   mesh.NodeID
	reason func() error
	state  *mesh.Snapshot // nil: nothing is known
	keys   KnownKeys
}

var _ Node = earlyNode{}

// Healthy implements Node.
func (n earlyNode) Healthy() error { return n.reason() }

// Self implements api.State.
func (n earlyNode) Self() mesh.NodeID { return n.self }

// Snapshot implements api.State.
func (n earlyNode) Snapshot() *mesh.Snapshot { return n.state }

// Sync implements api.State: nobody knows what was acknowledged.
func (earlyNode) Sync(context.Context) (*mesh.Snapshot, error) { return nil, errEarly }

// Wait implements api.State: nothing newer comes.
func (n earlyNode) Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	if n.state != nil && n.state.Version > after {
		return n.state, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// Plan implements api.State.
func (earlyNode) Plan(*mesh.Snapshot, mesh.NodeID) (mesh.Plan, error) { return mesh.Plan{}, errEarly }

// Join implements api.Members.
func (earlyNode) Join(context.Context, mesh.JoinRequest) (*mesh.Snapshot, error) {
	return nil, errEarly
}

// Update implements api.Members.
func (earlyNode) Update(context.Context, mesh.UpdateRequest) error { return errEarly }

// Adopt implements api.Members.
func (earlyNode) Adopt(context.Context, mesh.NodeID) (*mesh.Snapshot, error) { return nil, errEarly }

// Leave implements api.Members.
func (earlyNode) Leave(context.Context, mesh.NodeID) error { return errEarly }

// LeaveBound implements api.Members.
func (earlyNode) LeaveBound(context.Context, mesh.NodeID) error { return errEarly }

// Change implements api.Objects.
func (earlyNode) Change(context.Context, mesh.Change, mesh.Permit) error { return errEarly }

// ChangeAll implements api.Objects.
func (earlyNode) ChangeAll(context.Context, mesh.Batch) (mesh.Outcome, error) {
	return mesh.Outcome{}, errEarly
}

// Key implements api.Keys.
func (n earlyNode) Key(ctx context.Context, key string) (mesh.Item, error) {
	if n.keys == nil {
		return mesh.Item{}, errEarly
	}
	return n.keys.Key(ctx, key)
}

// Keys implements api.Keys.
func (n earlyNode) Keys(ctx context.Context, prefix, after string, limit int) ([]mesh.Item, error) {
	if n.keys == nil {
		return nil, errEarly
	}
	return n.keys.Keys(ctx, prefix, after, limit)
}

// Publish implements api.Keys.
func (earlyNode) Publish(context.Context, string, []byte, time.Duration, *mesh.Snapshot) error {
	return errEarly
}

// WatchKeys implements api.Keys.
func (earlyNode) WatchKeys(context.Context, string) (iter.Seq2[mesh.Item, error], error) {
	return nil, errEarly
}

// Pair implements api.PairPlans.
func (earlyNode) Pair(*mesh.Snapshot, mesh.NodeID, mesh.NodeID) (mesh.Peer, error) {
	return mesh.Peer{}, errEarly
}

// MaySignal implements api.PairPlans.
func (earlyNode) MaySignal(*mesh.Snapshot, mesh.NodeID, mesh.NodeID) error { return errEarly }

// Holder implements api.PairPlans.
func (earlyNode) Holder(*mesh.Snapshot, mesh.NodeID, netip.Addr) (mesh.NodeID, error) {
	return "", errEarly
}

// Stats implements api.Links: there are no tunnels.
func (earlyNode) Stats() (mesh.InterfaceStats, error) { return mesh.InterfaceStats{}, nil }

// RemoteStatus implements api.Remote.
func (earlyNode) RemoteStatus(context.Context, mesh.NodeID) (*v1.Status, error) { return nil, errEarly }

// Ways implements api.Ways.
func (earlyNode) Ways(context.Context) ([]mesh.Way, error) { return nil, errEarly }

// WayTo implements api.Ways.
func (earlyNode) WayTo(context.Context, *mesh.Node) (mesh.Way, error) { return mesh.Way{}, errEarly }

// Locate implements api.Ways.
func (earlyNode) Locate(context.Context, mesh.NodeID) (*mesh.Node, error) { return nil, errEarly }

// Ping implements api.Ways.
func (earlyNode) Ping(context.Context, *mesh.Node) (mesh.Pong, error) { return mesh.Pong{}, errEarly }

// RemotePaths implements api.RemoteWays.
func (earlyNode) RemotePaths(context.Context, mesh.NodeID) (*meshgatev1.ListPathsResponse, error) {
	return nil, errEarly
}

// RemotePing implements api.RemoteWays.
func (earlyNode) RemotePing(context.Context, mesh.NodeID, *meshgatev1.PingRequest, func(*meshgatev1.PingResponse) error) error {
	return errEarly
}

// earlySignaling opens no channels: who may have one is not known.
type earlySignaling struct{}

// StartDataChannel implements api.Signaling.
func (earlySignaling) StartDataChannel(context.Context, signaling.Caller, signaling.Stream[*v1.StartDataChannelRequest, *v1.DataChannelOffer]) error {
	return errEarly
}

// StartSignalChannel implements api.Signaling.
func (earlySignaling) StartSignalChannel(context.Context, signaling.Caller, signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
	return errEarly
}

// NegotiateDataChannel implements api.Signaling.
func (earlySignaling) NegotiateDataChannel(context.Context, mesh.NodeID, signaling.Stream[*v1.DataChannelNegotiation, *v1.DataChannelNegotiation]) error {
	return errEarly
}

// ReceiveSignalChannel implements api.Signaling.
func (earlySignaling) ReceiveSignalChannel(context.Context, mesh.NodeID, signaling.Stream[*v1.WebRTCSignal, *v1.WebRTCSignal]) error {
	return errEarly
}
