// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// nodeService serves v1.Node.
type nodeService struct {
	Config
	links *links
	// presences knows which nodes are up.
	presences *presences
	started   time.Time
}

var _ v1connect.NodeHandler = (*nodeService)(nil)

// GetStatus tells how this node is, or asks the node that the request names.
func (n *nodeService) GetStatus(ctx context.Context, req *connect.Request[v1.GetStatusRequest]) (*connect.Response[v1.Status], error) {
	s, err := snapshot(n.State)
	if err != nil {
		return nil, err
	}
	self := n.State.Self()
	if id := req.Msg.GetId(); id != "" && id != string(self) {
		status, err := n.remoteStatus(ctx, s, id)
		if err != nil {
			return nil, err
		}
		return connect.NewResponse(status), nil
	}
	stats, err := n.links.get()
	if err != nil {
		return nil, fmt.Errorf("read interface statistics: %w", err)
	}
	status := &v1.Status{
		Id:               string(self),
		Version:          n.Build.Version,
		Commit:           n.Build.Commit,
		BuildDate:        n.Build.Date,
		Uptime:           time.Since(n.started).Truncate(time.Second).String(),
		StartedAt:        timestamppb.New(n.started),
		ClusterStatus:    v1.ClusterStatus_CLUSTER_NODE,
		InterfaceMetrics: metricsToProto(stats),
	}
	if me := s.Node(self); me != nil {
		status.Features = mesh.FeaturesToProto(me.Features)
		if me.HoldsState() {
			status.ClusterStatus = v1.ClusterStatus_CLUSTER_LEADER
			status.CurrentLeader = string(self)
			n.tellSeat(status)
		}
	}
	return connect.NewResponse(status), nil
}

// tellSeat says what part this node has among several that keep the state.
func (n *nodeService) tellSeat(status *v1.Status) {
	if n.Cluster == nil {
		return
	}
	status.ClusterStatus, status.CurrentLeader = v1.ClusterStatus_CLUSTER_NODE, ""
	for _, server := range n.Cluster.Servers() {
		if server.ID == n.State.Self() {
			status.ClusterStatus = server.Status
		}
		if server.Status == v1.ClusterStatus_CLUSTER_LEADER {
			status.CurrentLeader = string(server.ID)
		}
	}
}

// remoteStatus asks another node, when it is one that can answer.
func (n *nodeService) remoteStatus(ctx context.Context, s *mesh.Snapshot, name string) (*v1.Status, error) {
	id, err := mesh.ParseNodeID(name)
	if err != nil {
		return nil, err
	}
	other, ok := s.Nodes.Get(id)
	switch {
	case ok:
	case s.Node(n.State.Self()).HoldsState():
		return nil, unknownNode(id)
	default: // it knows a part of the mesh
		if other, err = n.Ways.Locate(ctx, id); err != nil {
			return nil, err
		}
	}
	if !other.RunsMeshgate() {
		return nil, fmt.Errorf("%w: node %q is a plain WireGuard peer, which has no status to ask for; "+
			"v1.Mesh/GetNode has its record, and the interface_metrics of a gateway show its link", mesh.ErrPrecondition, id)
	}
	list, _ := n.presences.all(ctx) // what is not known is not told
	if stopped(list, id) {
		return nil, explain(id, list, mesh.ErrUnavailable)
	}
	status, err := n.Remote.RemoteStatus(ctx, id)
	if errors.Is(err, mesh.ErrUnavailable) {
		list, _ = n.presences.all(ctx) // it may have stopped since
		err = explain(id, list, err)
	}
	return status, err
}

// stopped reports whether a node has said that it stops, so that nobody need be asked.
func stopped(list []*meshgatev1.NodePresence, id mesh.NodeID) bool {
	return slices.ContainsFunc(list, func(m *meshgatev1.NodePresence) bool { return m.GetNodeId() == string(id) && m.GetStopped() })
}

// NegotiateDataChannel answers a gateway that relays a client's negotiation.
func (n *nodeService) NegotiateDataChannel(ctx context.Context, stream *connect.BidiStream[v1.DataChannelNegotiation, v1.DataChannelNegotiation]) error {
	return n.Signaling.NegotiateDataChannel(ctx, CallerFrom(ctx).Node.ID, serverStream[v1.DataChannelNegotiation, v1.DataChannelNegotiation]{stream})
}

// ReceiveSignalChannel answers a gateway that relays a client's signals.
func (n *nodeService) ReceiveSignalChannel(ctx context.Context, stream *connect.BidiStream[v1.WebRTCSignal, v1.WebRTCSignal]) error {
	return n.Signaling.ReceiveSignalChannel(ctx, CallerFrom(ctx).Node.ID, serverStream[v1.WebRTCSignal, v1.WebRTCSignal]{stream})
}

// unknownNode is the answer for a node that is not there.
func unknownNode(id mesh.NodeID) error {
	return fmt.Errorf("%w: no node %q in this mesh; Mesh.ListNodes (meshgate status) names those that are", mesh.ErrNotFound, id)
}
