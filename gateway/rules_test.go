// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// everyMethod lists the methods of our protobuf packages.
func everyMethod(t *testing.T) []protoreflect.MethodDescriptor {
	t.Helper()
	var methods []protoreflect.MethodDescriptor
	for _, pkg := range []protoreflect.FullName{"v1", "meshgate.v1"} {
		protoregistry.GlobalFiles.RangeFilesByPackage(pkg, func(f protoreflect.FileDescriptor) bool {
			for i := range f.Services().Len() {
				s := f.Services().Get(i)
				for j := range s.Methods().Len() {
					methods = append(methods, s.Methods().Get(j))
				}
			}
			return true
		})
	}
	if len(methods) < 70 {
		t.Fatalf("found %d methods only", len(methods))
	}
	return methods
}

func procedureOf(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

// otherwiseFresh are the procedures that are neither a change, which is decided on
// all that was acknowledged, nor a read that promises as much unless its caller
// asks for less; with why.
func otherwiseFresh() map[string]freshness {
	return map[string]freshness{
		// It is about this gateway, or goes on to tell what is new.
		v1connect.NodeGetStatusProcedure:                known,
		meshgatev1connect.ClusterStatusProcedure:        known,
		meshgatev1connect.WatchWatchMeshProcedure:       known,
		meshgatev1connect.PathsListPathsProcedure:       known,
		meshgatev1connect.PathsUseExitProcedure:         known,
		meshgatev1connect.PresenceListPresenceProcedure: known,
		meshgatev1connect.TurnListAllocationsProcedure:  known,
		meshgatev1connect.PresenceStopProcedure:         known,
		meshgatev1connect.PathsPingProcedure:            known,
		meshgatev1connect.PathsListServersProcedure:     known,
		v1connect.MembershipSubscribePeersProcedure:     known,
		meshgatev1connect.PairsFollowProcedure:          known,
		"/" + grpchealth.HealthV1ServiceName + "/Check": known,
		"/" + grpchealth.HealthV1ServiceName + "/Watch": known,
		// The join that follows is decided on all.
		meshgatev1connect.EnrolmentGetChallengeProcedure: known,
		// Channels go on without a leader.
		v1connect.NodeNegotiateDataChannelProcedure: known,
		v1connect.NodeReceiveSignalChannelProcedure: known,
		v1connect.WebRTCStartDataChannelProcedure:   known,
		v1connect.WebRTCStartSignalChannelProcedure: known,
		// Its callers say themselves what they have to see: Sync, and at_least.
		meshgatev1connect.StoreGetProcedure:   known,
		meshgatev1connect.StoreListProcedure:  known,
		meshgatev1connect.StoreWatchProcedure: known,
		meshgatev1connect.StoreSyncProcedure:  known,
		// It is the same in every state.
		"/" + grpcreflect.ReflectV1ServiceName + "/ServerReflectionInfo":      known,
		"/" + grpcreflect.ReflectV1AlphaServiceName + "/ServerReflectionInfo": known,
		// A write, although none of the mesh.
		v1connect.StorageQueryServicePublishProcedure: always,
		// What is missing in it is missed for good: a token that nobody sees is
		// never revoked.
		meshgatev1connect.TokensListTokensProcedure: always,
	}
}

// What was taken from somebody a moment ago, at another gateway, must not be used
// for a change here.
func TestRules_DecideOnAllThatWasAcknowledged(t *testing.T) {
	rules, otherwise := newRules(false), otherwiseFresh()
	for procedure, r := range rules {
		want := unlessStale
		if r.writes {
			want = always
		}
		if other, ok := otherwise[procedure]; ok {
			if r.writes || other == want {
				t.Errorf("%s is no exception", procedure)
			}
			want = other
		}
		if r.fresh != want {
			t.Errorf("%s: decided by state of kind %d, want %d", procedure, r.fresh, want)
		}
	}
	for procedure := range otherwise {
		if _, ok := rules[procedure]; !ok {
			t.Errorf("%s has no rule", procedure)
		}
	}
}

// A procedure that somebody adds to the API must not be open, nor forgotten.
func TestRules_EveryProcedureHasOne(t *testing.T) {
	g, err := New(Config{Node: newFakeNode(nil), Signaling: &fakeSignaling{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range everyMethod(t) {
		r, ok := g.rules[procedureOf(m)]
		if !ok || r.access == nobody {
			t.Errorf("%s has no rule", procedureOf(m))
		}
		if r.access == anyone {
			t.Errorf("%s is open to strangers", procedureOf(m))
		}
	}
}

func TestRules_NeedsOfAnotherMessageDeny(t *testing.T) {
	for procedure, r := range newRules(false) {
		if r.needs == nil {
			continue
		}
		actions, err := r.needs(api.Caller{ID: "x"}, 42)
		if err == nil && len(actions) == 0 {
			t.Errorf("%s lets a message of a wrong type pass", procedure)
		}
	}
}

// callAny makes a call of m with an empty first message and returns its error.
func callAny(ctx context.Context, c *http.Client, base string, m protoreflect.MethodDescriptor) error {
	return callRaw(ctx, c, base, m, nil)
}

// Every procedure, called by every kind of caller who should not get in.
func TestAuthorization_EveryProcedureDenies(t *testing.T) {
	s := serve(t, nil)
	plain := httpClient(t, true, "", nil)
	header := func(pairs ...string) *http.Client {
		c := plain
		for i := 0; i < len(pairs); i += 2 {
			c = withHeader(c, pairs[i], pairs[i+1])
		}
		return c
	}
	admin := "Bearer " + tokenOf("admin")
	unauthenticated := map[string]*http.Client{
		"no credentials":        plain,
		"unknown token":         header("Authorization", "Bearer "+strings.Repeat("x", 40)),
		"two tokens":            header("Authorization", admin, "Authorization", "Bearer "+tokenOf("nobody")),
		"the same token twice":  header("Authorization", admin, "Authorization", admin),
		"tokens with a comma":   header("Authorization", admin+", "+admin),
		"token and password":    header("Authorization", admin, "X-Webmesh-Basic-Auth-Username", "admin", "X-Webmesh-Basic-Auth-Password", "admin"),
		"basic scheme":          header("Authorization", "Basic YWRtaW46YWRtaW4="),
		"no scheme":             header("Authorization", tokenOf("admin")),
		"empty token":           header("Authorization", "Bearer "),
		"proxied for the admin": header("X-Webmesh-Proxied-For", "admin"),
		"proxied from a member": header("X-Webmesh-Proxied-From", "gw-2", "X-Webmesh-Proxied-For", "admin"),
	}
	for name, c := range unauthenticated {
		t.Run(name, func(t *testing.T) {
			for _, m := range everyMethod(t) {
				if err := callAny(testContext(t), c, "http://"+s.public, m); connect.CodeOf(err) != connect.CodeUnauthenticated {
					t.Errorf("%s: %v", procedureOf(m), err)
				}
			}
		})
	}
	nobody := []*http.Client{
		header("Authorization", "Bearer "+tokenOf("nobody")),
		header("Authorization", "Bearer "+tokenOf("nobody"), "X-Webmesh-Proxied-For", "admin", "X-Webmesh-Proxied-From", "gw-1"),
		header("Authorization", "Bearer "+tokenOf("nobody"), "x-WEBMESH-proxied-FOR", "admin"),
		header("Authorization", "Bearer "+tokenOf("nobody"), "X-Webmesh-Proxied-For", "admin", "X-Webmesh-Proxied-For", "nobody"),
		header("Authorization", "Bearer "+tokenOf("nobody"), "X-Webmesh-Proxied-For-Bin", "YWRtaW4"),
		header("Authorization", "Bearer "+tokenOf("nobody"), "X-Webmesh-Prefer-Leader", "true", "X-Forwarded-For", "127.0.0.2"),
	}
	for i, c := range nobody {
		for _, m := range everyMethod(t) {
			want := connect.CodePermissionDenied
			switch m.Parent().Name() {
			case "AppDaemon", "Plugin", "AuthPlugin", "WatchPlugin",
				"IPAMPlugin", "StorageQuerierPlugin", "StorageProviderPlugin":
				want = connect.CodeUnimplemented
			case "WebRTC", "Objects": // names no node, or no object, for which no role is asked
				want = connect.CodeInvalidArgument
			}
			err := callAny(testContext(t), c, "http://"+s.public, m)
			if connect.CodeOf(err) != want {
				t.Errorf("variant %d: %s: %v", i, procedureOf(m), err)
			}
		}
	}
	if n := s.node.writes(); n != 0 {
		t.Errorf("%d changes reached the node", n)
	}
}

// what each kind of caller may do, and what not.
func TestAuthorization_Roles(t *testing.T) {
	s := serve(t, nil)
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	joinAs := func(id string) *v1.JoinRequest {
		return &v1.JoinRequest{Id: id, PublicKey: key.Public().Encode()}
	}
	with := func(r *v1.JoinRequest, change func(*v1.JoinRequest)) *v1.JoinRequest { change(r); return r }
	const ok = connect.Code(0)
	const from = "from " // marks a member by its mesh address
	for _, tt := range []struct {
		who       string
		procedure string
		msg       proto.Message
		want      connect.Code
	}{
		{"admin", v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "web-1"}, ok},
		{"viewer", v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "web-1"}, ok},
		{"viewer", v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "absent"}, connect.CodeNotFound},
		{"viewer", v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "../x"}, connect.CodeInvalidArgument},
		{"opener", v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "web-1"}, connect.CodePermissionDenied},
		{from + "127.0.0.2", v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "web-1"}, ok},
		{from + "127.0.0.77", v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "web-1"}, connect.CodeUnauthenticated},
		{from + "127.0.0.2", v1connect.NodeGetStatusProcedure, &v1.GetStatusRequest{}, ok},
		{from + "127.0.0.2", v1connect.NodeGetStatusProcedure, &v1.GetStatusRequest{Id: "gw-2"}, ok},
		{from + "127.0.0.2", v1connect.NodeGetStatusProcedure, &v1.GetStatusRequest{Id: "web-1"}, connect.CodeFailedPrecondition},

		{"viewer", meshgatev1connect.PresenceListPresenceProcedure, &meshgatev1.ListPresenceRequest{}, ok},
		{"opener", meshgatev1connect.PresenceListPresenceProcedure, &meshgatev1.ListPresenceRequest{}, connect.CodePermissionDenied},
		{from + "127.0.0.2", meshgatev1connect.PresenceListPresenceProcedure, &meshgatev1.ListPresenceRequest{Own: true}, ok},
		{"admin", meshgatev1connect.PresenceStopProcedure, &meshgatev1.StopRequest{}, connect.CodePermissionDenied},
		{from + "127.0.0.2", meshgatev1connect.PresenceStopProcedure, &meshgatev1.StopRequest{}, ok},
		{"viewer", meshgatev1connect.PathsListPathsProcedure, &meshgatev1.ListPathsRequest{}, ok},
		{"viewer", meshgatev1connect.PathsListPathsProcedure, &meshgatev1.ListPathsRequest{NodeId: "gw-2"}, ok},
		{"viewer", meshgatev1connect.PathsListPathsProcedure, &meshgatev1.ListPathsRequest{NodeId: "web-1"}, connect.CodeFailedPrecondition},
		{"viewer", meshgatev1connect.PathsListPathsProcedure, &meshgatev1.ListPathsRequest{NodeId: "absent"}, connect.CodeNotFound},
		{"opener", meshgatev1connect.PathsListPathsProcedure, &meshgatev1.ListPathsRequest{}, connect.CodePermissionDenied},
		{from + "127.0.0.2", meshgatev1connect.PathsListPathsProcedure, &meshgatev1.ListPathsRequest{}, connect.CodePermissionDenied},
		{from + "127.0.0.2", meshgatev1connect.PathsListPathsProcedure, &meshgatev1.ListPathsRequest{NodeId: "gw-2"}, connect.CodePermissionDenied},
		{from + "127.0.0.3", meshgatev1connect.PathsListPathsProcedure, &meshgatev1.ListPathsRequest{}, ok},
		{"viewer", meshgatev1connect.PathsPingProcedure, &meshgatev1.PingRequest{NodeId: "web-1"}, ok},
		{"viewer", meshgatev1connect.PathsPingProcedure, &meshgatev1.PingRequest{NodeId: "web-1", FromId: "gw-2"}, ok},
		{"viewer", meshgatev1connect.PathsPingProcedure, &meshgatev1.PingRequest{NodeId: "absent"}, connect.CodeNotFound},
		{"opener", meshgatev1connect.PathsPingProcedure, &meshgatev1.PingRequest{NodeId: "web-1"}, connect.CodePermissionDenied},
		{from + "127.0.0.2", meshgatev1connect.PathsPingProcedure, &meshgatev1.PingRequest{NodeId: "web-1"}, connect.CodePermissionDenied},
		{from + "127.0.0.3", meshgatev1connect.PathsPingProcedure, &meshgatev1.PingRequest{NodeId: "web-1"}, ok},
		{from + "127.0.0.2", meshgatev1connect.PathsListServersProcedure, &meshgatev1.ListServersRequest{}, ok},
		{"opener", meshgatev1connect.PathsListServersProcedure, &meshgatev1.ListServersRequest{}, connect.CodePermissionDenied},

		{"opener", v1connect.WebRTCStartDataChannelProcedure, &v1.StartDataChannelRequest{NodeId: "web-1"}, ok},
		{"opener", v1connect.WebRTCStartDataChannelProcedure, &v1.StartDataChannelRequest{NodeId: "gw-2"}, connect.CodePermissionDenied},
		{"opener", v1connect.WebRTCStartDataChannelProcedure, &v1.StartDataChannelRequest{NodeId: "WEB-1"}, connect.CodePermissionDenied},
		{"opener", v1connect.WebRTCStartDataChannelProcedure, &v1.StartDataChannelRequest{}, connect.CodeInvalidArgument},
		{"opener", v1connect.WebRTCStartSignalChannelProcedure, &v1.WebRTCSignal{}, connect.CodeInvalidArgument},
		{"admin", v1connect.WebRTCStartDataChannelProcedure, &v1.StartDataChannelRequest{InBand: true}, connect.CodeInvalidArgument},
		{"admin", v1connect.WebRTCStartSignalChannelProcedure, &v1.WebRTCSignal{NodeId: "gw-2"}, ok},
		{"viewer", v1connect.WebRTCStartSignalChannelProcedure, &v1.WebRTCSignal{NodeId: "gw-2"}, connect.CodePermissionDenied},
		{from + "127.0.0.2", v1connect.WebRTCStartDataChannelProcedure, &v1.StartDataChannelRequest{NodeId: "web-1"}, connect.CodePermissionDenied},

		{from + "127.0.0.3", v1connect.NodeNegotiateDataChannelProcedure, &v1.DataChannelNegotiation{}, ok},
		{from + "127.0.0.2", v1connect.NodeNegotiateDataChannelProcedure, &v1.DataChannelNegotiation{}, connect.CodePermissionDenied},
		{"admin", v1connect.NodeNegotiateDataChannelProcedure, &v1.DataChannelNegotiation{}, connect.CodePermissionDenied},
		{from + "127.0.0.3", v1connect.NodeReceiveSignalChannelProcedure, &v1.WebRTCSignal{}, ok},
		{"admin", v1connect.NodeReceiveSignalChannelProcedure, &v1.WebRTCSignal{}, connect.CodePermissionDenied},

		{"nobody", v1connect.MembershipJoinProcedure, joinAs("nobody"), ok},
		{"nobody", v1connect.MembershipJoinProcedure, joinAs("other"), connect.CodePermissionDenied},
		{"admin", v1connect.MembershipJoinProcedure, joinAs("other"), ok},
		{"admin", v1connect.MembershipJoinProcedure, joinAs("leader"), connect.CodeInvalidArgument},
		{"admin", v1connect.MembershipJoinProcedure, &v1.JoinRequest{Id: "other"}, connect.CodeInvalidArgument},
		{"nobody", v1connect.MembershipJoinProcedure, with(joinAs("nobody"), func(r *v1.JoinRequest) { r.Routes = []string{"10.0.0.0/8"} }), connect.CodePermissionDenied},
		{"nobody", v1connect.MembershipJoinProcedure, with(joinAs("nobody"), func(r *v1.JoinRequest) {
			r.DirectPeers = map[string]v1.ConnectProtocol{"web-1": 0}
		}), connect.CodePermissionDenied},
		{"nobody", v1connect.MembershipJoinProcedure, with(joinAs("nobody"), func(r *v1.JoinRequest) { r.AsVoter = true }), connect.CodePermissionDenied},
		{"nobody", v1connect.MembershipJoinProcedure, with(joinAs("nobody"), func(r *v1.JoinRequest) { r.AsObserver = true }), connect.CodePermissionDenied},
		{"admin", v1connect.MembershipJoinProcedure, with(joinAs("other"), func(r *v1.JoinRequest) { r.AsVoter = true }), connect.CodeFailedPrecondition},

		{from + "127.0.0.2", v1connect.MembershipUpdateProcedure, &v1.UpdateRequest{Id: "laptop", PublicKey: key.Public().Encode()}, ok},
		{from + "127.0.0.2", v1connect.MembershipUpdateProcedure, &v1.UpdateRequest{Id: "web-1"}, connect.CodePermissionDenied},
		{from + "127.0.0.2", v1connect.MembershipUpdateProcedure, &v1.UpdateRequest{Id: "laptop", Routes: []string{"10.0.0.0/8"}}, connect.CodePermissionDenied},
		{"nobody", v1connect.MembershipUpdateProcedure, &v1.UpdateRequest{Id: "nobody"}, ok},
		{"nobody", v1connect.MembershipUpdateProcedure, &v1.UpdateRequest{Id: "nobody", PublicKey: key.Public().Encode()}, connect.CodePermissionDenied},
		{"nobody", v1connect.MembershipUpdateProcedure, &v1.UpdateRequest{Id: "web-1"}, connect.CodePermissionDenied},
		{"admin", v1connect.MembershipUpdateProcedure, &v1.UpdateRequest{Id: "web-1", PublicKey: key.Public().Encode()}, ok},

		{from + "127.0.0.2", v1connect.MembershipLeaveProcedure, &v1.LeaveRequest{Id: "web-1"}, connect.CodePermissionDenied},
		{from + "127.0.0.2", v1connect.MembershipLeaveProcedure, &v1.LeaveRequest{Id: "laptop"}, ok},
		{"admin", v1connect.MembershipLeaveProcedure, &v1.LeaveRequest{Id: "web-1"}, ok},
		{"admin", v1connect.MembershipLeaveProcedure, &v1.LeaveRequest{Id: "gw-1"}, connect.CodeFailedPrecondition},
		{"nobody", v1connect.MembershipLeaveProcedure, &v1.LeaveRequest{Id: "web-1"}, connect.CodePermissionDenied},

		{from + "127.0.0.2", v1connect.MembershipSubscribePeersProcedure, &v1.SubscribePeersRequest{Id: "laptop"}, ok},
		{from + "127.0.0.2", v1connect.MembershipSubscribePeersProcedure, &v1.SubscribePeersRequest{Id: "gw-2"}, connect.CodePermissionDenied},
		{"admin", v1connect.MembershipSubscribePeersProcedure, &v1.SubscribePeersRequest{Id: "laptop"}, ok},
		{"viewer", v1connect.MembershipSubscribePeersProcedure, &v1.SubscribePeersRequest{Id: "laptop"}, connect.CodePermissionDenied},

		{from + "127.0.0.2", meshgatev1connect.EnrolmentAdoptProcedure, &meshgatev1.AdoptRequest{Id: "laptop"}, ok},
		{from + "127.0.0.2", meshgatev1connect.EnrolmentAdoptProcedure, &meshgatev1.AdoptRequest{Id: "web-1"}, connect.CodePermissionDenied},
		{"admin", meshgatev1connect.EnrolmentAdoptProcedure, &meshgatev1.AdoptRequest{Id: "web-1"}, ok},
		{"nobody", meshgatev1connect.EnrolmentAdoptProcedure, &meshgatev1.AdoptRequest{Id: "nobody"}, connect.CodePermissionDenied},
		{"viewer", meshgatev1connect.EnrolmentAdoptProcedure, &meshgatev1.AdoptRequest{Id: "web-1"}, connect.CodePermissionDenied},
		{"admin", meshgatev1connect.EnrolmentAdoptProcedure, &meshgatev1.AdoptRequest{Id: "no/id"}, connect.CodeInvalidArgument},

		{"admin", v1connect.MembershipApplyProcedure, &v1.RaftLogEntry{Type: v1.RaftCommandType_PUT, Key: "/registry/x"}, connect.CodePermissionDenied},
		{from + "127.0.0.3", v1connect.MembershipApplyProcedure, &v1.RaftLogEntry{Type: v1.RaftCommandType_PUT, Key: "/registry/x"}, connect.CodePermissionDenied},
		{from + "127.0.0.2", v1connect.MembershipGetStorageConfigurationProcedure, &v1.StorageConfigurationRequest{}, ok},
	} {
		addr, c := s.public, httpClient(t, true, "", nil)
		if source, member := strings.CutPrefix(tt.who, from); member {
			addr, c = s.mesh, httpClient(t, true, source, nil)
		} else {
			c = bearer(c, tt.who)
		}
		s.node.set(testSnapshot())
		err := callOnce(t, c, "http://"+addr, tt.procedure, tt.msg)
		if got := connect.CodeOf(err); (err == nil) != (tt.want == ok) || err != nil && got != tt.want {
			t.Errorf("%s %s {%v}: %v, want %v", tt.who, tt.procedure, tt.msg, err, tt.want)
		}
	}
}

// Over the mesh a node speaks for itself, whatever roles it has.
func TestAuthorization_MemberWithRoles(t *testing.T) {
	s := serve(t, nil)
	snap := testSnapshot()
	snap.Bindings = append(snap.Bindings, mesh.RoleBinding{Name: "laptop", Role: "admin", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "laptop"}}})
	s.node.set(snap)
	c := httpClient(t, true, "127.0.0.2", nil)
	for procedure, msg := range map[string]proto.Message{
		v1connect.MembershipUpdateProcedure:         &v1.UpdateRequest{Id: "web-1"},
		v1connect.MembershipLeaveProcedure:          &v1.LeaveRequest{Id: "web-1"},
		v1connect.MembershipSubscribePeersProcedure: &v1.SubscribePeersRequest{Id: "web-1"},
	} {
		if err := callOnce(t, c, "http://"+s.mesh, procedure, msg); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %v", procedure, err)
		}
	}
}

// callOnce makes a call with msg as its first message and takes one answer.
func callOnce(t *testing.T, c *http.Client, base, procedure string, msg proto.Message) error {
	t.Helper()
	service, method, _ := strings.Cut(procedure[1:], "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		t.Fatal(err)
	}
	m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	raw, err := proto.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	return callRaw(testContext(t), c, base, m, raw)
}

func callRaw(ctx context.Context, c *http.Client, base string, m protoreflect.MethodDescriptor, raw []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client := connect.NewClient[[]byte, []byte](c, base+procedureOf(m), connect.WithGRPC(), connect.WithCodec(rawCodec{}))
	if m.IsStreamingClient() || m.IsStreamingServer() {
		call := client.CallBidiStream(ctx)
		defer call.CloseResponse()
		if err := call.Send(&raw); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !m.IsStreamingClient() {
			if err := call.CloseRequest(); err != nil {
				return err
			}
		}
		_, err := call.Receive()
		return err
	}
	_, err := client.CallUnary(ctx, connect.NewRequest(&raw))
	return err
}

// rawCodec passes bytes as the protobuf messages that they are.
type rawCodec struct{}

func (rawCodec) Name() string                  { return "proto" }
func (rawCodec) Marshal(m any) ([]byte, error) { return *m.(*[]byte), nil }
func (rawCodec) Unmarshal(raw []byte, m any) error {
	if status, ok := m.(proto.Message); ok { // of an error with details
		return proto.Unmarshal(raw, status)
	}
	*m.(*[]byte) = append([]byte(nil), raw...)
	return nil
}
func (rawCodec) MarshalStable(m any) ([]byte, error) { return *m.(*[]byte), nil }
func (rawCodec) IsBinary() bool                      { return true }
