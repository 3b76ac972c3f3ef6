// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// Exits is how this node uses an exit.
type Exits interface {
	ExitUse() mesh.ExitUse
	// UseExit has the node use another exit, or none if id is empty.
	UseExit(ctx context.Context, id mesh.NodeID, open bool) error
}

// UseExit chooses the exit of this node. The rules let only the operator of its
// host in.
func (p *pathsService) UseExit(ctx context.Context, req *connect.Request[meshgatev1.UseExitRequest]) (*connect.Response[meshgatev1.UseExitResponse], error) {
	if p.exits == nil {
		return nil, fmt.Errorf("%w: %q uses no exit: only nodes that join a gateway do", mesh.ErrUnsupported, p.state.Self())
	}
	var id mesh.NodeID
	if name := req.Msg.GetNodeId(); name != "" {
		var err error
		if id, err = mesh.ParseNodeID(name); err != nil {
			return nil, fmt.Errorf("node_id: %w", err)
		}
	}
	if err := p.exits.UseExit(ctx, id, req.Msg.GetOpen()); err != nil {
		return nil, fmt.Errorf("node_id: %w", err)
	}
	return connect.NewResponse(&meshgatev1.UseExitResponse{Exit: p.exit()}), nil
}

// exit is the exit in use; nil for none.
func (p *pathsService) exit() *meshgatev1.ExitUse {
	if p.exits == nil {
		return nil
	}
	u := p.exits.ExitUse()
	if u.Node == "" {
		return nil
	}
	return &meshgatev1.ExitUse{NodeId: string(u.Node), Works: u.Works, Reason: u.Why, Open: u.Open, Since: timestamppb.New(u.Since)}
}
