// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

func TestParsePolicy_NamesLineAndField(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "the file is empty"},
		{"no YAML", "a: [", "yaml"},
		{"a word", "hello", "line 1: want a list of tests, or the keys"},
		{"unknown key", "tests: []\nacls: []", `line 2: unknown key "acls"; want nodes`},
		{"key twice", "tests: []\ntests: []", "line 2: key tests appears twice"},
		{"no list", "roles: {name: a}", "line 1: roles: want a list"},
		{"no object", "roles: [a]", "line 1: roles[0]: "},
		{"unknown field", "roles:\n- {name: a, rule: []}", `line 2: roles[0]: unknown field "rule"`},
		{"unknown verb", "roles: [{name: a, rules: [{verbs: [see], resources: [routes]}]}]", `invalid value for enum field verbs: "see"`},
		{"a name", "groups: [{name: a/b}]", "line 1: groups[0]: name: "},
		{"a subject", "groups: [{name: a, subjects: [{name: x}]}]", "groups[0]: subjects: [0]: type: "},
		{"a voter", "voters:\n- {name: x}", "line 2: voters[0]: subjects: [0]: type: "},
		{"the voters twice", "voters: [{name: x, type: node}]\ngroups: [{name: voters}]", `groups: name "voters" appears twice`},
		{"a role", "rolebindings: [{name: a}]", "rolebindings[0]: role: "},
		{"a node", "nodes: [{id: self}]", "nodes[0]: id: "},
		{"a node's address", "nodes: [{id: a, private_ipv4: 10.0.0.1}]", "nodes[0]: private_ipv4: "},
		{"a node twice", "nodes: [{id: a}, {id: a}]", `nodes[1]: id: "a" appears twice`},
		{"an ACL twice", "networkacls: [{name: a}, {name: b, priority: 9}, {name: a, priority: 5}]", `networkacls: name "a" appears twice`},
		{"a role twice", "roles: [{name: a}, {name: a}]", `roles: name "a" appears twice`},
		{"a protocol", "networkacls: [{name: a, protocols: [http]}]", "networkacls[0]: protocols: [0]: "},
		{"a CIDR", "networkacls: [{name: a, source_cidrs: [10]}]", "networkacls[0]: "},
		{"a route", "routes: [{name: a, node: b, destination_cidrs: [x]}]", "routes[0]: destination_cidrs: [0]: "},
		{"rbac", "rbac: maybe", `rbac: "maybe" is neither on nor off`},
		{"a number as key", "roles: [{1: a}]", "roles[0]: a key is no text"},
		{"a test that is none", "tests: [a]", "line 1: tests[0]: want the keys from, to, proto, expect"},
		{"unknown word in a test", "tests: [{from: a, to: b:1, port: 1, expect: deny}]", `unknown key "port"; want from, to, proto, expect`},
		{"mixed words in a test", "tests: [{as: a, to: b:1, expect: deny}]", `unknown key "to"; want as, can, expect`},
		{"no expectation", "tests: [{from: a, to: b:1}]", `expect: "" is neither allow nor deny`},
		{"no destination", "tests: [{from: a, expect: deny}]", "from, to: want who"},
		{"no port", "tests: [{from: a, to: b, expect: deny}]", `to: "b": want a port`},
		{"port 0", "tests: [{from: a, to: b:0, expect: deny}]", `to: port "0" is not in 1..65535`},
		{"port too large", "tests: [{from: a, to: b:65536, expect: deny}]", `to: port "65536"`},
		{"port of an address", "tests: [{from: a, to: 10.0.0.1:0, expect: deny}]", "want a port"},
		{"port of ICMP", "tests: [{from: a, to: b:1, proto: icmp, expect: deny}]", "icmp has no ports"},
		{"protocol", "tests: [{from: a, to: b:1, proto: http, expect: deny}]", `proto: "http" is no protocol`},
		{"any protocol", "tests: [{from: a, to: b:1, proto: '*', expect: deny}]", `proto: "*" is no protocol`},
		{"nobody", "tests: [{can: put routes, expect: deny}]", "as: want the name"},
		{"no resource", "tests: [{as: a, can: put, expect: deny}]", "want a verb and a resource"},
		{"verb", "tests: [{as: a, can: read routes, expect: deny}]", `can: verb "read"`},
		{"verb unknown", "tests: [{as: a, can: unknown routes, expect: deny}]", `can: verb "unknown"`},
		{"resource", "tests: [{as: a, can: put things, expect: deny}]", `can: resource "things"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parsePolicy([]byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error = %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestParsePolicy_ReadsWordsAndNames(t *testing.T) {
	file, err := parsePolicy([]byte(`
rbac: off
roles:
  - name: a
    rules:
      - {verbs: [Get, VERB_PUT], resources: [network-acls, rolebindings, RESOURCE_EDGES], resourceNames: [x]}
      - {verbs: ["*"], resources: ["*"]}
groups: [{name: g, subjects: [{name: "*", type: all}, {name: n, type: NODE}]}]
networkacls:
  - {name: low, action: accept}
  - {name: high, priority: 1, action: ACTION_DENY}
tests:
`))
	if err != nil {
		t.Fatal(err)
	}
	s := file.snapshot
	if !s.RBACDisabled || len(file.tests) != 0 {
		t.Errorf("rbac and tests: %+v", file)
	}
	rules := s.Roles[0].Rules
	if len(rules[0].Verbs) != 2 || rules[0].Resources[0] != v1.RuleResource_RESOURCE_NETWORK_ACLS ||
		rules[0].Resources[1] != v1.RuleResource_RESOURCE_ROLE_BINDINGS || rules[1].Resources[0] != v1.RuleResource_RESOURCE_ALL {
		t.Errorf("rules: %+v", rules)
	}
	if s.Groups[0].Subjects[0].Type != v1.SubjectType_SUBJECT_ALL || s.Groups[0].Subjects[1].Type != v1.SubjectType_SUBJECT_NODE {
		t.Errorf("groups: %+v", s.Groups)
	}
	if s.ACLs[0].Name != "high" || s.ACLs[0].Accept || !s.ACLs[1].Accept {
		t.Errorf("ACLs: %+v", s.ACLs)
	}
}

// What docs/policy.md shows must be readable.
func TestPolicyDoc_ExamplesAreRead(t *testing.T) {
	doc, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(doc), "```yaml\n")[1:]
	if len(blocks) != 2 {
		t.Fatalf("%d examples, want 2", len(blocks))
	}
	objects, _, _ := strings.Cut(blocks[0], "```")
	tests, _, _ := strings.Cut(blocks[1], "```")
	file, err := parsePolicy([]byte(objects + tests))
	if err != nil || len(file.tests) != 5 || len(file.snapshot.ACLs) != 3 {
		t.Fatalf("%+v, %v", file, err)
	}
	c := newChecker(file.snapshot)
	for i, want := range []string{`accepted by acl "web" (priority 10)`, `denied by acl "no-ssh" (priority 100)`} {
		if o := c.check(file.tests[i]); !o.OK || o.Why != want {
			t.Errorf("%+v, want %s", o, want)
		}
	}
}

// checked is the outcome of one test of a policy.
func checked(t *testing.T, objects, test string) outcome {
	t.Helper()
	file, err := parsePolicy([]byte(objects + "\ntests: [" + test + "]"))
	if err != nil {
		t.Fatal(err)
	}
	if file.snapshot == nil {
		file.snapshot = &mesh.Snapshot{}
	}
	return newChecker(file.snapshot).check(file.tests[0])
}

func TestChecker_Traffic(t *testing.T) {
	const nodes = `
nodes:
  - {id: a, private_ipv4: 172.16.0.1/32, private_ipv6: "fd00:1:2:1::/112"}
  - {id: b, private_ipv4: 172.16.0.2/32, private_ipv6: "fd00:1:2:2::/112"}
  - {id: six, private_ipv6: "fd00:1:2:6::/112"}
  - {id: four, private_ipv4: 172.16.0.4/32}
routes: [{name: lab, node: b, destination_cidrs: [10.0.0.0/8]}]
`
	const lab = nodes + `networkacls: [{name: lab, action: accept, source_nodes: [a, alice], destination_cidrs: [10.1.0.0/16]}]`
	const v4 = nodes + `networkacls: [{name: v4, action: accept, destination_cidrs: [0.0.0.0/0]}]`
	const oneWay = nodes + `networkacls: [{name: one, priority: 3, action: accept, source_nodes: [a], destination_nodes: [b]}]`
	const ping = nodes + `networkacls: [{name: ping, action: accept, protocols: [icmp]}]`
	for _, c := range []struct{ name, objects, test, got, why string }{
		{"no policy", "", `{from: a, to: b:1, expect: deny}`, "deny", "no ACL accepts"},
		{"a routed address", lab, `{from: alice, to: 10.1.2.3:80, expect: deny}`, "allow", `accepted by acl "lab" (priority 0)`},
		{"another routed address", lab, `{from: alice, to: 10.2.2.3:80, expect: deny}`, "deny", "no ACL accepts"},
		{"an address of nobody", lab, `{from: alice, to: 192.0.2.1:80, expect: deny}`, "deny", "to: no node has or routes 192.0.2.1"},
		{"a node that is not there", lab, `{from: alice, to: c:80, expect: deny}`, "deny", `to: no node "c" in the mesh`},
		{"one IP version only", v4, `{from: alice, to: b:80, expect: allow}`, "mixed", `accepted by acl "v4" (priority 0); but at fd00:1:2:2:: no ACL accepts`},
		{"one IP version only, chosen", v4, `{from: alice, to: 172.16.0.2:80, expect: allow}`, "allow", `accepted by acl "v4" (priority 0)`},
		{"one that has no other", v4, `{from: four, to: b:80, expect: allow}`, "allow", `accepted by acl "v4" (priority 0)`},
		{"no IP version in common", v4, `{from: four, to: six:80, expect: allow}`, "deny", "four and six have no addresses of the same IP version"},
		{"packets of a node the other way", oneWay, `{from: b, to: a:80, expect: deny}`, "allow", `accepted by acl "one" (priority 3)`},
		{"a user is not a node", oneWay, `{from: alice, to: a:80, expect: deny}`, "deny", "no ACL accepts"},
		{"ping over both IP versions", ping, `{from: a, to: b, proto: icmp, expect: allow}`, "allow", `accepted by acl "ping" (priority 0)`},
		{"from an address", oneWay, `{from: 172.16.0.1, to: b:80, expect: allow}`, "allow", `accepted by acl "one" (priority 3)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := checked(t, c.objects, c.test)
			if got.Got != c.got || got.Why != c.why || got.OK != (got.Got == got.Expect) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// fakeMesh answers for a mesh whose admin is root and in which devs reach web.
type fakeMesh struct {
	v1connect.UnimplementedAdminHandler
	v1connect.UnimplementedMeshHandler
	v1connect.UnimplementedStorageQueryServiceHandler
	rbacOff bool
	denied  bool
}

func (f *fakeMesh) ListNodes(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[v1.NodeList], error) {
	return connect.NewResponse(&v1.NodeList{Nodes: []*v1.MeshNode{{Id: "web", PrivateIpv4: "172.16.0.2/32"}}}), nil
}

func (f *fakeMesh) ListGroups(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[v1.Groups], error) {
	return connect.NewResponse(&v1.Groups{Items: []*v1.Group{{Name: "devs", Subjects: []*v1.Subject{{Name: "alice", Type: v1.SubjectType_SUBJECT_USER}}}}}), nil
}

func (f *fakeMesh) ListRoles(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[v1.Roles], error) {
	if f.denied {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("no role grants it"))
	}
	return connect.NewResponse(&v1.Roles{Items: []*v1.Role{{Name: "mesh-admin", Rules: []*v1.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_ALL},
	}}}}}), nil
}

func (f *fakeMesh) ListRoleBindings(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[v1.RoleBindings], error) {
	return connect.NewResponse(&v1.RoleBindings{Items: []*v1.RoleBinding{{
		Name: "mesh-admin", Role: "mesh-admin", Subjects: []*v1.Subject{{Name: "root", Type: v1.SubjectType_SUBJECT_USER}},
	}}}), nil
}

func (f *fakeMesh) ListNetworkACLs(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[v1.NetworkACLs], error) {
	return connect.NewResponse(&v1.NetworkACLs{Items: []*v1.NetworkACL{
		{Name: "low", Priority: -1, Action: v1.ACLAction_ACTION_DENY},
		{Name: "devs", Action: v1.ACLAction_ACTION_ACCEPT, SourceNodes: []string{"group:devs"}, Protocols: []string{"tcp"}, Ports: []uint32{443}},
	}}), nil
}

func (f *fakeMesh) ListRoutes(context.Context, *connect.Request[emptypb.Empty]) (*connect.Response[v1.Routes], error) {
	return connect.NewResponse(&v1.Routes{}), nil
}

func (f *fakeMesh) Query(_ context.Context, req *connect.Request[v1.QueryRequest], s *connect.ServerStream[v1.QueryResponse]) error {
	if req.Msg.GetCommand() != v1.QueryRequest_GET || req.Msg.GetQuery() != "/registry/rbac-disabled" {
		return connect.NewError(connect.CodeInvalidArgument, nil)
	}
	if !f.rbacOff {
		return s.Send(&v1.QueryResponse{Key: req.Msg.GetQuery(), Error: "key not found"})
	}
	return s.Send(&v1.QueryResponse{Key: req.Msg.GetQuery(), Value: []string{"true"}})
}

// serve runs f and returns its URL.
func (f *fakeMesh) serve(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewAdminHandler(f))
	mux.Handle(v1connect.NewMeshHandler(f))
	mux.Handle(v1connect.NewStorageQueryServiceHandler(f))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

func TestPolicyTest_ReadsALiveMesh(t *testing.T) {
	const tests = `[
{"from": "alice", "to": "web:443", "expect": "allow"},
{"from": "alice", "to": "web:22", "expect": "deny"},
{"as": "root", "can": "delete edges", "expect": "allow"},
{"as": "alice", "can": "put edges/web", "expect": "%s"}]`
	for _, c := range []struct {
		name, expect string
		mesh         fakeMesh
		code         int
		out          string
	}{
		{"as expected", "deny", fakeMesh{}, exitOK, `denied by acl "low" (priority -1)`},
		{"RBAC off", "deny", fakeMesh{rbacOff: true}, exitFailed, "RBAC is switched off"},
		{"RBAC off, as expected", "allow", fakeMesh{rbacOff: true}, exitOK, "RBAC is switched off"},
		{"not allowed to look", "deny", fakeMesh{denied: true}, exitFailed, "read roles"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := t.TempDir() + "/tests.json"
			if err := os.WriteFile(file, []byte(fmt.Sprintf(tests, c.expect)), 0o600); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), []string{"policy", "test", file, "--server", c.mesh.serve(t), "--token", "t"}, &stdout, &stderr)
			if code != c.code || !strings.Contains(stdout.String()+stderr.String(), c.out) {
				t.Errorf("exit code %d\n%s%s", code, &stdout, &stderr)
			}
		})
	}
}

// A name that is mistyped does nothing, which would be what is expected for ever.
func TestPolicyTest_RefusesUnknownNamesOfALiveMesh(t *testing.T) {
	for _, tt := range []struct {
		test, out string
		code      int
	}{
		{`{from: alicce, to: "web:22", expect: deny}`, `line 1: from: this mesh has no node "alicce"`, exitUsage},
		{`{from: alice, to: "wep:22", expect: deny}`, `line 1: to: this mesh has no node "wep"`, exitUsage},
		{`{as: alicce, can: put edges/web, expect: deny}`, `line 1: as: this mesh has no node "alicce"`, exitUsage},
		{`{from: "user:alicce", to: "web:22", expect: deny}`, "user:alicce to web:22", exitOK},
		{`{as: "user:alicce", can: put edges/web, expect: deny}`, "user:alicce can put edges/web", exitOK},
		{`{from: web, to: "web:22", expect: deny}`, "web to web:22", exitOK},
		{`{from: 10.99.0.1, to: "10.99.0.2:22", expect: deny}`, "no node has or routes", exitOK},
	} {
		file := t.TempDir() + "/tests.yaml"
		if err := os.WriteFile(file, []byte("- "+tt.test), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		live := &fakeMesh{}
		code := run(t.Context(), []string{"policy", "test", file, "--server", live.serve(t), "--token", "t"}, &stdout, &stderr)
		if code != tt.code || !strings.Contains(stdout.String()+stderr.String(), tt.out) {
			t.Errorf("%s: exit code %d\n%s%s", tt.test, code, &stdout, &stderr)
		}
	}
}

// FuzzParsePolicy checks that no file panics the parser, nor the checker.
func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte("- {from: a, to: b:1, expect: deny}"))
	f.Add([]byte("networkacls: [{name: a, action: accept, ports: [1], protocols: [tcp]}]\ntests: [{from: a, to: b:1, expect: allow}]"))
	f.Add([]byte("nodes: [{id: a, private_ipv4: 10.0.0.1/32}]\ngroups: [&g {name: g, subjects: [{type: all, name: '*'}]}]\nroles: []"))
	f.Add([]byte("roles: [{name: r, rules: [{verbs: ['*'], resources: [routes]}]}]\nrolebindings: [{name: b, role: r}]\nrbac: on"))
	f.Add([]byte("routes: [{name: r, node: 'group:g', destination_cidrs: [10.0.0.0/8]}]\ntests: [{as: a, can: put routes/r, expect: deny}]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := parsePolicy(raw)
		if err != nil {
			return
		}
		s := file.snapshot
		if s == nil {
			s = &mesh.Snapshot{}
		}
		c := newChecker(s)
		for _, e := range file.tests {
			if o := c.check(e); o.Why == "" || o.Got == "" {
				t.Fatalf("%+v has no reason", o)
			}
		}
	})
}
