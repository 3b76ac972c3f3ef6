// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// membershipService serves v1.Membership.
type membershipService struct {
	state   State
	members Members
	cluster Cluster // nil where the node keeps the state alone
	// servers mints ICE servers for a node; nil: there are none.
	servers func(ctx context.Context, node string) []*v1.ICEServer
	// All subscribers share the following.
	directory directory
	peers     peerMessages
	shifts    shifts
	news      news
	// attendance is told who follows this gateway; nil: nobody is.
	attendance *attendance
}

var _ v1connect.MembershipHandler = (*membershipService)(nil)

// Join makes a node a member and answers with all it needs to be one.
func (m *membershipService) Join(ctx context.Context, req *connect.Request[v1.JoinRequest]) (*connect.Response[v1.JoinResponse], error) {
	r, err := joinRequest(req.Msg)
	if err != nil {
		return nil, err
	}
	want := seat{voter: req.Msg.GetAsVoter(), observer: req.Msg.GetAsObserver(), preferIPv6: req.Msg.GetPreferStorageIpv6()}
	if err := m.checkSeat(want, r.Node.Features); err != nil {
		return nil, err
	}
	if r.Proof == nil { // it is the node itself that proves its key, or it is refused
		if err := m.checkKeepsSeat(ctx, r.Node.ID, r.Node.Features); err != nil {
			return nil, err
		}
	}
	s, err := m.members.Join(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := m.takeSeat(ctx, want, s.Node(r.Node.ID)); err != nil {
		return nil, err
	}
	return m.answer(ctx, s, r.Node.ID, packs(req.Header()))
}

// answer is all that member id needs to be one. A packed one has its peers
// encoded.
func (m *membershipService) answer(ctx context.Context, s *mesh.Snapshot, id mesh.NodeID, packed bool) (*connect.Response[v1.JoinResponse], error) {
	c, err := (&subscriber{service: m, id: id}).configuration(s)
	if err != nil {
		return nil, err
	}
	n := s.Node(id)
	answer := &v1.JoinResponse{
		AddressIpv4: mesh.PrefixString(n.IPv4),
		AddressIpv6: mesh.PrefixString(n.IPv6),
		NetworkIpv4: mesh.PrefixString(s.IPv4),
		NetworkIpv6: mesh.PrefixString(s.IPv6),
		MeshDomain:  s.Domain,
		IceServers:  c.ice,
		DnsServers:  c.dns,
		NetworkAcls: c.acls,
		GatewayId:   string(c.gateway),
		Gateways:    c.gateways,
		Revision:    c.revision,
		Time:        timestamppb.Now(),
	}
	if n.Paths && m.servers != nil {
		answer.RelayServers = m.servers(ctx, string(id))
	}
	if !packed {
		answer.Peers = peersToProto(c.peers)
	} else if err := m.peers.pack(answer, s, c.peers, new([]byte)); err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

// Update changes the fields of a member that are not empty in the request.
func (m *membershipService) Update(ctx context.Context, req *connect.Request[v1.UpdateRequest]) (*connect.Response[v1.UpdateResponse], error) {
	r, err := updateRequest(req.Msg)
	if err != nil {
		return nil, err
	}
	if len(r.Features) > 0 {
		if err := m.checkKeepsSeat(ctx, r.ID, r.Features); err != nil {
			return nil, err
		}
	}
	if req.Msg.GetAsVoter() {
		return m.promote(ctx, r)
	}
	if err := m.members.Update(ctx, r); err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.UpdateResponse{}), nil
}

// promote is an Update that also makes the member a voter.
func (m *membershipService) promote(ctx context.Context, r mesh.UpdateRequest) (*connect.Response[v1.UpdateResponse], error) {
	s, err := whole(ctx, m.state)
	if err != nil {
		return nil, err
	}
	old, ok := s.Nodes.Get(r.ID)
	if !ok {
		return nil, unknownNode(r.ID)
	}
	n := *old
	if len(r.Features) > 0 {
		n.Features = r.Features
	}
	if r.PrimaryEndpoint != "" {
		n.PrimaryEndpoint = r.PrimaryEndpoint
	}
	want := seat{voter: true}
	if err := m.checkSeat(want, n.Features); err != nil {
		return nil, err
	}
	if err := m.members.Update(ctx, r); err != nil {
		return nil, err
	}
	if err := m.takeSeat(ctx, want, &n); err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.UpdateResponse{}), nil
}

// Leave removes a member.
func (m *membershipService) Leave(ctx context.Context, req *connect.Request[v1.LeaveRequest]) (*connect.Response[v1.LeaveResponse], error) {
	id, err := mesh.ParseNodeID(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	if id == m.state.Self() && m.cluster == nil {
		return nil, fmt.Errorf("%w: %q is this gateway, the only one that keeps the state of the mesh; stop it instead", mesh.ErrPrecondition, id)
	}
	if m.cluster != nil {
		s, err := whole(ctx, m.state)
		if err != nil {
			return nil, err
		}
		if _, ok := m.serverOf(s, id); ok {
			return nil, fmt.Errorf("%w: %q keeps the state of the mesh; remove it from the storage first (meshgate cluster remove)", mesh.ErrPrecondition, id)
		}
	}
	leave := m.members.Leave
	if c := CallerFrom(ctx); c.ID == string(id) && !c.IsNode(c.ID) {
		leave = m.members.LeaveBound // a token of the node's name is not its key
	}
	if err := leave(ctx, id); err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.LeaveResponse{}), nil
}

// Apply would let a v1 voter put any key into the log: more than any role
// grants. Those who keep the state of this mesh forward their changes over the
// connection of the storage, which knows them by their keys; nobody else may.
func (m *membershipService) Apply(ctx context.Context, _ *connect.Request[v1.RaftLogEntry]) (*connect.Response[v1.RaftApplyResponse], error) {
	s, err := whole(ctx, m.state)
	if err != nil {
		return nil, err
	}
	if n := CallerFrom(ctx).Node; n != nil {
		if server, ok := m.serverOf(s, n.ID); ok && server.Status != v1.ClusterStatus_CLUSTER_OBSERVER {
			return nil, fmt.Errorf("%w: voters of this mesh forward changes over the connection of the storage", mesh.ErrUnsupported)
		}
	}
	return nil, fmt.Errorf("%w: the caller is no voter of this mesh; change members with Join, Update and Leave", mesh.ErrDenied)
}

// GetStorageConfiguration names the servers that keep the state.
func (m *membershipService) GetStorageConfiguration(ctx context.Context, _ *connect.Request[v1.StorageConfigurationRequest]) (*connect.Response[v1.StorageConfigurationResponse], error) {
	s, err := whole(ctx, m.state)
	if err != nil {
		return nil, err
	}
	answer := &v1.StorageConfigurationResponse{}
	for _, server := range m.storageServers(s) {
		answer.Servers = append(answer.Servers, &v1.StorageServer{Id: string(server.ID), Suffrage: server.Status, Address: server.Address})
	}
	return connect.NewResponse(answer), nil
}
