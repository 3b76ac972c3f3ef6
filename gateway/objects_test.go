// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// stateOf is what a call of v1.Admin that writes asks for; false for other calls.
func stateOf(procedure string, msg proto.Message) (*meshgatev1.ObjectState, bool) {
	name, ok := strings.CutPrefix(procedure, "/v1.Admin/")
	remove := strings.HasPrefix(name, "Delete")
	if !ok || !remove && !strings.HasPrefix(name, "Put") {
		return nil, false
	}
	p := objectState(msg)
	p.Absent = remove
	return p, true
}

func objectState(msg proto.Message) *meshgatev1.ObjectState {
	switch m := msg.(type) {
	case *v1.Role:
		return &meshgatev1.ObjectState{Object: &meshgatev1.ObjectState_Role{Role: m}}
	case *v1.RoleBinding:
		return &meshgatev1.ObjectState{Object: &meshgatev1.ObjectState_RoleBinding{RoleBinding: m}}
	case *v1.Group:
		return &meshgatev1.ObjectState{Object: &meshgatev1.ObjectState_Group{Group: m}}
	case *v1.NetworkACL:
		return &meshgatev1.ObjectState{Object: &meshgatev1.ObjectState_NetworkAcl{NetworkAcl: m}}
	case *v1.Route:
		return &meshgatev1.ObjectState{Object: &meshgatev1.ObjectState_Route{Route: m}}
	case *v1.MeshEdge:
		return &meshgatev1.ObjectState{Object: &meshgatev1.ObjectState_Edge{Edge: m}}
	}
	return &meshgatev1.ObjectState{}
}

func absent(p *meshgatev1.ObjectState) *meshgatev1.ObjectState {
	p = proto.Clone(p).(*meshgatev1.ObjectState)
	p.Absent = true
	return p
}

func objectStates(list ...proto.Message) []*meshgatev1.ObjectState {
	var out []*meshgatev1.ObjectState
	for _, m := range list {
		out = append(out, objectState(m))
	}
	return out
}

// change calls Objects.Change as a user.
func (s *served) change(t testing.TB, who string, m *meshgatev1.ChangeRequest) (*meshgatev1.ChangeResponse, error) {
	t.Helper()
	c := meshgatev1connect.NewObjectsClient(bearer(httpClient(t, true, "", nil), who), "http://"+s.public)
	answer, err := c.Change(testContext(t), connect.NewRequest(m))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}

// All kinds in one version, made, found as they are, and removed.
func TestObjects_ChangeEveryKindAtOnce(t *testing.T) {
	s, n := serveState(t)
	all := objectStates(goodGroup, goodRole, goodBinding, goodACL, goodRoute, goodEdge)
	var none []*meshgatev1.ObjectState
	for _, p := range slices.Backward(all) {
		none = append(none, absent(p))
	}
	before := n.Snapshot().Version
	for i, step := range []struct {
		changes, expected []*meshgatev1.ObjectState
		want              meshgatev1.Effect
		versions          uint64
	}{
		{all, none, meshgatev1.Effect_EFFECT_CREATED, 1},
		{all, all, meshgatev1.Effect_EFFECT_NONE, 1},
		{none, all, meshgatev1.Effect_EFFECT_REMOVED, 2},
	} {
		for _, dry := range []bool{true, false} {
			was := n.registry.Snapshot().Version
			answer, err := s.change(t, "admin", &meshgatev1.ChangeRequest{Changes: step.changes, Expected: step.expected, DryRun: dry})
			if err != nil {
				t.Fatal(err)
			}
			for j, e := range answer.GetEffects() {
				if e != step.want {
					t.Errorf("step %d: %v: got %v, want %v", i, step.changes[j], e, step.want)
				}
			}
			if want := before + step.versions; len(answer.GetEffects()) != len(all) || !dry && answer.GetVersion() != want || dry && answer.GetVersion() != was {
				t.Errorf("step %d: %d effects, version %d of %d", i, len(answer.GetEffects()), answer.GetVersion(), want)
			}
		}
	}
}

// Each change takes the right of its own call, whatever else the caller may do:
// without one of them nothing is changed.
func TestObjects_Roles(t *testing.T) {
	s, n := serveState(t)
	const putVerb, deleteVerb, getVerb = v1.RuleVerb_VERB_PUT, v1.RuleVerb_VERB_DELETE, v1.RuleVerb_VERB_GET
	mine := objectState(&v1.Group{Name: "mine", Subjects: goodGroup.GetSubjects()})
	own := []mesh.Rule{allow(v1.RuleResource_RESOURCE_GROUPS, putVerb, "mine"), allow(v1.RuleResource_RESOURCE_GROUPS, getVerb, "mine")}
	for _, o := range []struct {
		resource v1.RuleResource
		msg      proto.Message
		names    []string
	}{
		{v1.RuleResource_RESOURCE_ROLES, goodRole, []string{"r"}},
		{v1.RuleResource_RESOURCE_ROLE_BINDINGS, goodBinding, []string{"b"}},
		{v1.RuleResource_RESOURCE_GROUPS, goodGroup, []string{"g"}},
		{v1.RuleResource_RESOURCE_NETWORK_ACLS, goodACL, []string{"a"}},
		{v1.RuleResource_RESOURCE_ROUTES, goodRoute, []string{"t"}},
		{v1.RuleResource_RESOURCE_EDGES, goodEdge, []string{"web-1", "web-2"}},
	} {
		p := objectState(o.msg)
		for verb, m := range map[v1.RuleVerb]*meshgatev1.ChangeRequest{
			putVerb:    {Changes: []*meshgatev1.ObjectState{mine, p}},
			deleteVerb: {Changes: []*meshgatev1.ObjectState{mine, absent(p)}},
			getVerb:    {Changes: []*meshgatev1.ObjectState{mine}, Expected: []*meshgatev1.ObjectState{absent(p)}},
		} {
			m.DryRun = true
			denied := func(why string, rules ...mesh.Rule) {
				t.Helper()
				n.grant(t, "nobody", append(rules, own...)...)
				if _, err := s.change(t, "nobody", m); connect.CodeOf(err) != connect.CodePermissionDenied {
					t.Errorf("%v of %v, %s: %v", verb, o.resource, why, err)
				}
			}
			for _, other := range []v1.RuleVerb{putVerb, deleteVerb, getVerb} {
				if other != verb {
					denied("another verb", allow(o.resource, other, o.names...))
				}
			}
			denied("no rule")
			denied("another resource", allow(v1.RuleResource_RESOURCE_VOTES, verb, o.names...))
			denied("another name", allow(o.resource, verb, "y"))
			denied("no name", allow(o.resource, verb))
			denied("only its first name", allow(o.resource, verb, o.names[1:]...))
			denied("only its last name", allow(o.resource, verb, o.names[:len(o.names)-1]...))
			if verb != getVerb {
				denied("no right to read what a dry run tells", allow(o.resource, verb, o.names...))
			}
			n.grant(t, "nobody", append(own, allow(o.resource, verb, o.names...), allow(o.resource, getVerb, o.names...))...)
			if _, err := s.change(t, "nobody", m); connect.CodeOf(err) == connect.CodePermissionDenied {
				t.Errorf("%v of %v with its grant: %v", verb, o.resource, err)
			}
			n.grant(t, "nobody", allow(o.resource, verb, o.names...), allow(o.resource, getVerb, o.names...))
			if _, err := s.change(t, "nobody", m); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), `"mine"`) {
				t.Errorf("%v of %v without the other: %v", verb, o.resource, err)
			}
		}
	}
	if slices.ContainsFunc(n.registry.Snapshot().Groups, func(g mesh.Group) bool { return g.Name == "mine" }) {
		t.Error("something was changed")
	}
}

// What changes give to their caller does not count for those after them, nor who
// it says it is; and what nobody may give alone is not given by two together.
func TestObjects_NobodyGivesWhatTheyLack(t *testing.T) {
	s, n := serveState(t)
	n.grant(t, "nobody", allow(v1.RuleResource_RESOURCE_ROLE_BINDINGS, v1.RuleVerb_VERB_PUT, "team"), allow(v1.RuleResource_RESOURCE_ROLES, v1.RuleVerb_VERB_PUT, "free"))
	me := []*v1.Subject{{Name: "nobody", Type: v1.SubjectType_SUBJECT_USER}}
	everything := []*v1.Rule{{Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_ALL}}}
	plain := bearer(httpClient(t, true, "", nil), "nobody")
	before := n.registry.Snapshot().Version
	for name, c := range map[string]*http.Client{
		"itself": plain, "for the admin": withHeader(withHeader(plain, "X-Webmesh-Proxied-For", "admin"), "X-Webmesh-Proxied-From", "gw-1"),
	} {
		for what, tt := range map[string]struct {
			changes []proto.Message
			text    string
		}{
			"a binding, and what it would allow": {[]proto.Message{&v1.RoleBinding{Name: "team", Role: "mesh-admin", Subjects: me}, goodRole}, `RESOURCE_ROLES "r"`},
			"a binding to everything":            {[]proto.Message{&v1.RoleBinding{Name: "team", Role: "mesh-admin", Subjects: me}}, `by role binding "team" it would give VERB_ALL`},
			"a role of everything, and a binding": {[]proto.Message{&v1.Role{Name: "free", Rules: everything},
				&v1.RoleBinding{Name: "team", Role: "free", Subjects: me}}, `by role binding "team" it would give VERB_ALL`},
		} {
			err := callOnce(t, c, "http://"+s.public, meshgatev1connect.ObjectsChangeProcedure, &meshgatev1.ChangeRequest{Changes: objectStates(tt.changes...)})
			if connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%s, %s: got %v, want a denial with %q", name, what, err, tt.text)
			}
		}
	}
	if after := n.registry.Snapshot().Version; after != before {
		t.Errorf("version %d became %d", before, after)
	}
	if _, err := s.change(t, "nobody", &meshgatev1.ChangeRequest{Changes: objectStates(&v1.RoleBinding{Name: "team", Role: "of-nobody", Subjects: me})}); err != nil {
		t.Errorf("a role that he has: %v", err)
	}
}

// lateNode has the mesh change after a call was allowed.
type lateNode struct {
	*stateNode
	meanwhile func()
}

func (n *lateNode) Change(ctx context.Context, c mesh.Change, permit mesh.Permit) error {
	n.meanwhile()
	return n.stateNode.Change(ctx, c, permit)
}

func (n *lateNode) ChangeAll(ctx context.Context, b mesh.Batch) (mesh.Outcome, error) {
	n.meanwhile()
	return n.stateNode.ChangeAll(ctx, b)
}

// What counts are the rights of the moment at which the change is written.
func TestObjects_AreDecidedByWhatHoldsWhenTheyAreWritten(t *testing.T) {
	n := newStateNode(t)
	n.grant(t, "nobody", allow(v1.RuleResource_RESOURCE_GROUPS, v1.RuleVerb_VERB_PUT, "g"))
	s := serve(t, func(c *Config) { c.Node = &lateNode{n, func() { n.grant(t, "nobody") }} })
	_, err := s.change(t, "nobody", &meshgatev1.ChangeRequest{Changes: objectStates(goodGroup)})
	wantCode(t, err, connect.CodePermissionDenied, `"g"`)
	if currentGroup(n, "g") != nil {
		t.Error("the group was put")
	}
}

func TestObjects_BadInput(t *testing.T) {
	s, n := serveState(t)
	many := func(p *meshgatev1.ObjectState, n int) []*meshgatev1.ObjectState {
		return slices.Repeat([]*meshgatev1.ObjectState{p}, n)
	}
	edge, group := objectState(goodEdge), objectState(goodGroup)
	const invalid = connect.CodeInvalidArgument
	before := n.registry.Snapshot().Version
	for name, tt := range map[string]struct {
		m    *meshgatev1.ChangeRequest
		want connect.Code
		text string
	}{
		"nothing":                  {&meshgatev1.ChangeRequest{}, invalid, "changes: there is none"},
		"an expectation alone":     {&meshgatev1.ChangeRequest{Expected: many(edge, 1)}, invalid, "changes: there is none"},
		"no object":                {&meshgatev1.ChangeRequest{Changes: []*meshgatev1.ObjectState{edge, {}}}, invalid, "changes: [1]: object is empty"},
		"no object, absent":        {&meshgatev1.ChangeRequest{Changes: []*meshgatev1.ObjectState{edge, {Absent: true}}}, invalid, "changes: [1]: object is empty"},
		"no object expected":       {&meshgatev1.ChangeRequest{Changes: many(edge, 1), Expected: many(&meshgatev1.ObjectState{}, 1)}, invalid, "expected: [0]: object is empty"},
		"too many":                 {&meshgatev1.ChangeRequest{Changes: many(edge, mesh.MaxChanges+1)}, invalid, "changes: 4097 are too many"},
		"too many expected":        {&meshgatev1.ChangeRequest{Changes: many(edge, 1), Expected: many(edge, mesh.MaxChanges+1)}, invalid, "expected: 4097 are too many"},
		"expected without a name":  {&meshgatev1.ChangeRequest{Changes: many(edge, 1), Expected: objectStates(&v1.Group{Subjects: goodGroup.GetSubjects()})}, invalid, "expected: [0]: name: "},
		"expected absent, no name": {&meshgatev1.ChangeRequest{Changes: many(edge, 1), Expected: many(absent(objectState(&v1.Route{})), 1)}, invalid, "expected: [0]: name: "},
		"expected of a bad ACL":    {&meshgatev1.ChangeRequest{Changes: many(edge, 1), Expected: objectStates(&v1.NetworkACL{Name: "a", Ports: []uint32{0}})}, invalid, "expected: [0]: ports: "},
		"expected and not so":      {&meshgatev1.ChangeRequest{Changes: many(edge, 1), Expected: many(group, 1)}, connect.CodeAborted, `expected: [0]: group "g": it is not there; read it again`},
		"too large": {&meshgatev1.ChangeRequest{Changes: objectStates(&v1.Group{Name: "g", Subjects: []*v1.Subject{{Name: strings.Repeat("x", 5<<20), Type: v1.SubjectType_SUBJECT_USER}}})},
			connect.CodeResourceExhausted, "larger than"},
		"too many fields": {&meshgatev1.ChangeRequest{Changes: objectStates(&v1.Group{Name: "g", Subjects: slices.Repeat([]*v1.Subject{{}}, 1<<19)})},
			invalid, "fields; split it"},
	} {
		s.writes = newBuckets(writeRate, writeBurst)
		_, err := s.change(t, "admin", tt.m)
		if connect.CodeOf(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want %v with %q", name, err, tt.want, tt.text)
		}
	}
	if after := n.registry.Snapshot().Version; after != before {
		t.Errorf("bad input made version %d of %d", after, before)
	}
}

// Who changes what others change at the same time loses nothing of it.
func TestObjects_ExpectationsKeepWhatOthersChange(t *testing.T) {
	s, n := serveState(t)
	const clients = 8
	if err := s.as(t, "admin", "/v1.Admin/PutGroup", goodGroup); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for {
				g := currentGroup(n, "g")
				more := proto.Clone(g).(*v1.Group)
				more.Subjects = append(more.Subjects, &v1.Subject{Name: fmt.Sprint("u", i), Type: v1.SubjectType_SUBJECT_USER})
				_, err := s.change(t, "admin", &meshgatev1.ChangeRequest{Changes: objectStates(more), Expected: objectStates(g)})
				if connect.CodeOf(err) == connect.CodeAborted {
					continue
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
		})
	}
	wg.Wait()
	if g := currentGroup(n, "g"); len(g.GetSubjects()) != clients+1 {
		t.Errorf("the group has %v", g.GetSubjects())
	}
}

func currentGroup(n *stateNode, name string) *v1.Group {
	for _, g := range n.registry.Snapshot().Groups {
		if g.Name == name {
			return mesh.GroupToProto(g)
		}
	}
	return nil
}

// A policy of a mesh passes in a call or a few, and not more often than writes may.
func TestObjects_CountAgainstTheWriteLimit(t *testing.T) {
	s, _ := serveState(t)
	many := func(n int) *meshgatev1.ChangeRequest {
		m := &meshgatev1.ChangeRequest{}
		for i := range n {
			m.Changes = append(m.Changes, objectState(&v1.Group{Name: fmt.Sprint("g", i), Subjects: goodGroup.GetSubjects()}))
		}
		return m
	}
	for n, times := range map[int]int{1000: 3, mesh.MaxChanges: 1} {
		s.writes = newBuckets(0, writeBurst)
		for range times {
			if _, err := s.change(t, "admin", many(n)); err != nil {
				t.Fatalf("%d changes: %v", n, err)
			}
		}
	}
	_, err := s.change(t, "admin", many(mesh.MaxChanges))
	wantCode(t, err, connect.CodeResourceExhausted, "changes the mesh more than 20 times per second")
}
