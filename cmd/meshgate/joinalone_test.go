// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// loneGateway lets everybody in, and keeps the state alone.
type loneGateway struct {
	v1connect.MembershipClient
	meshgatev1connect.EnrolmentClient
	members map[string]bool
	refuses error // of Leave
}

func (g *loneGateway) GetChallenge(context.Context, *connect.Request[meshgatev1.GetChallengeRequest]) (*connect.Response[meshgatev1.GetChallengeResponse], error) {
	return nil, connect.NewError(connect.CodeUnimplemented, nil)
}

func (g *loneGateway) Join(_ context.Context, r *connect.Request[v1.JoinRequest]) (*connect.Response[v1.JoinResponse], error) {
	g.members[r.Msg.GetId()] = true
	return connect.NewResponse(&v1.JoinResponse{}), nil
}

func (g *loneGateway) Leave(ctx context.Context, r *connect.Request[v1.LeaveRequest]) (*connect.Response[v1.LeaveResponse], error) {
	if err := errors.Join(g.refuses, ctx.Err()); err != nil {
		return nil, err
	}
	delete(g.members, r.Msg.GetId())
	return connect.NewResponse(&v1.LeaveResponse{}), nil
}

// A gateway that finds no cluster where it joins leaves nothing behind, or says
// what it left.
func TestJoiner_LeavesWhereThereIsNoCluster(t *testing.T) {
	for _, refuses := range []error{nil, connect.NewError(connect.CodePermissionDenied, errors.New("not yours"))} {
		g := &loneGateway{members: map[string]bool{}, refuses: refuses}
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		j := &joiner{member: peer.NewMember(g, g), key: key, request: &v1.JoinRequest{Id: "gw5"}}
		err = j.join(t.Context(), &gatewayKeys{})
		if !errors.Is(err, mesh.ErrPrecondition) || !strings.Contains(err.Error(), "--cluster.address") {
			t.Errorf("refused: %v: %v", refuses, err)
		}
		if stays := refuses != nil; g.members["gw5"] != stays || strings.Contains(err.Error(), "meshgate delete nodes gw5") != stays {
			t.Errorf("refused: %v: the members are %v: %v", refuses, g.members, err)
		}
	}
}
