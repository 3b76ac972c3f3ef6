// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// fakeCluster notes who was added.
type fakeCluster struct {
	servers []StorageServer
	calls   []string
	err     error
}

func (c *fakeCluster) AddVoter(_ context.Context, id mesh.NodeID, address string) error {
	c.calls = append(c.calls, fmt.Sprintf("voter %s %s", id, address))
	return c.err
}

func (c *fakeCluster) AddObserver(_ context.Context, id mesh.NodeID, address string) error {
	c.calls = append(c.calls, fmt.Sprintf("observer %s %s", id, address))
	return c.err
}

func (c *fakeCluster) Servers() []StorageServer { return c.servers }

func TestMembership_SeatsInTheStorage(t *testing.T) {
	storage := []*v1.FeaturePort{{Feature: v1.Feature_STORAGE_PROVIDER, Port: 9000}}
	for _, tt := range []struct {
		name   string
		change func(*v1.JoinRequest)
		lone   bool
		fails  error
		want   string // the call
		err    error
		text   string
	}{
		{name: "voter", change: func(r *v1.JoinRequest) { r.AsVoter = true }, want: "voter phone 10.9.0.2:9000"},
		{name: "observer", change: func(r *v1.JoinRequest) { r.AsObserver = true }, want: "observer phone 10.9.0.2:9000"},
		{name: "over IPv6", change: func(r *v1.JoinRequest) { r.AsVoter, r.PreferStorageIpv6 = true, true }, want: "voter phone [fd00:0:1:2::]:9000"},
		{name: "neither", change: func(*v1.JoinRequest) {}},
		{name: "both", change: func(r *v1.JoinRequest) { r.AsVoter, r.AsObserver = true, true }, err: mesh.ErrInvalid, text: "as_voter and as_observer"},
		{name: "without a port", change: func(r *v1.JoinRequest) { r.AsVoter, r.Features = true, nil }, err: mesh.ErrInvalid, text: "STORAGE_PROVIDER"},
		{name: "with port 0", change: func(r *v1.JoinRequest) {
			r.AsVoter, r.Features = true, []*v1.FeaturePort{{Feature: v1.Feature_STORAGE_PROVIDER}}
		}, err: mesh.ErrInvalid, text: "STORAGE_PROVIDER"},
		{name: "at a lone gateway", lone: true, change: func(r *v1.JoinRequest) { r.AsVoter = true }, err: mesh.ErrPrecondition, text: "single voter"},
		{name: "not added", change: func(r *v1.JoinRequest) { r.AsVoter = true }, fails: mesh.ErrUnavailable, want: "voter phone 10.9.0.2:9000", err: mesh.ErrUnavailable, text: "ask again"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := testFake(t)
			phone := *f.snap.Node("phone")
			phone.Features = []mesh.Feature{{Kind: v1.Feature_STORAGE_PROVIDER, Port: 9000}}
			f.snap.Nodes = f.snap.Nodes.With(&phone)
			cluster := &fakeCluster{err: tt.fails}
			m := &membershipService{state: f, members: f, cluster: cluster}
			if tt.lone {
				m.cluster = nil
			}
			r := &v1.JoinRequest{Id: "phone", PublicKey: phone.PublicKey.Encode(), AssignIpv4: true, Features: storage}
			tt.change(r)
			_, err := m.Join(t.Context(), connect.NewRequest(r))
			if !errors.Is(err, tt.err) || (tt.err != nil && !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
			if got := strings.Join(cluster.calls, ", "); got != tt.want {
				t.Errorf("calls %q, want %q", got, tt.want)
			}
			if refused := tt.err != nil && tt.fails == nil; refused != (f.joined == nil) {
				t.Errorf("joined %v", f.joined)
			}
		})
	}
}

func TestMembership_Promote(t *testing.T) {
	f := testFake(t)
	cluster := &fakeCluster{servers: []StorageServer{
		{ID: "gw", Status: v1.ClusterStatus_CLUSTER_LEADER, Address: "192.0.2.1:9000"},
		{ID: "phone", Status: v1.ClusterStatus_CLUSTER_OBSERVER, Address: "10.9.0.2:9000"},
	}}
	m := &membershipService{state: f, members: f, cluster: cluster}
	update := func(r *v1.UpdateRequest) error {
		_, err := m.Update(t.Context(), connect.NewRequest(r))
		return err
	}
	if err := update(&v1.UpdateRequest{Id: "phone", AsVoter: true}); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("without a port: %v", err)
	}
	if err := update(&v1.UpdateRequest{Id: "nobody", AsVoter: true}); !errors.Is(err, mesh.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	if f.updated != nil {
		t.Error("a refused update changed something")
	}
	err := update(&v1.UpdateRequest{
		Id: "phone", AsVoter: true, PrimaryEndpoint: "node.example.org",
		Features: []*v1.FeaturePort{{Feature: v1.Feature_STORAGE_PROVIDER, Port: 9001}},
	})
	if err != nil || strings.Join(cluster.calls, ",") != "voter phone node.example.org:9001" || f.updated == nil {
		t.Errorf("%v, calls %v", err, cluster.calls)
	}
	res, err := m.GetStorageConfiguration(t.Context(), nil)
	if err != nil || len(res.Msg.GetServers()) != 2 || res.Msg.GetServers()[1].GetSuffrage() != v1.ClusterStatus_CLUSTER_OBSERVER {
		t.Errorf("configuration %v, %v", res, err)
	}
	for _, id := range []string{"gw", "phone"} {
		if _, err := m.Leave(t.Context(), connect.NewRequest(&v1.LeaveRequest{Id: id})); !errors.Is(err, mesh.ErrPrecondition) || f.left != "" {
			t.Errorf("%s keeps the state and leaves: %v", id, err)
		}
	}
}

// Whoever may change the edges of a gateway cannot make it none while it has a
// seat: the others would shut it out of the storage, and lose their majority.
func TestMembership_SeatedGatewayStaysOne(t *testing.T) {
	f := testFake(t)
	gw2 := *f.snap.Node("gw-dns")
	gw2.ID, gw2.PublicKey = "gw2", testKey(t)
	gw2.Features = append(slices.Clone(gw2.Features), mesh.Feature{Kind: v1.Feature_STORAGE_PROVIDER, Port: 8443})
	f.snap.Nodes = f.snap.Nodes.With(&gw2)
	cluster := &fakeCluster{servers: []StorageServer{{ID: "gw", Status: v1.ClusterStatus_CLUSTER_LEADER}, {ID: "gw2", Status: v1.ClusterStatus_CLUSTER_VOTER}}}
	of := func(kinds ...v1.Feature) (list []*v1.FeaturePort) {
		for _, kind := range kinds {
			list = append(list, &v1.FeaturePort{Feature: kind, Port: 8443})
		}
		return list
	}
	eve, itself := Caller{ID: "eve"}, Caller{ID: "gw2", Node: &gw2}
	nodes, both := of(v1.Feature_NODES), of(v1.Feature_STORAGE_PROVIDER, v1.Feature_MEMBERSHIP)
	for _, tt := range []struct {
		name     string
		caller   Caller
		id       string
		features []*v1.FeaturePort
		lone     bool
		lost     string // the feature that is named; empty: allowed
	}{
		{name: "all", caller: eve, id: "gw2", features: nodes, lost: "STORAGE_PROVIDER"},
		{name: "the storage", caller: eve, id: "gw2", features: of(v1.Feature_MEMBERSHIP), lost: "STORAGE_PROVIDER"},
		{name: "membership", caller: eve, id: "gw2", features: of(v1.Feature_STORAGE_PROVIDER), lost: "MEMBERSHIP"},
		{name: "by a token with its name", caller: Caller{ID: "gw2"}, id: "gw2", features: nodes, lost: "STORAGE_PROVIDER"},
		{name: "of a lone gateway", caller: eve, id: "gw", features: nodes, lone: true, lost: "MEMBERSHIP"},
		{name: "neither", caller: eve, id: "gw2", features: both},
		{name: "by itself", caller: itself, id: "gw2", features: nodes},
		{name: "without a seat", caller: eve, id: "gw-dns", features: nodes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &membershipService{state: f, members: f, cluster: cluster}
			if tt.lone {
				m.cluster = nil
			}
			ctx := WithCaller(t.Context(), tt.caller)
			check := func(call string, err error, done bool) {
				t.Helper()
				switch {
				case tt.lost == "" && (err != nil || !done):
					t.Errorf("%s: %v, done %v", call, err, done)
				case tt.lost != "" && (!errors.Is(err, mesh.ErrPrecondition) || !strings.Contains(err.Error(), "features: ") || !strings.Contains(err.Error(), tt.lost) || done):
					t.Errorf("%s: %v, done %v; want it refused for %s", call, err, done, tt.lost)
				}
			}
			f.updated, f.joined = nil, nil
			_, err := m.Update(ctx, connect.NewRequest(&v1.UpdateRequest{Id: tt.id, Features: tt.features}))
			check("update", err, f.updated != nil)
			f.plan.Self = f.snap.Node(mesh.NodeID(tt.id))
			_, err = m.Join(ctx, connect.NewRequest(&v1.JoinRequest{Id: tt.id, PublicKey: gw2.PublicKey.Encode(), Features: tt.features}))
			check("join", err, f.joined != nil)
		})
	}
	// A gateway that lost its directory asks for its seat with the key that it kept.
	f.joined = nil
	_, err := (&membershipService{state: f, members: f, cluster: cluster}).Join(WithCaller(t.Context(), eve), connect.NewRequest(&v1.JoinRequest{
		Id: "gw2", PublicKey: gw2.PublicKey.Encode(), Features: nodes,
		Proof: &v1.JoinProof{Time: timestamppb.Now(), Signature: make([]byte, 64)}, // whose truth the members check
	}))
	if err != nil || f.joined == nil {
		t.Errorf("with a proof: %v", err)
	}
}

func TestMembership_ApplyIsRefused(t *testing.T) {
	f := testFake(t)
	m := &membershipService{state: f, members: f, cluster: &fakeCluster{servers: []StorageServer{
		{ID: "gw", Status: v1.ClusterStatus_CLUSTER_VOTER}, {ID: "phone", Status: v1.ClusterStatus_CLUSTER_OBSERVER},
	}}}
	for id, want := range map[mesh.NodeID]error{"gw": mesh.ErrUnsupported, "phone": mesh.ErrDenied, "gw-dns": mesh.ErrDenied} {
		ctx := WithCaller(t.Context(), Caller{ID: string(id), Node: f.snap.Node(id)})
		if _, err := m.Apply(ctx, connect.NewRequest(&v1.RaftLogEntry{Key: "/registry/rbac-disabled"})); !errors.Is(err, want) {
			t.Errorf("%s: %v", id, err)
		}
	}
	ctx := WithCaller(t.Context(), Caller{ID: "gw"}) // a token, not the mesh
	if _, err := m.Apply(ctx, connect.NewRequest(&v1.RaftLogEntry{})); !errors.Is(err, mesh.ErrDenied) {
		t.Errorf("a user named like a voter: %v", err)
	}
}

func TestStorageAddress(t *testing.T) {
	n := &mesh.Node{
		ID: "n", PrimaryEndpoint: "192.0.2.1", IPv4: netip.MustParsePrefix("10.9.0.2/32"), IPv6: netip.MustParsePrefix("fd00::1:0/112"),
		Features: []mesh.Feature{{Kind: v1.Feature_STORAGE_PROVIDER, Port: 9000}},
	}
	for _, tt := range []struct {
		primary    string
		v4, prefer bool
		want       string
	}{
		{"192.0.2.1", true, false, "192.0.2.1:9000"},
		{"2001:db8::1", true, true, "[2001:db8::1]:9000"},
		{"192.0.2.1", true, true, "[fd00::1:0]:9000"},
		{"gate.example.org", true, true, "gate.example.org:9000"},
		{"", true, false, "10.9.0.2:9000"},
		{"", true, true, "[fd00::1:0]:9000"},
		{"", false, false, "[fd00::1:0]:9000"},
	} {
		m := *n
		if m.PrimaryEndpoint = tt.primary; !tt.v4 {
			m.IPv4 = netip.Prefix{}
		}
		if got, err := storageAddress(&m, tt.prefer); err != nil || got != tt.want {
			t.Errorf("%+v: %s, %v", tt, got, err)
		}
	}
	if _, err := storageAddress(&mesh.Node{ID: "n"}, false); !errors.Is(err, mesh.ErrPrecondition) {
		t.Errorf("without the feature: %v", err)
	}
}

func TestEnrolment_GetChallenge(t *testing.T) {
	f := testFake(t)
	res, err := (&enrolmentService{state: f}).GetChallenge(t.Context(), connect.NewRequest(&meshgatev1.GetChallengeRequest{Id: "nas"}))
	if err != nil || res.Msg.GetMesh() != "fd00:0:1::/32" || res.Msg.GetGatewayId() != "gw" || time.Since(res.Msg.GetTime().AsTime()) > time.Minute {
		t.Errorf("%v, %v", res, err)
	}
	for _, id := range []string{"", "../x", "leader", strings.Repeat("x", 254)} {
		if _, err := (&enrolmentService{state: f}).GetChallenge(t.Context(), connect.NewRequest(&meshgatev1.GetChallengeRequest{Id: id})); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	f.self = "phone"
	if _, err := (&enrolmentService{state: f}).GetChallenge(t.Context(), connect.NewRequest(&meshgatev1.GetChallengeRequest{Id: "nas"})); !errors.Is(err, mesh.ErrUnsupported) {
		t.Errorf("a node without state: %v", err)
	}
}
