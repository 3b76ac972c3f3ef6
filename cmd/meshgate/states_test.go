// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// watched is a mesh of three gateways, of which gw3 answers.
func watched() *meshgatev1.WatchMeshResponse {
	heard := timestamppb.New(time.Now().Add(-time.Minute))
	edge := func(from, to string, attributes ...string) *v1.MeshEdge {
		e := &v1.MeshEdge{Source: from, Target: to, Attributes: map[string]string{}}
		for _, a := range attributes {
			e.Attributes[a] = "true"
		}
		return e
	}
	m := &meshgatev1.WatchMeshResponse{
		GatewayId: "gw3",
		Links: []*meshgatev1.Link{
			{NodeId: "gw1"}, // nothing to carry yet
			{NodeId: "gw2", Online: true, LastHandshake: heard, Endpoint: "192.0.2.2:51820"},
			{NodeId: "laptop", Online: true, LastHandshake: heard, Endpoint: "192.0.2.9:1"},
			{NodeId: "page", Online: true, LastHandshake: heard, Endpoint: "ice:7"},
			{NodeId: "tablet", Online: true, LastHandshake: heard},
			{NodeId: "away", LastHandshake: heard, Endpoint: "192.0.2.9:2"},
			{NodeId: "new"},
		},
		Edges: []*v1.MeshEdge{
			edge("gw1", "gw2"), edge("gw2", "gw3"), edge("gw1", "gw3"), edge("nas", "gw2"), edge("behind", "nas"),
			edge("tablet", "gw3", "EDGE_ATTRIBUTE_ICE"),
		},
	}
	for _, id := range []string{"gw1", "gw2", "gw3", "laptop", "page", "tablet", "away", "new", "nas", "behind", "island"} {
		m.Nodes = append(m.Nodes, &v1.MeshNode{Id: id, PrivateIpv4: "172.16.0.1/32"})
	}
	return m
}

func TestStatesOf_SpeaksAsTheConsole(t *testing.T) {
	want := map[string]string{
		"gw1": "waiting", "gw2": "online", "gw3": "this gateway", "laptop": "online", "page": "relayed", "tablet": "relayed",
		"away": "down", "new": "waiting", "nas": "relayed through gw2", "behind": "relayed through gw2", "island": "not connected",
	}
	if diff := cmp.Diff(want, statesOf(watched(), nil)); diff != "" {
		t.Errorf("of the links alone (-want +got):\n%s", diff)
	}
	want["gw1"], want["gw2"] = "no tunnel yet", "down"
	if diff := cmp.Diff(want, statesOf(watched(), map[string]bool{"gw1": true, "gw2": false, "gw3": true})); diff != "" {
		t.Errorf("with the cluster (-want +got):\n%s", diff)
	}
	want["gw2"] = "online"
	rests := watched()
	rests.Links[1].Online = false // the link to gw2, which lives
	if diff := cmp.Diff(want, statesOf(rests, map[string]bool{"gw1": true, "gw2": true, "gw3": true})); diff != "" {
		t.Errorf("with a link that rests (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, statesOf(watched(), map[string]bool{"gw1": true, "gw2": true, "gw3": true})); diff != "" {
		t.Errorf("with a tunnel (-want +got):\n%s", diff)
	}
}

// Two nodes behind NAT that have an edge are reached through their gateways all the
// same.
func TestStatesOf_APairIsNoWayToOthers(t *testing.T) {
	m := watched()
	pair := &v1.MeshEdge{Source: "laptop", Target: "nas", Attributes: map[string]string{"EDGE_ATTRIBUTE_ICE": "true"}}
	m.Edges = append(m.Edges, pair, &v1.MeshEdge{Source: "laptop", Target: "island"})
	for _, o := range m.GetNodes() {
		o.Paths = o.GetId() == "laptop" || o.GetId() == "nas"
	}
	states := statesOf(m, nil)
	if states["nas"] != "relayed through gw2" || states["island"] != "relayed through laptop" {
		t.Errorf("nas is %s, island is %s", states["nas"], states["island"])
	}
	m.Links = m.GetLinks()[2:3] // to laptop alone
	if states := statesOf(m, nil); states["nas"] != stateUnknown {
		t.Errorf("without gateways nas is %s", states["nas"])
	}
}

// Who is up is what the mesh says; how it is reached is as the one that answers
// sees it. A link that rests says nothing.
func TestStatesOf_SaysWhoIsUpAsTheMeshDoes(t *testing.T) {
	m := watched()
	heard := timestamppb.New(time.Now().Add(-5 * time.Minute))
	const up, down = meshgatev1.PresenceState_PRESENCE_STATE_UP, meshgatev1.PresenceState_PRESENCE_STATE_DOWN
	m.Presence = []*meshgatev1.NodePresence{
		{NodeId: "gw1", State: up}, {NodeId: "gw2", State: down, LastHeard: heard}, {NodeId: "gw3", State: up},
		{NodeId: "laptop", State: down, Stopped: true, LastHeard: heard, GatewayId: "gw3"},
		{NodeId: "page", State: up, GatewayId: "gw3"}, {NodeId: "tablet", State: up, GatewayId: "gw3"},
		{NodeId: "away", State: up, GatewayId: "gw3"}, {NodeId: "new", State: meshgatev1.PresenceState_PRESENCE_STATE_NEVER},
		{NodeId: "nas", State: down, LastHeard: heard, GatewayId: "gw2"}, {NodeId: "behind", GatewayId: "gw2"},
		{NodeId: "island", State: up, GatewayId: "gw1"},
	}
	m.Links = append(m.Links, &meshgatev1.Link{NodeId: "pair", LastHandshake: heard, Path: &meshgatev1.Path{Kind: meshgatev1.PathKind_PATH_KIND_RELAYED, Via: "gw1"}})
	m.Nodes = append(m.Nodes, &v1.MeshNode{Id: "pair"})
	want := map[string]string{
		"gw1": "idle", "gw2": "down, last heard 5m0s ago", "gw3": "this gateway", "laptop": "down, stopped 5m0s ago (gw3)", "page": "relayed",
		"tablet": "relayed", "away": "online", "new": "waiting", "nas": "down, last heard 5m0s ago (gw2)", "behind": "not known: gw2 does not answer",
		"island": "relayed through gw1", "pair": "idle",
	}
	if diff := cmp.Diff(want, statesOf(m, map[string]bool{"gw1": true, "gw2": true, "gw3": true})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	m.Links[0].TransmitBytes = 148 // a call to gw1, which nobody answered
	if state := statesOf(m, nil)["gw1"]; state != stateHeard {
		t.Errorf("gw1 is %q", state)
	}
}

// A node that the network ACLs keep off is reached through nobody, least of all
// through itself or the gateway that was asked.
func TestStatesOf_NamesTheACLThatBars(t *testing.T) {
	m := watched()
	heard := timestamppb.New(time.Now().Add(-5 * time.Minute))
	const up, down = meshgatev1.PresenceState_PRESENCE_STATE_UP, meshgatev1.PresenceState_PRESENCE_STATE_DOWN
	m.Links = nil // a deny of everything has taken them
	m.Presence = []*meshgatev1.NodePresence{
		{NodeId: "gw1", State: up, GatewayId: "gw1"}, {NodeId: "gw2", State: up}, {NodeId: "laptop", State: up, GatewayId: "gw3"},
		{NodeId: "nas", State: down, LastHeard: heard, GatewayId: "gw2"}, {NodeId: "island", State: up, GatewayId: "gw3"},
	}
	m.Barred = []*meshgatev1.BarredNode{{NodeId: "gw1", Acl: "lockdown"}, {NodeId: "gw2", Acl: "lockdown"}, {NodeId: "laptop"}, {NodeId: "nas", Acl: "lockdown"}}
	want := map[string]string{
		"gw1": "cut off by network ACL lockdown", "gw2": "cut off by network ACL lockdown", "laptop": "cut off: no network ACL accepts",
		"nas": "down, last heard 5m0s ago (gw2); cut off by network ACL lockdown", "island": "not connected", "behind": "not connected",
	}
	states := statesOf(m, map[string]bool{"gw1": true, "gw2": true, "gw3": true})
	for id, state := range want {
		if states[id] != state {
			t.Errorf("%s is %q, want %q", id, states[id], state)
		}
	}
	m.Barred = nil // one that does not tell
	for id, state := range statesOf(m, map[string]bool{"gw1": true, "gw2": true, "gw3": true}) {
		if state == "relayed through "+id || state == "relayed through gw3" {
			t.Errorf("%s is %q", id, state)
		}
	}
}

// Nobody is reached through a node that does not answer, nor without any link.
func TestStatesOf_NoWayThroughTheDead(t *testing.T) {
	m := watched()
	for _, l := range m.GetLinks() {
		l.Online = false
	}
	if states := statesOf(m, nil); states["nas"] != stateUnknown || states["behind"] != stateUnknown {
		t.Errorf("no neighbour answers, but nas is %s and behind is %s", states["nas"], states["behind"])
	}
	m = watched()
	m.Links[1].Path = &meshgatev1.Path{Kind: meshgatev1.PathKind_PATH_KIND_NONE, Reason: "no answer for 8s"}
	if states := statesOf(m, nil); states["gw2"] != stateSilent || states["nas"] != stateUnknown {
		t.Errorf("without an answer gw2 is %s and nas is %s", states["gw2"], states["nas"])
	}
	m.Links = nil
	for id, state := range statesOf(m, nil) {
		if id != "gw3" && state != stateUnknown {
			t.Errorf("without links %s is %s", id, state)
		}
	}
}

// watchedGateway answers what status asks for.
type watchedGateway struct {
	meshgatev1connect.UnimplementedClusterHandler
	meshgatev1connect.UnimplementedWatchHandler
	refuses bool
}

func (watchedGateway) WatchMesh(_ context.Context, _ *connect.Request[meshgatev1.WatchMeshRequest], s *connect.ServerStream[meshgatev1.WatchMeshResponse]) error {
	return s.Send(watched())
}

func (g watchedGateway) Status(context.Context, *connect.Request[meshgatev1.StatusRequest]) (*connect.Response[meshgatev1.StatusResponse], error) {
	if g.refuses {
		return nil, connect.NewError(connect.CodePermissionDenied, nil)
	}
	return connect.NewResponse(&meshgatev1.StatusResponse{
		Trouble:  "no leader: start gw2",
		Replicas: []*meshgatev1.Replica{{Id: "gw1", Alive: true}, {Id: "gw2"}, {Id: "gw3", Alive: true}},
	}), nil
}

// A gateway lives when the cluster hears it, also without a handshake, and is dead
// when it does not, however fresh the last handshake is.
func TestStatus_TakesTheLifeOfGatewaysFromTheCluster(t *testing.T) {
	for _, refuses := range []bool{false, true} {
		mux := http.NewServeMux()
		mux.Handle(meshgatev1connect.NewClusterHandler(watchedGateway{refuses: refuses}))
		mux.Handle(meshgatev1connect.NewWatchHandler(watchedGateway{}))
		s := httptest.NewUnstartedServer(mux)
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), []string{"status", "--server", s.URL, "--token", "x"}, &stdout, &stderr)
		s.Close()
		text := strings.Join(strings.Fields(stdout.String()), " ")
		gw1, gw2, trouble := "gw1 172.16.0.1 no tunnel yet never", "gw2 172.16.0.1 down 1m", "no leader: start gw2\n"
		if refuses {
			gw1, gw2, trouble = "gw1 172.16.0.1 waiting never", "gw2 172.16.0.1 online 1m", ""
		}
		if code != exitOK || !strings.Contains(text, gw1) || !strings.Contains(text, gw2) || stderr.String() != trouble {
			t.Errorf("refused: %v: exit code %d, %q\n%s", refuses, code, &stderr, &stdout)
		}
	}
}
