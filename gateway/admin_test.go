// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/registry"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

const codeOK = connect.Code(0)

func wantCode(t *testing.T, err error, want connect.Code, text string) {
	t.Helper()
	switch {
	case want == codeOK && err != nil:
		t.Errorf("got %v, want no error", err)
	case want != codeOK && (err == nil || connect.CodeOf(err) != want || !strings.Contains(err.Error(), text)):
		t.Errorf("got %v, want %v with %q", err, want, text)
	}
}

var (
	goodRole    = &v1.Role{Name: "r", Rules: []*v1.Rule{{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ROUTES}, ResourceNames: []string{"x"}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_GET}}}}
	goodBinding = &v1.RoleBinding{Name: "b", Role: "r", Subjects: []*v1.Subject{{Name: "g", Type: v1.SubjectType_SUBJECT_GROUP}}}
	goodGroup   = &v1.Group{Name: "g", Subjects: []*v1.Subject{{Name: "alice", Type: v1.SubjectType_SUBJECT_USER}}}
	goodACL     = &v1.NetworkACL{Name: "a", Priority: -1 << 31, Action: v1.ACLAction_ACTION_ACCEPT, SourceNodes: []string{"group:g"}, DestinationCidrs: []string{"10.0.0.0/8"}, Protocols: []string{"tcp"}, Ports: []uint32{22, 443}}
	goodRoute   = &v1.Route{Name: "t", Node: "web-1", DestinationCidrs: []string{"192.168.0.0/24"}, NextHopNode: "gw-1"}
	goodEdge    = &v1.MeshEdge{Source: "web-1", Target: "web-2", Weight: 7, Attributes: map[string]string{"EDGE_ATTRIBUTE_ICE": "true"}}
)

// Every object, through its whole life.
func TestAdmin_PutGetListDelete(t *testing.T) {
	s, _ := serveState(t)
	c := v1connect.NewAdminClient(bearer(httpClient(t, true, "", nil), "admin"), "http://"+s.public)
	life(t, goodGroup, c.PutGroup, c.GetGroup, c.DeleteGroup, c.ListGroups, (*v1.Groups).GetItems)
	life(t, goodRole, c.PutRole, c.GetRole, c.DeleteRole, c.ListRoles, (*v1.Roles).GetItems)
	life(t, goodRoute, c.PutRoute, c.GetRoute, c.DeleteRoute, c.ListRoutes, (*v1.Routes).GetItems)
	life(t, goodEdge, c.PutEdge, c.GetEdge, c.DeleteEdge, c.ListEdges, (*v1.MeshEdges).GetItems)
	ctx := testContext(t)
	for _, put := range []error{
		failed(c.PutRole(ctx, connect.NewRequest(goodRole))), failed(c.PutGroup(ctx, connect.NewRequest(goodGroup))),
	} {
		if put != nil {
			t.Fatal(put)
		}
	}
	life(t, goodACL, c.PutNetworkACL, c.GetNetworkACL, c.DeleteNetworkACL, c.ListNetworkACLs, (*v1.NetworkACLs).GetItems)
	life(t, goodBinding, c.PutRoleBinding, c.GetRoleBinding, c.DeleteRoleBinding, c.ListRoleBindings, (*v1.RoleBindings).GetItems)
}

func failed[M any](_ *connect.Response[M], err error) error { return err }

type method[In, Out any] func(context.Context, *connect.Request[In]) (*connect.Response[Out], error)

func life[M, L any](t *testing.T, want *M, put method[M, emptypb.Empty], get method[M, M], remove method[M, emptypb.Empty], list method[emptypb.Empty, L], items func(*L) []*M) {
	t.Helper()
	ctx := testContext(t)
	_, err := get(ctx, connect.NewRequest(want))
	wantCode(t, err, connect.CodeNotFound, "no ")
	before, err := list(ctx, connect.NewRequest(&emptypb.Empty{}))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again is no change, and no error
		if _, err := put(ctx, connect.NewRequest(want)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := get(ctx, connect.NewRequest(want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Msg, protocmp.Transform(), protocmp.IgnoreDefaultScalars()); diff != "" {
		t.Errorf("(-put +got):\n%s", diff)
	}
	after, err := list(ctx, connect.NewRequest(&emptypb.Empty{}))
	if err != nil || len(items(after.Msg)) != len(items(before.Msg))+1 {
		t.Errorf("list has %d after %d, %v", len(items(after.Msg)), len(items(before.Msg)), err)
	}
	for range 2 {
		if _, err := remove(ctx, connect.NewRequest(want)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = get(ctx, connect.NewRequest(want))
	wantCode(t, err, connect.CodeNotFound, "no ")
}

// with is a changed copy of a good message.
func with[M proto.Message](good M, change func(M)) M {
	m := proto.Clone(good).(M)
	change(m)
	return m
}

// Bad input of every rpc: the code and a text that names the field.
func TestAdmin_BadInput(t *testing.T) {
	s, n := serveState(t)
	for _, put := range []struct {
		procedure string
		msg       proto.Message
	}{
		{v1connect.AdminPutGroupProcedure, goodGroup}, {v1connect.AdminPutRoleProcedure, goodRole},
		{v1connect.AdminPutNetworkACLProcedure, goodACL},
	} {
		if err := s.as(t, "admin", put.procedure, put.msg); err != nil {
			t.Fatal(err)
		}
	}
	const invalid, precondition = connect.CodeInvalidArgument, connect.CodeFailedPrecondition
	type row struct {
		procedure string
		msg       proto.Message
		want      connect.Code
		text      string
	}
	var rows []row
	add := func(procedure string, msg proto.Message, want connect.Code, text string) {
		rows = append(rows, row{procedure, msg, want, text})
	}
	long := strings.Repeat("x", 1024)
	for _, name := range []string{"", "*", "a/b", "../x", "a,b", "a:b", "group:g", long, "\x01", ".", ".."} {
		for procedure, msg := range map[string]proto.Message{
			v1connect.AdminPutRoleProcedure:           with(goodRole, func(m *v1.Role) { m.Name = name }),
			v1connect.AdminGetRoleProcedure:           &v1.Role{Name: name},
			v1connect.AdminDeleteRoleProcedure:        &v1.Role{Name: name},
			v1connect.AdminPutRoleBindingProcedure:    with(goodBinding, func(m *v1.RoleBinding) { m.Name = name }),
			v1connect.AdminGetRoleBindingProcedure:    &v1.RoleBinding{Name: name},
			v1connect.AdminDeleteRoleBindingProcedure: &v1.RoleBinding{Name: name},
			v1connect.AdminPutGroupProcedure:          with(goodGroup, func(m *v1.Group) { m.Name = name }),
			v1connect.AdminGetGroupProcedure:          &v1.Group{Name: name},
			v1connect.AdminDeleteGroupProcedure:       &v1.Group{Name: name},
			v1connect.AdminPutNetworkACLProcedure:     with(goodACL, func(m *v1.NetworkACL) { m.Name = name }),
			v1connect.AdminGetNetworkACLProcedure:     &v1.NetworkACL{Name: name},
			v1connect.AdminDeleteNetworkACLProcedure:  &v1.NetworkACL{Name: name},
			v1connect.AdminPutRouteProcedure:          with(goodRoute, func(m *v1.Route) { m.Name = name }),
			v1connect.AdminGetRouteProcedure:          &v1.Route{Name: name},
			v1connect.AdminDeleteRouteProcedure:       &v1.Route{Name: name},
		} {
			add(procedure, msg, invalid, "name: ")
		}
		for _, procedure := range []string{v1connect.AdminPutEdgeProcedure, v1connect.AdminGetEdgeProcedure, v1connect.AdminDeleteEdgeProcedure} {
			add(procedure, &v1.MeshEdge{Source: name, Target: "web-1"}, invalid, "source: ")
			add(procedure, &v1.MeshEdge{Source: "web-1", Target: name}, invalid, "target: ")
		}
		add(v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: name}, invalid, "id: ")
	}
	for _, procedure := range []string{v1connect.AdminPutEdgeProcedure, v1connect.AdminGetEdgeProcedure, v1connect.AdminDeleteEdgeProcedure} {
		add(procedure, &v1.MeshEdge{Source: "web-1", Target: "web-1"}, invalid, "target: ")
		add(procedure, &v1.MeshEdge{Source: "leader", Target: "web-1"}, invalid, "source: ")
	}
	role := func(text string, change func(*v1.Rule)) {
		add(v1connect.AdminPutRoleProcedure, with(goodRole, func(m *v1.Role) { change(m.Rules[0]) }), invalid, text)
	}
	role("rules: [0]: resources", func(r *v1.Rule) { r.Resources = nil })
	role("rules: [0]: verbs", func(r *v1.Rule) { r.Verbs = nil })
	role("rules: [0]: resources", func(r *v1.Rule) { r.Resources = []v1.RuleResource{0} })
	role("rules: [0]: resources", func(r *v1.Rule) { r.Resources = []v1.RuleResource{77} })
	role("rules: [0]: verbs", func(r *v1.Rule) { r.Verbs = []v1.RuleVerb{0} })
	role("rules: [0]: verbs", func(r *v1.Rule) { r.Verbs = []v1.RuleVerb{-1} })
	role("rules: [0]: resource_names: [1]", func(r *v1.Rule) { r.ResourceNames = []string{"x", ""} })
	role("rules: [0]: resource_names: 10000", func(r *v1.Rule) { r.ResourceNames = slices.Repeat([]string{"x"}, 10000) })
	add(v1connect.AdminPutRoleProcedure, &v1.Role{Name: "r"}, invalid, "rules: ")
	add(v1connect.AdminPutRoleProcedure, with(goodRole, func(m *v1.Role) { m.Name = "mesh-admin" }), precondition, "mesh-admin")
	add(v1connect.AdminDeleteRoleProcedure, &v1.Role{Name: "voters"}, precondition, "voters")

	subjects := func(text string, want connect.Code, list ...*v1.Subject) {
		add(v1connect.AdminPutGroupProcedure, with(goodGroup, func(m *v1.Group) { m.Subjects = list }), want, text)
		add(v1connect.AdminPutRoleBindingProcedure, with(goodBinding, func(m *v1.RoleBinding) { m.Subjects = list }), want, text)
	}
	subjects("subjects: ", invalid)
	subjects("subjects: [0]: type", invalid, &v1.Subject{Name: "x"})
	subjects("subjects: [0]: type", invalid, &v1.Subject{Name: "x", Type: 44})
	subjects("subjects: [0]: name", invalid, &v1.Subject{Type: v1.SubjectType_SUBJECT_USER})
	subjects("subjects: [0]: name", invalid, &v1.Subject{Name: "*", Type: v1.SubjectType_SUBJECT_GROUP})
	subjects("subjects: [0]: there is no group", precondition, &v1.Subject{Name: "absent", Type: v1.SubjectType_SUBJECT_GROUP})
	subjects("subjects: 10000", invalid, slices.Repeat([]*v1.Subject{{Name: "x", Type: v1.SubjectType_SUBJECT_USER}}, 10000)...)
	add(v1connect.AdminPutGroupProcedure, &v1.Group{Name: "g", Subjects: []*v1.Subject{{Name: "g", Type: v1.SubjectType_SUBJECT_GROUP}}}, invalid, "hold itself")
	add(v1connect.AdminDeleteGroupProcedure, &v1.Group{Name: "g"}, precondition, `network ACL "a"`)
	add(v1connect.AdminDeleteGroupProcedure, &v1.Group{Name: "voters"}, precondition, "voters")
	add(v1connect.AdminPutRoleBindingProcedure, with(goodBinding, func(m *v1.RoleBinding) { m.Role = "absent" }), precondition, "role: ")
	add(v1connect.AdminPutRoleBindingProcedure, with(goodBinding, func(m *v1.RoleBinding) { m.Role = "" }), invalid, "role: ")
	add(v1connect.AdminDeleteRoleBindingProcedure, &v1.RoleBinding{Name: "mesh-admin"}, precondition, "mesh-admin")

	acl := func(text string, change func(*v1.NetworkACL)) {
		add(v1connect.AdminPutNetworkACLProcedure, with(goodACL, change), invalid, text)
	}
	acl("action: ", func(m *v1.NetworkACL) { m.Action = 9 })
	acl("source_nodes", func(m *v1.NetworkACL) {
		m.SourceNodes, m.DestinationCidrs, m.Protocols, m.Ports = nil, nil, nil, nil
	})
	acl("source_nodes: [0]", func(m *v1.NetworkACL) { m.SourceNodes = []string{"a/b"} })
	acl("destination_nodes: [1]", func(m *v1.NetworkACL) { m.DestinationNodes = []string{"a", "group:"} })
	acl("source_cidrs: [0]", func(m *v1.NetworkACL) { m.SourceCidrs = []string{"10.0.0.1/8"} })
	acl("10.0.0.0/8 for the network", func(m *v1.NetworkACL) { m.SourceCidrs = []string{"10.0.0.1/8"} })
	acl("destination_cidrs: [0]", func(m *v1.NetworkACL) { m.DestinationCidrs = []string{"10.0.0.0/33"} })
	acl("destination_cidrs: [0]", func(m *v1.NetworkACL) { m.DestinationCidrs = []string{"::ffff:10.0.0.0/104"} })
	acl("destination_cidrs: [0]", func(m *v1.NetworkACL) { m.DestinationCidrs = []string{"office"} })
	acl("protocols: ", func(m *v1.NetworkACL) { m.Protocols = []string{"carrier pigeon"} })
	acl("ports: ", func(m *v1.NetworkACL) { m.Ports = []uint32{0} })
	acl("ports: ", func(m *v1.NetworkACL) { m.Ports = []uint32{65536} })
	acl("source_nodes: 10000", func(m *v1.NetworkACL) { m.SourceNodes = slices.Repeat([]string{"x"}, 10000) })

	route := func(text string, want connect.Code, change func(*v1.Route)) {
		add(v1connect.AdminPutRouteProcedure, with(goodRoute, change), want, text)
	}
	route("node: ", invalid, func(m *v1.Route) { m.Node = "" })
	route("node: ", invalid, func(m *v1.Route) { m.Node = "*" })
	route("node: there is no node", precondition, func(m *v1.Route) { m.Node = "absent" })
	route("next_hop_node: ", invalid, func(m *v1.Route) { m.NextHopNode = "a/b" })
	route("next_hop_node: there is no node", precondition, func(m *v1.Route) { m.NextHopNode = "absent" })
	route("destination_cidrs: ", invalid, func(m *v1.Route) { m.DestinationCidrs = nil })
	for _, cidr := range []string{"x", "10.0.0.1", "10.0.0.1/8", "0.0.0.0/0", "::/0", "172.16.9.0/24", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "fe80::/10", "::1/128", "::ffff:10.0.0.0/104"} {
		route("destination_cidrs: ", invalid, func(m *v1.Route) { m.DestinationCidrs = []string{cidr} })
	}
	route("destination_cidrs: 10000", invalid, func(m *v1.Route) { m.DestinationCidrs = slices.Repeat([]string{"10.0.0.0/8"}, 10000) })

	edge := func(text string, want connect.Code, change func(*v1.MeshEdge)) {
		add(v1connect.AdminPutEdgeProcedure, with(goodEdge, change), want, text)
	}
	edge("weight: -1", invalid, func(m *v1.MeshEdge) { m.Weight = -1 })
	edge("target: there is no node", precondition, func(m *v1.MeshEdge) { m.Target = "zz" })
	edge("source: there is no node", precondition, func(m *v1.MeshEdge) { m.Source = "0" })
	edge("attributes: ", invalid, func(m *v1.MeshEdge) { m.Attributes = map[string]string{"x": "true"} })
	edge("attributes: ", invalid, func(m *v1.MeshEdge) { m.Attributes = map[string]string{"EDGE_ATTRIBUTE_UNKNOWN": "true"} })
	edge("attributes: ", invalid, func(m *v1.MeshEdge) { m.Attributes = map[string]string{"EDGE_ATTRIBUTE_ICE": "yes"} })
	add(v1connect.AdminGetEdgeProcedure, &v1.MeshEdge{Source: "web-1", Target: "absent"}, connect.CodeNotFound, `"web-1"`)
	add(v1connect.MeshGetNodeProcedure, &v1.GetNodeRequest{Id: "absent"}, connect.CodeNotFound, "ListNodes")

	beside := with(goodGroup, func(m *v1.Group) { m.Name = "beside" })
	before := n.Snapshot().Version
	g := bearer(httpClient(t, true, "", nil), "admin")
	for _, r := range rows {
		s.writes.giveBack("admin") // there are more than the limit lets through
		err := callOnce(t, g, "http://"+s.public, r.procedure, r.msg)
		if connect.CodeOf(err) != r.want || !strings.Contains(err.Error(), r.text) {
			t.Errorf("%s {%.80v}: got %v, want %v with %q", r.procedure, r.msg, err, r.want, r.text)
		}
		state, ok := stateOf(r.procedure, r.msg)
		if !ok {
			continue
		}
		s.writes.giveBack("admin")
		err = callOnce(t, g, "http://"+s.public, meshgatev1connect.ObjectsChangeProcedure, &meshgatev1.ChangeRequest{
			Changes: []*meshgatev1.ObjectState{objectState(beside), state},
		})
		if connect.CodeOf(err) != r.want || !strings.Contains(err.Error(), "changes: [1]: ") || !strings.Contains(err.Error(), r.text) {
			t.Errorf("%s of Objects {%.80v}: got %v, want %v with %q", r.procedure, r.msg, err, r.want, r.text)
		}
	}
	if after := n.Snapshot().Version; after != before {
		t.Errorf("bad input made version %d of %d", after, before)
	}
}

// methodsOf lists the methods of some services.
func methodsOf(t *testing.T, services ...string) []protoreflect.MethodDescriptor {
	t.Helper()
	list := slices.DeleteFunc(everyMethod(t), func(m protoreflect.MethodDescriptor) bool {
		return !slices.Contains(services, string(m.Parent().FullName()))
	})
	if len(list) == 0 {
		t.Fatalf("no methods in %v", services)
	}
	return list
}

// Messages that no handler may see.
func TestFreshServices_RefuseBrokenMessages(t *testing.T) {
	s, n := serveState(t)
	c := bearer(httpClient(t, true, "", nil), "admin")
	before := n.Snapshot().Version
	tooBig := protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, api.MaxObjectsMessage))
	for _, m := range methodsOf(t, freshServices...) {
		call := func(raw []byte) error { return callRaw(testContext(t), c, "http://"+s.public, m, raw) }
		wantCode(t, call(tooBig), connect.CodeResourceExhausted, "larger than")
		wantCode(t, call([]byte{0x0a, 0x05, 'x'}), connect.CodeInvalidArgument, "")
		for i := range m.Input().Fields().Len() {
			f := m.Input().Fields().Get(i)
			if f.Kind() != protoreflect.StringKind {
				continue
			}
			raw := protowire.AppendString(protowire.AppendTag(nil, f.Number(), protowire.BytesType), "\xff")
			wantCode(t, call(raw), connect.CodeInvalidArgument, "UTF-8")
		}
	}
	if after := n.Snapshot().Version; after != before {
		t.Errorf("broken messages made version %d of %d", after, before)
	}
}

// freshServices are those whose calls are decided on all that was acknowledged.
var freshServices = []string{"v1.Admin", "v1.Membership", "v1.Mesh", "v1.StorageQueryService", meshgatev1connect.ObjectsName}

// Without a leader nothing is answered but reads that ask for no more than this
// gateway knows; and those ask nobody.
func TestFreshServices_WithoutALeader(t *testing.T) {
	s := serve(t, nil)
	admin := bearer(httpClient(t, true, "", nil), "admin")
	stale := withHeader(admin, api.HeaderStale, "true")
	for _, tt := range []struct {
		err  error
		want connect.Code
	}{
		{fmt.Errorf("%w: no leader", mesh.ErrUnavailable), connect.CodeUnavailable},
		{fmt.Errorf("%w: not the leader", mesh.ErrPrecondition), connect.CodeFailedPrecondition},
		{fmt.Errorf("sync: %w", context.Canceled), connect.CodeCanceled},
		{fmt.Errorf("sync: %w", context.DeadlineExceeded), connect.CodeDeadlineExceeded},
	} {
		s.node.mu.Lock()
		s.node.syncErr = tt.err
		s.node.mu.Unlock()
		for _, m := range methodsOf(t, freshServices...) {
			r, ok := s.rules[procedureOf(m)]
			if m.Name() == "SubscribePeers" {
				continue // a cluster without a leader tells what it knows
			}
			if !ok || r.fresh == known {
				t.Fatalf("%s is not fresh", procedureOf(m))
			}
			for name, c := range map[string]*http.Client{
				"plainly":           admin,
				"preferring leader": withHeader(admin, "X-Webmesh-Prefer-Leader", "true"),
				"staleness no word": withHeader(admin, api.HeaderStale, "perhaps"),
				"not stale":         withHeader(admin, api.HeaderStale, "false"),
			} {
				s.writes.giveBack("admin")
				if err := callAny(testContext(t), c, "http://"+s.public, m); connect.CodeOf(err) != tt.want {
					t.Errorf("%s %s: got %v, want %v", procedureOf(m), name, err, tt.want)
				}
			}
			if m.Name() == "Subscribe" {
				continue // it says nothing until there is something to say
			}
			s.writes.giveBack("admin")
			asked := s.node.synced()
			err := callAny(testContext(t), stale, "http://"+s.public, m)
			switch code := connect.CodeOf(err); {
			case r.fresh == always && code != tt.want:
				t.Errorf("%s, a write: got %v, want %v", procedureOf(m), err, tt.want)
			case r.fresh != always && err != nil && code != connect.CodeInvalidArgument && code != connect.CodeNotFound:
				t.Errorf("%s, stale: got %v", procedureOf(m), err)
			case r.fresh != always && s.node.synced() != asked:
				t.Errorf("%s, stale: asked the leader", procedureOf(m))
			}
		}
	}
	if n := s.node.writes(); n != 0 {
		t.Errorf("%d changes reached the node", n)
	}
}

// A change that the state does not take says why.
func TestAdmin_WritesThatFail(t *testing.T) {
	s := serve(t, nil)
	for _, tt := range []struct {
		err  error
		want connect.Code
		text string
	}{
		{fmt.Errorf("%w: %q leads", mesh.ErrPrecondition, "gw-2"), connect.CodeFailedPrecondition, "gw-2"},
		{fmt.Errorf("%w: disk full", mesh.ErrExhausted), connect.CodeResourceExhausted, "disk full"},
		{fmt.Errorf("%w: closed", mesh.ErrUnavailable), connect.CodeUnavailable, "closed"},
		{context.Canceled, connect.CodeCanceled, ""},
		{fmt.Errorf("secret cause"), connect.CodeInternal, "request_id"},
	} {
		s.node.mu.Lock()
		s.node.changeErr = tt.err
		s.node.mu.Unlock()
		for procedure, msg := range map[string]proto.Message{
			v1connect.AdminPutRoleProcedure: goodRole, v1connect.AdminDeleteRoleProcedure: goodRole,
			v1connect.AdminPutRoleBindingProcedure: goodBinding, v1connect.AdminDeleteRoleBindingProcedure: goodBinding,
			v1connect.AdminPutGroupProcedure: goodGroup, v1connect.AdminDeleteGroupProcedure: goodGroup,
			v1connect.AdminPutNetworkACLProcedure: goodACL, v1connect.AdminDeleteNetworkACLProcedure: goodACL,
			v1connect.AdminPutRouteProcedure: goodRoute, v1connect.AdminDeleteRouteProcedure: goodRoute,
			v1connect.AdminPutEdgeProcedure: goodEdge, v1connect.AdminDeleteEdgeProcedure: goodEdge,
		} {
			err := s.as(t, "admin", procedure, msg)
			wantCode(t, err, tt.want, tt.text)
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v", procedure, err)
			}
		}
	}
}

// The action that each rpc takes, and that no other one will do.
func TestAdmin_Roles(t *testing.T) {
	s, n := serveState(t)
	for _, o := range []struct {
		resource v1.RuleResource
		kind     string
		msg      proto.Message
		names    []string
	}{
		{v1.RuleResource_RESOURCE_ROLES, "Role", &v1.Role{Name: "x"}, []string{"x"}},
		{v1.RuleResource_RESOURCE_ROLE_BINDINGS, "RoleBinding", &v1.RoleBinding{Name: "x"}, []string{"x"}},
		{v1.RuleResource_RESOURCE_GROUPS, "Group", &v1.Group{Name: "x"}, []string{"x"}},
		{v1.RuleResource_RESOURCE_NETWORK_ACLS, "NetworkACL", &v1.NetworkACL{Name: "x"}, []string{"x"}},
		{v1.RuleResource_RESOURCE_ROUTES, "Route", &v1.Route{Name: "x"}, []string{"x"}},
		{v1.RuleResource_RESOURCE_EDGES, "Edge", &v1.MeshEdge{Source: "web-1", Target: "web-2"}, []string{"web-1", "web-2"}},
	} {
		for prefix, verb := range map[string]v1.RuleVerb{
			"Put": v1.RuleVerb_VERB_PUT, "Delete": v1.RuleVerb_VERB_DELETE, "Get": v1.RuleVerb_VERB_GET, "List": v1.RuleVerb_VERB_GET,
		} {
			procedure, msg, names := "/v1.Admin/"+prefix+o.kind, o.msg, o.names
			if prefix == "List" {
				procedure, msg, names = procedure+"s", &emptypb.Empty{}, nil
			}
			denied := func(why string, rules ...mesh.Rule) {
				t.Helper()
				n.grant(t, "nobody", rules...)
				if err := s.as(t, "nobody", procedure, msg); connect.CodeOf(err) != connect.CodePermissionDenied {
					t.Errorf("%s, %s: %v", procedure, why, err)
				}
			}
			other := v1.RuleVerb_VERB_PUT
			if verb == other {
				other = v1.RuleVerb_VERB_GET
			}
			denied("no rule")
			denied("another verb", allow(o.resource, other, names...))
			denied("another resource", allow(v1.RuleResource_RESOURCE_VOTES, verb, names...))
			if len(names) > 0 {
				denied("another name", allow(o.resource, verb, "y"))
				denied("no name", allow(o.resource, verb))
				denied("a wildcard", allow(o.resource, verb, "*"))
			}
			if len(names) > 1 {
				denied("one end", allow(o.resource, verb, names[0]))
				denied("the other end", allow(o.resource, verb, names[1]))
			}
			n.grant(t, "nobody", allow(o.resource, verb, names...))
			if err := s.as(t, "nobody", procedure, msg); connect.CodeOf(err) == connect.CodePermissionDenied {
				t.Errorf("%s with its grant: %v", procedure, err)
			}
			if r := s.rules[procedure]; r.writes != (prefix == "Put" || prefix == "Delete") {
				t.Errorf("%s: writes is %v", procedure, r.writes)
			}
		}
	}
}

// Who may put one role, one binding or one group gives nobody what they may not do
// themselves.
func TestAdmin_NobodyGivesWhatTheyLack(t *testing.T) {
	s, n := serveState(t)
	lead := []mesh.Rule{
		allow(v1.RuleResource_RESOURCE_ROLES, v1.RuleVerb_VERB_PUT, "of-nobody"), allow(v1.RuleResource_RESOURCE_ROLE_BINDINGS, v1.RuleVerb_VERB_PUT, "team"),
		allow(v1.RuleResource_RESOURCE_GROUPS, v1.RuleVerb_VERB_PUT, "voters"),
	}
	n.grant(t, "nobody", lead...)
	me := []*v1.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: "nobody"}}
	everything := &v1.Rule{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_ALL}}
	before := n.Snapshot().Version
	for procedure, msg := range map[string]proto.Message{
		v1connect.AdminPutRoleBindingProcedure: &v1.RoleBinding{Name: "team", Role: policy.RoleAdmin, Subjects: me},
		v1connect.AdminPutRoleProcedure:        &v1.Role{Name: "of-nobody", Rules: []*v1.Rule{everything}},
		v1connect.AdminPutGroupProcedure:       &v1.Group{Name: "voters", Subjects: append(me, &v1.Subject{Type: v1.SubjectType_SUBJECT_NODE, Name: "gw-1"})},
	} {
		err := s.as(t, "nobody", procedure, msg)
		if connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "nobody gives what they may not do themselves") {
			t.Errorf("%s: %v", procedure, err)
		}
	}
	if after := n.Snapshot().Version; after != before {
		t.Errorf("version %d became %d", before, after)
	}
	if err := s.as(t, "nobody", v1connect.AdminPutRoleBindingProcedure, &v1.RoleBinding{Name: "team", Role: "of-nobody", Subjects: me}); err != nil {
		t.Errorf("a role that he has: %v", err)
	}
}

// What others get counts by the state upon which a change is written: two changes
// that are harmless each must not meet.
func TestAdmin_GivesByWhatHoldsWhenItIsWritten(t *testing.T) {
	n := newStateNode(t)
	n.grant(t, "nobody", allow(v1.RuleResource_RESOURCE_ROLE_BINDINGS, v1.RuleVerb_VERB_PUT, "team"))
	role := func(rule mesh.Rule) {
		t.Helper()
		if _, err := n.registry.Update(t.Context(), func(tx *registry.Tx) error {
			return tx.PutRole(mesh.Role{Name: "team", Rules: []mesh.Rule{rule}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	role(allow(v1.RuleResource_RESOURCE_ROLE_BINDINGS, v1.RuleVerb_VERB_PUT, "team"))
	s := serve(t, func(c *Config) {
		c.Node = &lateNode{n, func() { role(allow(v1.RuleResource_RESOURCE_ALL, v1.RuleVerb_VERB_ALL)) }}
	})
	err := s.as(t, "nobody", v1connect.AdminPutRoleBindingProcedure,
		&v1.RoleBinding{Name: "team", Role: "team", Subjects: []*v1.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: "nobody"}}})
	wantCode(t, err, connect.CodePermissionDenied, "nobody gives what they may not do themselves")
	if slices.ContainsFunc(n.registry.Snapshot().Bindings, func(b mesh.RoleBinding) bool { return b.Name == "team" }) {
		t.Error("the binding was put")
	}
}

// What was taken from somebody is gone for the very next call, although the
// data plane does not know it yet.
func TestAdmin_RevocationCountsAtOnce(t *testing.T) {
	s, n := serveState(t)
	admin := v1connect.NewAdminClient(bearer(httpClient(t, true, "", nil), "admin"), "http://"+s.public)
	n.grant(t, "viewer", allow(v1.RuleResource_RESOURCE_EDGES, v1.RuleVerb_VERB_GET))
	n.inForce.Store(n.registry.Snapshot())
	for range 20 {
		if err := s.as(t, "viewer", v1connect.MeshListNodesProcedure, &emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.DeleteRoleBinding(testContext(t), connect.NewRequest(&v1.RoleBinding{Name: "of-viewer"})); err != nil {
			t.Fatal(err)
		}
		if err := s.as(t, "viewer", v1connect.MeshListNodesProcedure, &emptypb.Empty{}); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Fatalf("after the revocation: %v", err)
		}
		if _, err := admin.PutRoleBinding(testContext(t), connect.NewRequest(&v1.RoleBinding{
			Name: "of-viewer", Role: "of-viewer", Subjects: []*v1.Subject{{Name: "viewer", Type: v1.SubjectType_SUBJECT_USER}},
		})); err != nil {
			t.Fatal(err)
		}
	}
}
