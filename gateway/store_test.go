// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// serveStore runs a gateway that serves the state of a fakeNode.
func serveStore(t testing.TB) *served {
	t.Helper()
	return serve(t, func(c *Config) {
		n := c.Node.(*fakeNode)
		t.Cleanup(n.keys.Close)
		c.Store = n.keys
	})
}

func (s *served) stores(t testing.TB, who string) meshgatev1connect.StoreClient {
	return meshgatev1connect.NewStoreClient(bearer(httpClient(t, true, "", nil), who), "http://"+s.public, connect.WithGRPC())
}

func putOf(key, value string) *meshgatev1.ApplyRequest {
	return &meshgatev1.ApplyRequest{Batch: store.BatchToProto(store.Batch{Ops: []store.Op{{Key: key, Value: []byte(value)}}})}
}

func TestStoreRules_TakeWhatTheySay(t *testing.T) {
	read := []mesh.Action{{Resource: v1.RuleResource_RESOURCE_ALL, Verb: v1.RuleVerb_VERB_GET}}
	for procedure, want := range map[string][]mesh.Action{
		meshgatev1connect.StoreGetProcedure:   read,
		meshgatev1connect.StoreListProcedure:  read,
		meshgatev1connect.StoreWatchProcedure: read,
		meshgatev1connect.StoreSyncProcedure:  read,
		meshgatev1connect.StoreApplyProcedure: {everyAction()},
	} {
		r := newRules(false)[procedure]
		got, err := r.actions(api.Caller{ID: "x", Node: &mesh.Node{ID: "x"}}, nil)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: takes %v, want %v (%v)", procedure, got, want, err)
		}
		if applies := procedure == meshgatev1connect.StoreApplyProcedure; r.writes != applies || r.seated == applies {
			t.Errorf("%s: writes is %t, seated %t", procedure, r.writes, r.seated)
		}
	}
}

// Who may read and who may write the state as a whole.
func TestStore_Roles(t *testing.T) {
	s := serveStore(t)
	snap := testSnapshot()
	bind := func(who string, kind v1.SubjectType, rules ...mesh.Rule) {
		snap.Roles = append(snap.Roles, mesh.Role{Name: "more-" + who, Rules: rules})
		snap.Bindings = append(snap.Bindings, mesh.RoleBinding{Name: "more-" + who, Role: "more-" + who, Subjects: []mesh.Subject{{Type: kind, Name: who}}})
	}
	bind("opener", v1.SubjectType_SUBJECT_USER, allow(v1.RuleResource_RESOURCE_ALL, v1.RuleVerb_VERB_GET))
	bind("nobody", v1.SubjectType_SUBJECT_USER, allow(v1.RuleResource_RESOURCE_VOTES, v1.RuleVerb_VERB_PUT))
	bind("gw-2", v1.SubjectType_SUBJECT_NODE, allow(v1.RuleResource_RESOURCE_VOTES, v1.RuleVerb_VERB_PUT))
	s.node.set(snap)
	const from = "from " // marks a member by its mesh address
	for who, want := range map[string]struct{ read, write bool }{
		"":                 {},
		"admin":            {read: true, write: true},
		"opener":           {read: true},
		"viewer":           {}, // reads the mesh, and that is not all
		"nobody":           {}, // may be given a vote, but shows no WireGuard key
		from + "127.0.0.3": {read: true},
		from + "127.0.0.2": {},
	} {
		addr, c := s.public, httpClient(t, true, "", nil)
		if source, member := strings.CutPrefix(who, from); member {
			addr, c = s.mesh, httpClient(t, true, source, nil)
		} else {
			c = bearer(c, who)
		}
		refusal := connect.CodePermissionDenied
		if who == "" {
			refusal = connect.CodeUnauthenticated
		}
		for procedure, msg := range map[string]proto.Message{
			meshgatev1connect.StoreGetProcedure:   &meshgatev1.GetRequest{Key: "none"},
			meshgatev1connect.StoreListProcedure:  &meshgatev1.ListRequest{},
			meshgatev1connect.StoreWatchProcedure: &meshgatev1.WatchRequest{},
			meshgatev1connect.StoreSyncProcedure:  &meshgatev1.SyncRequest{},
			meshgatev1connect.StoreApplyProcedure: putOf("k", "v"),
		} {
			allowed, good := want.read, codeOK
			if procedure == meshgatev1connect.StoreApplyProcedure {
				allowed = want.write
			}
			if procedure == meshgatev1connect.StoreGetProcedure {
				good = connect.CodeNotFound
			}
			if !allowed {
				good = refusal
			}
			wantCode(t, callOnce(t, c, "http://"+addr, procedure, msg), good, "")
		}
	}
}

// A node that follows another gateway has no state to serve.
func TestStore_NodeWithoutState(t *testing.T) {
	s := serve(t, nil)
	for procedure, msg := range map[string]proto.Message{
		meshgatev1connect.StoreGetProcedure:   &meshgatev1.GetRequest{Key: "k"},
		meshgatev1connect.StoreListProcedure:  &meshgatev1.ListRequest{},
		meshgatev1connect.StoreWatchProcedure: &meshgatev1.WatchRequest{},
		meshgatev1connect.StoreSyncProcedure:  &meshgatev1.SyncRequest{},
		meshgatev1connect.StoreApplyProcedure: putOf("k", "v"),
	} {
		wantCode(t, s.as(t, "admin", procedure, msg), connect.CodeUnimplemented, "holds no state")
	}
}

func TestStore_BadInput(t *testing.T) {
	s := serveStore(t)
	const invalid = connect.CodeInvalidArgument
	long := strings.Repeat("k", store.MaxKey+1)
	batch := func(ops ...*v1.RaftOperation) *meshgatev1.ApplyRequest {
		return &meshgatev1.ApplyRequest{Batch: &v1.RaftBatch{Operations: ops}}
	}
	for _, tt := range []struct {
		procedure string
		msg       proto.Message
		want      connect.Code
		text      string
	}{
		{meshgatev1connect.StoreGetProcedure, &meshgatev1.GetRequest{}, invalid, "key: "},
		{meshgatev1connect.StoreGetProcedure, &meshgatev1.GetRequest{Key: long}, invalid, "key: "},
		{meshgatev1connect.StoreGetProcedure, &meshgatev1.GetRequest{Key: "a\x00"}, invalid, "key: "},
		{meshgatev1connect.StoreGetProcedure, &meshgatev1.GetRequest{Key: "none"}, connect.CodeNotFound, `"none"`},
		{meshgatev1connect.StoreGetProcedure, &meshgatev1.GetRequest{Key: "/meshgate/secrets/x"}, connect.CodeNotFound, "not found"},
		{meshgatev1connect.StoreGetProcedure, &meshgatev1.GetRequest{Key: "/raft//log1"}, connect.CodeNotFound, "not found"},
		{meshgatev1connect.StoreGetProcedure, &meshgatev1.GetRequest{Key: "a", AtLeast: 1 << 62}, connect.CodeUnavailable, "lags behind"},
		{meshgatev1connect.StoreListProcedure, &meshgatev1.ListRequest{Prefix: []byte(long)}, invalid, "prefix: "},
		{meshgatev1connect.StoreListProcedure, &meshgatev1.ListRequest{After: []byte(long)}, invalid, "after: "},
		{meshgatev1connect.StoreWatchProcedure, &meshgatev1.WatchRequest{Prefix: []byte(long)}, invalid, "prefix: "},
		{meshgatev1connect.StoreWatchProcedure, &meshgatev1.WatchRequest{Pulse: &durationpb.Duration{}}, invalid, "pulse: "},
		{meshgatev1connect.StoreWatchProcedure, &meshgatev1.WatchRequest{Pulse: &durationpb.Duration{Seconds: -1}}, invalid, "pulse: "},
		{meshgatev1connect.StoreWatchProcedure, &meshgatev1.WatchRequest{Pulse: &durationpb.Duration{Seconds: 61}}, invalid, "pulse: "},
		{meshgatev1connect.StoreWatchProcedure, &meshgatev1.WatchRequest{Pulse: &durationpb.Duration{Seconds: 1, Nanos: -1}}, invalid, "pulse: "},
		{meshgatev1connect.StoreApplyProcedure, &meshgatev1.ApplyRequest{}, invalid, "no operations"},
		{meshgatev1connect.StoreApplyProcedure, batch(nil), invalid, "a key is empty"},
		{meshgatev1connect.StoreApplyProcedure, putOf("a\x00", ""), invalid, "no text"},
		{meshgatev1connect.StoreApplyProcedure, putOf(long, ""), invalid, "a key has"},
		{meshgatev1connect.StoreApplyProcedure, putOf("k", strings.Repeat("v", store.MaxBatch)), invalid, "bytes"},
		{meshgatev1connect.StoreApplyProcedure, putOf("k", strings.Repeat("v", api.MaxStoreMessage)), connect.CodeResourceExhausted, "larger than"},
		{meshgatev1connect.StoreApplyProcedure, batch(&v1.RaftOperation{Key: "k", Ttl: &durationpb.Duration{Seconds: -1}}), invalid, "time to live"},
		{meshgatev1connect.StoreApplyProcedure, batch(&v1.RaftOperation{Key: "k", Ttl: &durationpb.Duration{Seconds: 1, Nanos: -1}}), invalid, "time to live"},
		{meshgatev1connect.StoreApplyProcedure, batch(&v1.RaftOperation{Key: "k", Ttl: &durationpb.Duration{Seconds: 101 * 366 * 86400}}), invalid, "time to live"},
		{meshgatev1connect.StoreApplyProcedure, batch(&v1.RaftOperation{Key: "k", Delete: true, Value: []byte("v")}), invalid, "removal"},
		{meshgatev1connect.StoreApplyProcedure, putOf("/meshgate/secrets/x", "v"), connect.CodePermissionDenied, "batch: operations: "},
		{meshgatev1connect.StoreApplyProcedure, putOf("/raft/x", "v"), connect.CodePermissionDenied, "batch: operations: "},
		{meshgatev1connect.StoreApplyProcedure, &meshgatev1.ApplyRequest{Batch: &v1.RaftBatch{
			Conditions: []*v1.RaftCondition{{Key: "/meshgate/secrets/x"}}, Operations: []*v1.RaftOperation{{Key: "k"}},
		}}, connect.CodePermissionDenied, "batch: conditions: "},
	} {
		wantCode(t, s.as(t, "admin", tt.procedure, tt.msg), tt.want, tt.text)
	}
	if entries, version, err := s.node.keys.List(t.Context(), ""); err != nil || len(entries) != 0 || version != 0 {
		t.Errorf("something was written: %v at %d, %v", entries, version, err)
	}
}

// A batch as large as the state takes, and in the largest encoding, gets through.
func TestStore_LargestBatch(t *testing.T) {
	s := serveStore(t)
	c := s.stores(t, "admin")
	b := store.Batch{}
	for range store.MaxOps {
		b.If = append(b.If, store.Condition{Key: "none", Version: 0})
		b.Ops = append(b.Ops, store.Op{Key: "key", Value: make([]byte, (store.MaxBatch-4*store.MaxOps-3*store.MaxOps)/store.MaxOps), TTL: 1<<40 + 1})
	}
	if err := b.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(testContext(t), connect.NewRequest(&meshgatev1.ApplyRequest{Batch: store.BatchToProto(b)})); err != nil {
		t.Error(err)
	}
}

// What is for nobody but the gateways is in no answer, and pages are whole
// without it.
func TestStore_HidesInternalKeys(t *testing.T) {
	s := serveStore(t)
	c := s.stores(t, "admin")
	s.node.write(t, "/a", "1", "/meshgate/secrets", "2", "/meshgate/secrets/1", "secret", "/meshgate/secrets/2", "secret",
		"/meshgate/x", "3", "/raft/1", "secret", "/z", "4")
	list := func(req *meshgatev1.ListRequest) string {
		t.Helper()
		stream, err := c.List(testContext(t), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		var keys []string
		for stream.Receive() {
			for _, e := range stream.Msg().GetEntries() {
				keys = append(keys, e.GetKey())
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		return strings.Join(keys, " ")
	}
	for _, tt := range []struct {
		req  *meshgatev1.ListRequest
		want string
	}{
		{&meshgatev1.ListRequest{}, "/a /meshgate/secrets /meshgate/x /z"},
		{&meshgatev1.ListRequest{Prefix: []byte("/meshgate/secrets/")}, ""},
		{&meshgatev1.ListRequest{Limit: 3}, "/a /meshgate/secrets /meshgate/x"},
		{&meshgatev1.ListRequest{Limit: 1, After: []byte("/meshgate/secrets")}, "/meshgate/x"},
		{&meshgatev1.ListRequest{Limit: 9, After: []byte("/meshgate/secrets/1")}, "/meshgate/x /z"},
		{&meshgatev1.ListRequest{Limit: 1, After: []byte("/meshgate/x")}, "/z"},
	} {
		if got := list(tt.req); got != tt.want {
			t.Errorf("list %v: got %q, want %q", tt.req, got, tt.want)
		}
	}
	for key, want := range map[string]string{
		"/meshgate/secrets/1": "", "/raft/1": "", // as if they were not there
		"/meshgate/secrets": "2", "/meshgate/x": "3",
	} {
		resp, err := c.Get(testContext(t), connect.NewRequest(&meshgatev1.GetRequest{Key: key}))
		if want == "" {
			wantCode(t, err, connect.CodeNotFound, "not found")
		} else if err != nil || string(resp.Msg.GetEntry().GetValue()) != want {
			t.Errorf("get %q: got %v, %v, want %q", key, resp, err, want)
		}
	}
	stream, err := c.Watch(testContext(t), connect.NewRequest(&meshgatev1.WatchRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var keys []string
	s.node.write(t, "/meshgate/secrets/3", "secret")
	s.node.write(t, "/end", "5")
	for !slices.Contains(keys, "/end") && stream.Receive() {
		for _, e := range stream.Msg().GetEvents() {
			keys = append(keys, e.GetKey())
		}
	}
	if want := []string{"/a", "/meshgate/secrets", "/meshgate/x", "/z", "/end"}; !slices.Equal(keys, want) {
		t.Errorf("watched %q, want %q (%v)", keys, want, stream.Err())
	}
}

// The other services that read keys hide them as well.
func TestStorageQuery_HidesSecrets(t *testing.T) {
	s := serveStore(t)
	n := s.node
	snap := testSnapshot()
	self := *snap.Node("gw-1")
	snap.Nodes = snap.Nodes.With(&self)
	n.set(snap)
	n.write(t, "/meshgate/secrets/1", "secret", "/meshgate/x", "3")
	answers, err := query(t, s.queries(t, "admin"), v1.QueryRequest_LIST, "/meshgate/")
	if err != nil || len(answers) != 1 || !slices.Equal(answers[0].GetValue(), []string{"/meshgate/x"}) {
		t.Errorf("listed %v, %v", answers, err)
	}
	for _, command := range []v1.QueryRequest_QueryCommand{v1.QueryRequest_GET, v1.QueryRequest_LIST, v1.QueryRequest_ITER} {
		_, err := query(t, s.queries(t, "admin"), command, "/meshgate/secrets/1")
		wantCode(t, err, connect.CodePermissionDenied, "internal")
	}
}

// A watch ends when its caller may no longer have what it asked for.
func TestStoreWatch_EndsWithTheRole(t *testing.T) {
	s := serveStore(t)
	stream, err := s.stores(t, "admin").Watch(testContext(t), connect.NewRequest(&meshgatev1.WatchRequest{Pulse: durationpb.New(minPulseOfTests)}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	snap := testSnapshot()
	snap.Version++
	snap.Bindings = snap.Bindings[1:] // the first is the admin's
	s.node.set(snap)
	for stream.Receive() {
	}
	wantCode(t, stream.Err(), connect.CodePermissionDenied, "no role")
}

const minPulseOfTests = 100_000_000 // ns
