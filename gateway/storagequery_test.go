// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/store"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

func (s *served) queries(t testing.TB, who string) v1connect.StorageQueryServiceClient {
	return v1connect.NewStorageQueryServiceClient(bearer(httpClient(t, true, "", nil), who), "http://"+s.public)
}

// query makes a query and returns all answers.
func query(t testing.TB, c v1connect.StorageQueryServiceClient, command v1.QueryRequest_QueryCommand, key string) ([]*v1.QueryResponse, error) {
	t.Helper()
	stream, err := c.Query(testContext(t), connect.NewRequest(&v1.QueryRequest{Command: command, Query: key}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var got []*v1.QueryResponse
	for stream.Receive() {
		got = append(got, stream.Msg())
	}
	return got, stream.Err()
}

// write puts raw keys.
func (n *fakeNode) write(t testing.TB, pairs ...string) {
	t.Helper()
	var ops []store.Op
	for i := 0; i < len(pairs); i += 2 {
		ops = append(ops, store.Op{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	if _, err := n.keys.Apply(t.Context(), store.Batch{Ops: ops}); err != nil {
		t.Fatal(err)
	}
}

func (n *fakeNode) remove(t testing.TB, key string) {
	t.Helper()
	if _, err := n.keys.Apply(t.Context(), store.Batch{Ops: []store.Op{{Key: key, Delete: true}}}); err != nil {
		t.Fatal(err)
	}
}

func TestQuery_AnswersAsV1Does(t *testing.T) {
	s, n := serveState(t)
	c := s.queries(t, "admin")
	n.write(t, "app/1", "one", "app/2", "", "app/3", "\xff\x00", "apple", "x", "/raft//log1", "secret", "/raftish", "y")
	type answer struct {
		key, value, err string
		data            string
	}
	for _, tt := range []struct {
		command v1.QueryRequest_QueryCommand
		key     string
		want    []answer
	}{
		{v1.QueryRequest_GET, "app/1", []answer{{"app/1", "[one]", "", ""}}},
		{v1.QueryRequest_GET, "app/2", []answer{{"app/2", "[]", "", ""}}},
		{v1.QueryRequest_GET, "app/3", []answer{{"app/3", "[]", "", "\xff\x00"}}},
		{v1.QueryRequest_GET, "app/4", []answer{{"app/4", "[]", "key not found", ""}}},
		{v1.QueryRequest_GET, "/registry/meshstate/ipv4prefix", []answer{{"/registry/meshstate/ipv4prefix", "[172.16.0.0/12]", "", ""}}},
		{v1.QueryRequest_LIST, "app/", []answer{{"app/", "[app/1 app/2 app/3]", "", ""}}},
		{v1.QueryRequest_LIST, "app", []answer{{"app", "[app/1 app/2 app/3 apple]", "", ""}}},
		{v1.QueryRequest_LIST, "none", []answer{{"none", "[]", "", ""}}},
		{v1.QueryRequest_LIST, "/raf", []answer{{"/raf", "[/raftish]", "", ""}}},
		{v1.QueryRequest_ITER, "app/", []answer{{"app/1", "[one]", "", ""}, {"app/2", "[]", "", ""}, {"app/3", "[]", "", "\xff\x00"}, {"", "[]", "EOF", ""}}},
		{v1.QueryRequest_ITER, "none", []answer{{"", "[]", "EOF", ""}}},
		{v1.QueryRequest_LIST, "/registry/roles/", []answer{{"/registry/roles/", "[/registry/roles/mesh-admin /registry/roles/voters]", "", ""}}},
	} {
		answers, err := query(t, c, tt.command, tt.key)
		var got []answer
		for _, r := range answers {
			got = append(got, answer{r.GetKey(), fmt.Sprint(r.GetValue()), r.GetError(), string(r.GetData())})
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%v %q: got %q, %v, want %q", tt.command, tt.key, got, err, tt.want)
		}
	}
	all, err := query(t, c, v1.QueryRequest_LIST, "")
	if err != nil || len(all) != 1 || slices.ContainsFunc(all[0].GetValue(), func(key string) bool { return strings.HasPrefix(key, "/raft/") }) {
		t.Errorf("everything: %v, %v", all, err)
	}
}

// More keys than a page holds, and longer than a message: each is there once.
func TestQuery_ManyKeys(t *testing.T) {
	s, n := serveState(t)
	c := s.queries(t, "admin")
	var want []string
	var pairs []string
	for i := range 700 {
		key := fmt.Sprintf("app/%05d/%s", i, strings.Repeat("k", 4000))
		want = append(want, key)
		pairs = append(pairs, key, "v")
		if len(pairs) == 200 {
			n.write(t, pairs...)
			pairs = nil
		}
	}
	n.write(t, append(pairs, "b", "x")...)
	lists, err := query(t, c, v1.QueryRequest_LIST, "app/")
	if err != nil || len(lists) < 2 {
		t.Fatalf("%d answers, %v", len(lists), err)
	}
	var got []string
	for _, l := range lists {
		if l.GetKey() != "app/" || proto.Size(l) > 4<<20 {
			t.Errorf("an answer for %q of %d bytes", l.GetKey(), proto.Size(l))
		}
		got = append(got, l.GetValue()...)
	}
	if !slices.Equal(got, want) {
		t.Errorf("LIST has %d keys, want %d", len(got), len(want))
	}
	items, err := query(t, c, v1.QueryRequest_ITER, "app/")
	if err != nil || len(items) != len(want)+1 || items[len(want)].GetError() != "EOF" {
		t.Fatalf("%d answers, %v", len(items), err)
	}
	for i, key := range want {
		if items[i].GetKey() != key {
			t.Fatalf("answer %d is %.20q, want %.20q", i, items[i].GetKey(), key)
		}
	}
}

func TestQuery_BadInput(t *testing.T) {
	s, _ := serveState(t)
	for _, tt := range []struct {
		msg  *v1.QueryRequest
		want connect.Code
		text string
	}{
		{&v1.QueryRequest{}, connect.CodeInvalidArgument, "command: "},
		{&v1.QueryRequest{Command: 9, Query: "x"}, connect.CodeInvalidArgument, "command: "},
		{&v1.QueryRequest{Command: v1.QueryRequest_GET}, connect.CodeInvalidArgument, "query is empty"},
		{&v1.QueryRequest{Command: v1.QueryRequest_GET, Query: strings.Repeat("x", 4097)}, connect.CodeInvalidArgument, "query: "},
		{&v1.QueryRequest{Command: v1.QueryRequest_ITER, Query: "a\x00"}, connect.CodeInvalidArgument, "query: "},
		{&v1.QueryRequest{Command: v1.QueryRequest_GET, Query: "/raft//log1"}, connect.CodePermissionDenied, "internal"},
		{&v1.QueryRequest{Command: v1.QueryRequest_LIST, Query: "/raft/"}, connect.CodePermissionDenied, "internal"},
		{&v1.QueryRequest{Command: v1.QueryRequest_ITER, Query: "/raft"}, connect.CodePermissionDenied, "internal"},
	} {
		wantCode(t, s.as(t, "admin", v1connect.StorageQueryServiceQueryProcedure, tt.msg), tt.want, tt.text)
	}
}

func TestPublish_BadInput(t *testing.T) {
	s, n := serveState(t)
	for _, tt := range []struct {
		msg  *v1.PublishRequest
		text string
	}{
		{&v1.PublishRequest{Value: "x"}, "key is empty"},
		{&v1.PublishRequest{Key: strings.Repeat("x", 4097)}, "key: it is longer"},
		{&v1.PublishRequest{Key: "a\x00b"}, "key: it holds a zero byte"},
		{&v1.PublishRequest{Key: "a", Value: strings.Repeat("x", 512<<10+1)}, "value: "},
		{&v1.PublishRequest{Key: "a", Ttl: &durationpb.Duration{Seconds: -1}}, "ttl: "},
		{&v1.PublishRequest{Key: "a", Ttl: &durationpb.Duration{Nanos: -1}}, "ttl: "},
		{&v1.PublishRequest{Key: "a", Ttl: &durationpb.Duration{Seconds: 1, Nanos: 1 << 30}}, "ttl: "},
		{&v1.PublishRequest{Key: "a", Ttl: &durationpb.Duration{Seconds: 101 * 366 * 86400}}, "ttl: "},
	} {
		wantCode(t, s.as(t, "admin", v1connect.StorageQueryServicePublishProcedure, tt.msg), connect.CodeInvalidArgument, tt.text)
	}
	for _, key := range []string{
		"/registry/nodes/x", "/registry", "/registry/", "/raft/x", "//registry/x", "/./registry/x", "/a/../registry/x", "registry/x",
		"/Registry/x", "%2fregistry%2fx", "/%72egistry/x", "%252Fregistry/x", "\\registry\\x", "／registry/x", "/ｒegistry/x",
		"/reg\u200bistry/x", " /registry/x", "/registry /x", "∕raft∕x", "/../raft/log", "%2fraft/%zz",
		"/meshgate/secrets/x", "/meshgate/secrets", "meshgate//SECRETS/./x", "/meshgate/x/../%73ecrets/x",
	} {
		wantCode(t, s.as(t, "admin", v1connect.StorageQueryServicePublishProcedure, &v1.PublishRequest{Key: key, Value: "x"}),
			connect.CodeInvalidArgument, "reserved")
	}
	if got := n.writes(); got != 0 {
		t.Errorf("%d keys were published", got)
	}
	for _, key := range []string{"registryx", "/raft-of-ducks", "/meshgate/x", "/meshgate/secretsx", "app/meshgate/secrets/x", "app/registry/x", "100%", "a b", "日本"} {
		wantCode(t, s.as(t, "admin", v1connect.StorageQueryServicePublishProcedure, &v1.PublishRequest{Key: key}), codeOK, "")
	}
}

func TestPublish_ErrorsOfTheState(t *testing.T) {
	s := serve(t, nil)
	for want, err := range map[connect.Code]error{
		connect.CodeResourceExhausted:  fmt.Errorf("%w: disk full", mesh.ErrExhausted),
		connect.CodeFailedPrecondition: fmt.Errorf("%w: not the leader", mesh.ErrPrecondition),
		connect.CodeUnavailable:        fmt.Errorf("%w: outcome unknown", mesh.ErrUnavailable),
		connect.CodeCanceled:           context.Canceled,
	} {
		s.node.mu.Lock()
		s.node.changeErr = err
		s.node.mu.Unlock()
		wantCode(t, s.as(t, "admin", v1connect.StorageQueryServicePublishProcedure, &v1.PublishRequest{Key: "a"}), want, err.Error())
	}
}

// Who may read and write which keys.
func TestStorageQuery_Roles(t *testing.T) {
	s, n := serveState(t)
	const get, list, iter = v1.QueryRequest_GET, v1.QueryRequest_LIST, v1.QueryRequest_ITER
	reads := func(resource v1.RuleResource, names ...string) mesh.Rule {
		return allow(resource, v1.RuleVerb_VERB_GET, names...)
	}
	all := []v1.RuleResource{
		v1.RuleResource_RESOURCE_ROLES, v1.RuleResource_RESOURCE_ROLE_BINDINGS, v1.RuleResource_RESOURCE_GROUPS,
		v1.RuleResource_RESOURCE_NETWORK_ACLS, v1.RuleResource_RESOURCE_ROUTES, v1.RuleResource_RESOURCE_EDGES, v1.RuleResource_RESOURCE_PUBSUB,
	}
	unnamed := mesh.Rule{Resources: all, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_GET}}
	everyResource := mesh.Rule{Resources: all, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_GET}, Names: []string{"", "/", "app/", "x"}}
	for _, tt := range []struct {
		rule    mesh.Rule
		command v1.QueryRequest_QueryCommand
		key     string
		ok      bool
	}{
		{reads(v1.RuleResource_RESOURCE_VOTES), get, "app/1", false},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "app/1"), get, "app/1", true},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "app/1"), get, "app/10", false},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "app/1"), list, "app/", false},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "app/"), list, "app/", true},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "app/"), iter, "app/", true},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "app/"), iter, "app", false},
		{allow(v1.RuleResource_RESOURCE_PUBSUB, v1.RuleVerb_VERB_PUT, "app/"), list, "app/", false},
		// An empty prefix names nothing, which must not mean anything.
		{everyResource, list, "", false},
		{everyResource, iter, "/", false},
		{everyResource, list, "/reg", false},
		{everyResource, list, "/registry/", false},
		{everyResource, list, "/registry/meshgate/", false},
		{everyResource, get, "/registry/meshgate/revision", false},
		{everyResource, get, "/registry/rbac-disabled", false},
		{everyResource, get, "", false},
		{everyResource, list, "/registry/ro", false}, // its names are those of single objects
		{unnamed, list, "/registry/ro", true},
		{reads(v1.RuleResource_RESOURCE_ROLES, "x"), iter, "/registry/roles/", false},
		{reads(v1.RuleResource_RESOURCE_ROLES, "x"), iter, "/registry/roles/x", false},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "app/a"), iter, "app/a", false},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "app/"), iter, "app/a", true},
		{reads(v1.RuleResource_RESOURCE_PUBSUB), iter, "app/a", false},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "ap"), iter, "ap", false},
		{reads(v1.RuleResource_RESOURCE_PUBSUB), iter, "ap", true},
		{reads(v1.RuleResource_RESOURCE_PUBSUB, "/registry/roles/x"), get, "/registry/roles/x", false},
		{reads(v1.RuleResource_RESOURCE_ROLES, "x"), get, "/registry/roles/x", true},
		{reads(v1.RuleResource_RESOURCE_ROLES, "x"), get, "/registry/roles/mesh-admin", false},
		{reads(v1.RuleResource_RESOURCE_ROLES), list, "/registry/roles/", true},
		{reads(v1.RuleResource_RESOURCE_ROLES), list, "/registry/roles", true},
		{reads(v1.RuleResource_RESOURCE_ROLES), list, "/registry/role", false}, // role bindings, too
		{reads(v1.RuleResource_RESOURCE_ROLES), iter, "/registry/ro", false},   // routes, too
		{reads(v1.RuleResource_RESOURCE_ROLE_BINDINGS), list, "/registry/rolebindings/", true},
		{reads(v1.RuleResource_RESOURCE_GROUPS), list, "/registry/groups/", true},
		{reads(v1.RuleResource_RESOURCE_NETWORK_ACLS), list, "/registry/network-acls/", true},
		{reads(v1.RuleResource_RESOURCE_ROUTES), list, "/registry/routes/", true},
		{reads(v1.RuleResource_RESOURCE_EDGES), list, "/registry/nodes/", true},
		{reads(v1.RuleResource_RESOURCE_EDGES), list, "/registry/edges/", true},
		{reads(v1.RuleResource_RESOURCE_EDGES), get, "/registry/meshstate/ipv6prefix", true},
		{reads(v1.RuleResource_RESOURCE_EDGES), list, "/registry/groups/", false},
		{reads(v1.RuleResource_RESOURCE_ALL), list, "", true},
		{reads(v1.RuleResource_RESOURCE_ALL), get, "/registry/meshgate/revision", true},
		{reads(v1.RuleResource_RESOURCE_ALL), get, "/raft//log1", false},
	} {
		n.grant(t, "nobody", tt.rule)
		_, err := query(t, s.queries(t, "nobody"), tt.command, tt.key)
		if (err == nil) != tt.ok || err != nil && connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%v: %v %q: %v", tt.rule, tt.command, tt.key, err)
		}
		if tt.command == get {
			continue
		}
		// Subscribe takes the same; it says that it was let in by its headers.
		stream, err := s.queries(t, "nobody").Subscribe(testContext(t), connect.NewRequest(&v1.SubscribeRequest{Prefix: tt.key}))
		if err == nil && !tt.ok {
			stream.Receive()
			err = stream.Err()
		} else if err == nil {
			key := tt.key + "x"
			if tt.key == "/registry/ro" || tt.key == "/registry/roles" {
				key = "/registry/roles/x"
			}
			n.write(t, key, "{}")
			if !stream.Receive() {
				err = stream.Err()
			}
			n.remove(t, key)
		}
		if (err == nil) != tt.ok || err != nil && connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%v: Subscribe %q: %v", tt.rule, tt.key, err)
		}
	}
	for _, tt := range []struct {
		rule mesh.Rule
		key  string
		ok   bool
	}{
		{allow(v1.RuleResource_RESOURCE_PUBSUB, v1.RuleVerb_VERB_PUT, "app/1"), "app/1", true},
		{allow(v1.RuleResource_RESOURCE_PUBSUB, v1.RuleVerb_VERB_PUT, "app/1"), "app/2", false},
		{allow(v1.RuleResource_RESOURCE_PUBSUB, v1.RuleVerb_VERB_PUT, "app/"), "app/1", false},
		{allow(v1.RuleResource_RESOURCE_PUBSUB, v1.RuleVerb_VERB_GET, "app/1"), "app/1", false},
		{allow(v1.RuleResource_RESOURCE_ALL, v1.RuleVerb_VERB_PUT), "app/2", true},
	} {
		n.grant(t, "nobody", tt.rule)
		_, err := s.queries(t, "nobody").Publish(testContext(t), connect.NewRequest(&v1.PublishRequest{Key: tt.key}))
		if (err == nil) != tt.ok || err != nil && connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%v: Publish %q: %v", tt.rule, tt.key, err)
		}
	}
}

// Members read nodes, edges and the mesh's networks, and nothing else.
func TestStorageQuery_Members(t *testing.T) {
	member := api.Caller{ID: "laptop", Node: &mesh.Node{ID: "laptop"}}
	for prefix, ok := range map[string]bool{
		"/registry/nodes/": true, "/registry/nodes": true, "/registry/edges/laptop/": true, "/registry/meshstate/": true,
		"/registry/n": false, "/registry/": false, "/registry/roles/": false, "app/": false, "": false,
	} {
		actions, err := api.PrefixActions(member, prefix)
		if err != nil || (len(actions) == 0) != ok {
			t.Errorf("prefix %q takes %v, %v", prefix, actions, err)
		}
		if actions, err := api.PrefixActions(api.Caller{ID: "laptop"}, prefix); err != nil || len(actions) == 0 {
			t.Errorf("a stranger with prefix %q takes %v, %v", prefix, actions, err)
		}
	}
}

func TestSubscribe_EventsFromItsHeadersOn(t *testing.T) {
	s, n := serveState(t)
	for name, opts := range map[string][]connect.ClientOption{"connect": nil, "gRPC": {connect.WithGRPC()}, "gRPC-web": {connect.WithGRPCWeb()}} {
		t.Run(name, func(t *testing.T) {
			n.write(t, "app/old", "x")
			c := v1connect.NewStorageQueryServiceClient(bearer(httpClient(t, true, "", nil), "admin"), "http://"+s.public, opts...)
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			stream, err := c.Subscribe(ctx, connect.NewRequest(&v1.SubscribeRequest{Prefix: "app/"}))
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			if len(stream.ResponseHeader()) == 0 {
				t.Fatal("no headers")
			}
			publish := func(key, value string, ttl *durationpb.Duration) {
				t.Helper()
				if _, err := c.Publish(ctx, connect.NewRequest(&v1.PublishRequest{Key: key, Value: value, Ttl: ttl})); err != nil {
					t.Fatal(err)
				}
			}
			publish("other", "x", nil)
			publish("app/1", "one", nil)
			publish("app/1", "", nil)
			publish("app/2", "short", durationpb.New(20e6))
			n.write(t, "app/3", "\xff")
			want := []string{`"app/1" "one" "" false`, `"app/1" "" "" false`, `"app/2" "short" "" false`, `"app/3" "" "\xff" false`, `"app/2" "" "" true`}
			var got []string
			for len(got) < len(want) && stream.Receive() {
				m := stream.Msg()
				got = append(got, fmt.Sprintf("%q %q %q %v", m.GetKey(), m.GetValue(), m.GetData(), m.GetDeleted()))
			}
			slices.Sort(got) // an age may end before the next write
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got %v, %v, want %v", got, stream.Err(), want)
			}
			cancel()
			if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeCanceled {
				t.Errorf("after cancel: %v", stream.Err())
			}
		})
	}
}

// A subscriber that does not read is told that it missed something; one that
// reads gets everything meanwhile.
func TestSubscribe_SlowReaderEndsAlone(t *testing.T) {
	s, n := serveState(t)
	subscribe := func(prefix string) *connect.ServerStreamForClient[v1.SubscriptionEvent] {
		c := v1connect.NewStorageQueryServiceClient(bearer(httpClient(t, true, "", nil), "admin"), "http://"+s.public, connect.WithAcceptCompression("gzip", nil, nil))
		stream, err := c.Subscribe(testContext(t), connect.NewRequest(&v1.SubscribeRequest{Prefix: prefix}))
		if err != nil {
			t.Fatal(err)
		}
		stream.ResponseHeader() // it has begun
		return stream
	}
	slow, quick := subscribe("app/"), subscribe("app/quick")
	defer slow.Close()
	defer quick.Close()
	// Buffers on the way hold a few of these, the state's history 16 MiB.
	big := strings.Repeat("v", 2<<20)
	for i := range 24 {
		n.write(t, "app/x", big, "app/quick", fmt.Sprint(i))
		if !quick.Receive() || quick.Msg().GetValue() != fmt.Sprint(i) {
			t.Fatalf("change %d: %v, %v", i, quick.Msg(), quick.Err())
		}
	}
	for slow.Receive() {
	}
	if err := slow.Err(); connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("the slow one ended with %v", err)
	}
}

// What is taken from a subscriber ends its stream, also while the data plane is
// still at the state before: what comes next is not sent.
func TestSubscribe_EndsWithItsRole(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("data plane late is %v", late), func(t *testing.T) {
			s, n := serveState(t)
			n.grant(t, "viewer", allow(v1.RuleResource_RESOURCE_PUBSUB, v1.RuleVerb_VERB_GET, "app/"))
			if late {
				n.inForce.Store(n.registry.Snapshot())
			}
			stream, err := s.queries(t, "viewer").Subscribe(testContext(t), connect.NewRequest(&v1.SubscribeRequest{Prefix: "app/"}))
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			stream.ResponseHeader()
			n.write(t, "app/1", "x")
			if !stream.Receive() {
				t.Fatal(stream.Err())
			}
			n.grant(t, "viewer", allow(v1.RuleResource_RESOURCE_PUBSUB, v1.RuleVerb_VERB_GET, "other/"))
			n.write(t, "app/2", "secret")
			if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodePermissionDenied {
				t.Errorf("got %v, %v", stream.Msg(), stream.Err())
			}
		})
	}
}
