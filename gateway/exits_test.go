// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// fakeExits remembers the exit in use.
type fakeExits struct{ use mesh.ExitUse }

func (f *fakeExits) ExitUse() mesh.ExitUse { return f.use }

func (f *fakeExits) UseExit(_ context.Context, id mesh.NodeID, open bool) error {
	f.use = mesh.ExitUse{Node: id, Open: open, Why: "there is no path to it yet"}
	return nil
}

// The operator of the host chooses the exit of its node, and sees what came of it.
func TestUseExit_ByTheOperatorOfTheHost(t *testing.T) {
	exits := new(fakeExits)
	_, c := localWith(t, func(c *Config) { c.Exits = exits })
	paths := meshgatev1connect.NewPathsClient(c, "http://localhost", connect.WithGRPC())
	answer, err := paths.UseExit(testContext(t), connect.NewRequest(&meshgatev1.UseExitRequest{NodeId: "nas", Open: true}))
	if err != nil || answer.Msg.GetExit().GetNodeId() != "nas" || !answer.Msg.GetExit().GetOpen() || answer.Msg.GetExit().GetReason() == "" {
		t.Fatalf("%v, %v", answer, err)
	}
	list, err := paths.ListPaths(testContext(t), connect.NewRequest(&meshgatev1.ListPathsRequest{}))
	if err != nil || list.Msg.GetExit().GetNodeId() != "nas" {
		t.Errorf("%v, %v", list, err)
	}
	_, err = paths.UseExit(testContext(t), connect.NewRequest(&meshgatev1.UseExitRequest{NodeId: strings.Repeat("x", 300)}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument || exits.use.Node != "nas" {
		t.Errorf("a name that is none: %v, and then %+v", err, exits.use)
	}
	if _, err = paths.UseExit(testContext(t), connect.NewRequest(&meshgatev1.UseExitRequest{})); err != nil || exits.use.Node != "" {
		t.Errorf("off: %v, and then %+v", err, exits.use)
	}
}

// Nobody else does, whatever roles he has; to offer an exit takes the right to
// offer networks.
func TestRules_Exits(t *testing.T) {
	for _, c := range []api.Caller{{ID: "admin"}, {ID: "gw-1", Node: &mesh.Node{ID: "gw-1"}}} {
		if _, err := useExit(c, &meshgatev1.UseExitRequest{NodeId: "nas"}); !errors.Is(err, mesh.ErrDenied) {
			t.Errorf("%s: %v", c.ID, err)
		}
	}
	routes := put(v1.RuleResource_RESOURCE_ROUTES, "")
	for _, exit := range []bool{false, true} {
		actions, err := join(api.Caller{ID: "nas"}, &v1.JoinRequest{Id: "nas", Exit: exit})
		if err != nil || slices.Contains(actions, routes) != exit {
			t.Errorf("exit %v: %v, %v", exit, actions, err)
		}
	}
}
