// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

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
