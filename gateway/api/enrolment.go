// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// enrolmentService serves meshgate.v1.Enrolment. Of challenges it keeps nothing:
// one is the mesh and the time, so that any gateway takes what another one asked
// for.
type enrolmentService struct {
	state      State
	membership *membershipService
}

var _ meshgatev1connect.EnrolmentHandler = (*enrolmentService)(nil)

// GetChallenge tells what a join has to be signed with.
func (e *enrolmentService) GetChallenge(_ context.Context, req *connect.Request[meshgatev1.GetChallengeRequest]) (*connect.Response[meshgatev1.GetChallengeResponse], error) {
	if _, err := mesh.ParseNodeID(req.Msg.GetId()); err != nil {
		return nil, fmt.Errorf("id: %w", err)
	}
	s, err := held(e.state)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&meshgatev1.GetChallengeResponse{
		Mesh:      s.IPv6.String(),
		Time:      timestamppb.New(time.Now().Truncate(time.Second)),
		GatewayId: string(e.state.Self()),
	}), nil
}

// Adopt makes this gateway the one that a member is reached through.
func (e *enrolmentService) Adopt(ctx context.Context, req *connect.Request[meshgatev1.AdoptRequest]) (*connect.Response[v1.JoinResponse], error) {
	id, err := mesh.ParseNodeID(req.Msg.GetId())
	if err != nil {
		return nil, fmt.Errorf("id: %w", err)
	}
	if _, err := held(e.state); err != nil {
		return nil, err
	}
	s, err := e.membership.members.Adopt(ctx, id)
	if err != nil {
		return nil, err
	}
	return e.membership.answer(ctx, s, id, packs(req.Header()))
}
