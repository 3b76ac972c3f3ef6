// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a mesh of the nodes gw, a and b with the group staff.
type world struct {
	*Objects
	registry *registry.Registry
	t        testing.TB
}

func newWorld(t testing.TB) world {
	t.Helper()
	return worldOver(t, storetest.New())
}

func worldOver(t testing.TB, s store.Store) world {
	t.Helper()
	r := registry.New(s, nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	replicas := func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("10.64.0.5")} }
	o, err := New(r, replicas, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Bootstrap(t.Context(), registry.Bootstrap{Self: mesh.Node{ID: "gw", PublicKey: key(t), PrimaryEndpoint: "198.18.77.1"}}); err != nil {
		t.Fatal(err)
	}
	w := world{Objects: o, registry: r, t: t}
	if _, err := r.Update(t.Context(), func(tx *registry.Tx) error {
		return errors.Join(tx.PutNode(&mesh.Node{ID: "a", PublicKey: key(t)}), tx.PutNode(&mesh.Node{ID: "b", PublicKey: key(t)}))
	}); err != nil {
		t.Fatal(err)
	}
	w.must(mesh.Change{Group: &mesh.Group{Name: "staff", Subjects: []mesh.Subject{user("alice")}}})
	return w
}

func key(t testing.TB) mesh.PublicKey {
	t.Helper()
	k, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func (w world) must(c mesh.Change) *mesh.Snapshot {
	w.t.Helper()
	s, err := w.Change(w.t.Context(), c, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func user(name string) mesh.Subject {
	return mesh.Subject{Type: v1.SubjectType_SUBJECT_USER, Name: name}
}

func inGroup(name string) mesh.Subject {
	return mesh.Subject{Type: v1.SubjectType_SUBJECT_GROUP, Name: name}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func reader() *mesh.Role {
	return &mesh.Role{Name: "reader", Rules: []mesh.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_EDGES}, Verbs: []v1.RuleVerb{v1.RuleVerb_VERB_GET},
	}}}
}

// each kind once, in an order in which references are there.
func good() []mesh.Change {
	return []mesh.Change{
		{Role: reader()},
		{Binding: &mesh.RoleBinding{Name: "readers", Role: "reader", Subjects: []mesh.Subject{inGroup("staff"), user("not-here-yet")}}},
		{Group: &mesh.Group{Name: "all", Subjects: []mesh.Subject{inGroup("staff")}}},
		{ACL: &mesh.ACL{Name: "web", Priority: -1 << 31, Accept: true, DestinationNodes: []string{"a"}}},
		{Route: &mesh.Route{Name: "office", Node: "a", Destinations: prefixes("192.168.0.0/16"), NextHop: "b"}},
		{Edge: &mesh.Edge{Source: "a", Target: "b", Weight: 1<<31 - 1}},
	}
}

// count is the number of objects in s.
func count(s *mesh.Snapshot) int {
	return len(s.Roles) + len(s.Bindings) + len(s.Groups) + len(s.ACLs) + len(s.Routes) + s.Edges.Len()
}

func TestChange_PutsAndDeletesEveryKind(t *testing.T) {
	w := newWorld(t)
	before := count(w.registry.Snapshot())
	for i, c := range good() {
		s := w.must(c)
		if n := count(s); n != before+i+1 {
			t.Errorf("%v: %d objects after %d", c, n, before+i)
		}
		if again := w.must(c); again.Version != s.Version {
			t.Errorf("%v again made version %d after %d", c, again.Version, s.Version)
		}
	}
	for _, c := range removals() {
		s := w.must(c)
		if again := w.must(c); again.Version != s.Version {
			t.Errorf("%v again made version %d after %d", c, again.Version, s.Version)
		}
	}
	if n := count(w.registry.Snapshot()); n != before {
		t.Errorf("%d objects are left, %d were there before", n, before)
	}
}

func TestChange_EdgesHaveNoDirection(t *testing.T) {
	w := newWorld(t)
	w.must(mesh.Change{Edge: &mesh.Edge{Source: "b", Target: "a", Weight: 3}})
	s := w.must(mesh.Change{Edge: &mesh.Edge{Source: "a", Target: "b", Weight: 4}})
	if e, ok := s.Edges.Get("a", "b"); s.Edges.Len() != 1 || !ok || e.Weight != 4 {
		t.Errorf("edges %v", s.Edges)
	}
	if s := w.must(mesh.Change{Edge: &mesh.Edge{Source: "b", Target: "a"}, Delete: true}); s.Edges.Len() != 0 {
		t.Errorf("edges %v", s.Edges)
	}
}

// Names of nodes' own routes are theirs, and those that somebody has since before.
func TestChange_NamesOfNodesOwnRoutes(t *testing.T) {
	w := newWorld(t)
	if _, err := w.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return tx.PutRoute(mesh.Route{Name: "site-auto", Node: "a", Destinations: prefixes("10.1.0.0/16")})
	}); err != nil {
		t.Fatal(err)
	}
	w.must(mesh.Change{Route: &mesh.Route{Name: "site-auto", Node: "a", Destinations: prefixes("10.2.0.0/16")}})
	w.must(mesh.Change{Route: &mesh.Route{Name: "b-auto", Node: "b", Destinations: prefixes("10.3.0.0/16")}})
	_, err := w.Change(t.Context(), mesh.Change{Route: &mesh.Route{Name: "site-auto", Node: "b", Destinations: prefixes("10.4.0.0/16")}}, nil)
	if !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("moved to another node: %v", err)
	}
}

// What is as it is may be put again, as by a file with the whole policy.
func TestChange_ACLOfTheGatewaysAsItIs(t *testing.T) {
	w := newWorld(t)
	before := w.registry.Snapshot()
	i := slices.IndexFunc(before.ACLs, func(a mesh.ACL) bool { return a.Name == registry.ACLBootstrapNodes })
	raw, err := proto.Marshal(mesh.ACLToProto(before.ACLs[i]))
	if err != nil {
		t.Fatal(err)
	}
	var m v1.NetworkACL
	if err := proto.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	same, err := mesh.ACLFromProto(&m)
	if err != nil {
		t.Fatal(err)
	}
	if after := w.must(mesh.Change{ACL: &same}); after.Version != before.Version {
		t.Errorf("version %d became %d", before.Version, after.Version)
	}
}

// A route may move to another node, and grow.
func TestChange_RouteReplacesItself(t *testing.T) {
	w := newWorld(t)
	w.must(mesh.Change{Route: &mesh.Route{Name: "office", Node: "a", Destinations: prefixes("192.168.1.0/24")}})
	s := w.must(mesh.Change{Route: &mesh.Route{Name: "office", Node: "group:staff", Destinations: prefixes("192.168.0.0/16")}})
	if len(s.Routes) != 1 || s.Routes[0].Node != "group:staff" {
		t.Errorf("routes %v", s.Routes)
	}
}

func TestChange_Refuses(t *testing.T) {
	many := func(n int) []string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprint("n", i))
		}
		return out
	}
	subjects := func(n int) (out []mesh.Subject) {
		for _, name := range many(n) {
			out = append(out, user(name))
		}
		return out
	}
	role := func(change func(*mesh.Rule)) mesh.Change {
		r := reader()
		change(&r.Rules[0])
		return mesh.Change{Role: r}
	}
	route := func(change func(*mesh.Route)) mesh.Change {
		r := &mesh.Route{Name: "r", Node: "a", Destinations: prefixes("10.1.0.0/16")}
		change(r)
		return mesh.Change{Route: r}
	}
	to := func(list ...string) mesh.Change {
		return route(func(r *mesh.Route) { r.Destinations = prefixes(list...) })
	}
	for _, tt := range []struct {
		name string
		c    mesh.Change
		want error
		text string
	}{
		{"nothing", mesh.Change{}, mesh.ErrInvalid, "one object"},
		{"two objects", mesh.Change{Role: reader(), Edge: &mesh.Edge{Source: "a", Target: "b"}}, mesh.ErrInvalid, "one object"},

		{"role without rules", mesh.Change{Role: &mesh.Role{Name: "r"}}, mesh.ErrInvalid, "rules:"},
		{"role of many rules", mesh.Change{Role: &mesh.Role{Name: "r", Rules: make([]mesh.Rule, maxRules+1)}}, mesh.ErrInvalid, "rules: 257 are too many"},
		{"rule of many names", role(func(r *mesh.Rule) { r.Names = many(maxNames + 1) }), mesh.ErrInvalid, "rules: [0]: resource_names: 1025 are too many"},
		{"rule of many verbs", role(func(r *mesh.Rule) { r.Verbs = make([]v1.RuleVerb, maxNames+1) }), mesh.ErrInvalid, "rules: [0]: verbs"},
		{"rule of many resources", role(func(r *mesh.Rule) { r.Resources = make([]v1.RuleResource, maxNames+1) }), mesh.ErrInvalid, "rules: [0]: resources"},
		{"rule of an empty name", role(func(r *mesh.Rule) { r.Names = []string{"x", ""} }), mesh.ErrInvalid, "resource_names: [1]"},
		{"rule of a long name", role(func(r *mesh.Rule) { r.Names = []string{strings.Repeat("x", maxResourceName+1)} }), mesh.ErrInvalid, "resource_names: [0]"},
		{"rule of a wildcard", role(func(r *mesh.Rule) { r.Names = []string{"*"} }), mesh.ErrInvalid, "no wildcard"},
		{"role that looks like another", mesh.Change{Role: &mesh.Role{Name: "ops\u200b", Rules: reader().Rules}}, mesh.ErrInvalid, "name:"},
		{"ACL that turns the text", mesh.Change{ACL: &mesh.ACL{Name: "x\u202eevil", Accept: true, SourceNodes: []string{"*"}}}, mesh.ErrInvalid, "name:"},
		{"role of a bad name", mesh.Change{Role: &mesh.Role{Name: "a/b", Rules: reader().Rules}}, mesh.ErrInvalid, "name:"},
		{"admin's role", mesh.Change{Role: &mesh.Role{Name: "mesh-admin", Rules: reader().Rules}}, mesh.ErrPrecondition, "mesh-admin"},
		{"admin's role gone", mesh.Change{Role: &mesh.Role{Name: "mesh-admin"}, Delete: true}, mesh.ErrPrecondition, "mesh-admin"},

		{"binding of no role", mesh.Change{Binding: &mesh.RoleBinding{Name: "b", Role: "absent", Subjects: []mesh.Subject{user("x")}}}, mesh.ErrPrecondition, `role: there is no role "absent"`},
		{"binding of nobody", mesh.Change{Binding: &mesh.RoleBinding{Name: "b", Role: "voters"}}, mesh.ErrInvalid, "subjects:"},
		{"binding of an absent group", mesh.Change{Binding: &mesh.RoleBinding{Name: "b", Role: "voters", Subjects: []mesh.Subject{user("x"), inGroup("absent")}}}, mesh.ErrPrecondition, `subjects: [1]: there is no group "absent"`},
		{"binding of many", mesh.Change{Binding: &mesh.RoleBinding{Name: "b", Role: "voters", Subjects: subjects(maxSubjects + 1)}}, mesh.ErrInvalid, "subjects: 4097 are too many"},
		{"admin's binding", mesh.Change{Binding: &mesh.RoleBinding{Name: "mesh-admin", Role: "voters", Subjects: []mesh.Subject{user("x")}}}, mesh.ErrPrecondition, "mesh-admin"},

		{"empty group", mesh.Change{Group: &mesh.Group{Name: "g"}}, mesh.ErrInvalid, "subjects:"},
		{"group of an absent group", mesh.Change{Group: &mesh.Group{Name: "g", Subjects: []mesh.Subject{inGroup("absent")}}}, mesh.ErrPrecondition, "absent"},
		{"group of itself", mesh.Change{Group: &mesh.Group{Name: "g", Subjects: []mesh.Subject{inGroup("g")}}}, mesh.ErrInvalid, "hold itself"},
		{"group of itself, in a circle", mesh.Change{Group: &mesh.Group{Name: "staff", Subjects: []mesh.Subject{user("x"), inGroup("outer")}}}, mesh.ErrInvalid, "hold itself"},
		{"group of a node that would stand for much", mesh.Change{Group: &mesh.Group{Name: "wide", Subjects: []mesh.Subject{inGroup("staff"), {Type: v1.SubjectType_SUBJECT_NODE, Name: "b"}}}}, mesh.ErrInvalid, `subjects: node "b": `},
		{"group that an ACL names", mesh.Change{Group: &mesh.Group{Name: "outer"}, Delete: true}, mesh.ErrPrecondition, `network ACL "block"`},
		{"group in a binding", mesh.Change{Group: &mesh.Group{Name: "bound"}, Delete: true}, mesh.ErrPrecondition, `name: the role binding "bound" names this group; change or delete it first`},
		{"group in a group", mesh.Change{Group: &mesh.Group{Name: "staff"}, Delete: true}, mesh.ErrPrecondition, `name: the group "outer" names this group`},
		{"group that offers a route", mesh.Change{Group: &mesh.Group{Name: "wide"}, Delete: true}, mesh.ErrPrecondition, `name: the route "wide" names this group`},
		{"role in a binding", mesh.Change{Role: reader(), Delete: true}, mesh.ErrPrecondition, `name: the role binding "bound" names this role; change or delete it first`},
		{"voters gone", mesh.Change{Group: &mesh.Group{Name: "voters"}, Delete: true}, mesh.ErrPrecondition, "voters"},

		{"ACL of nothing", mesh.Change{ACL: &mesh.ACL{Name: "x", Accept: true}}, mesh.ErrInvalid, "source_nodes"},
		{"ACL of the gateways denies", mesh.Change{ACL: &mesh.ACL{Name: "bootstrap-nodes", SourceNodes: []string{"*"}}}, mesh.ErrPrecondition, `"bootstrap-nodes" is part of the mesh itself`},
		{"ACL of the gateways gone", mesh.Change{ACL: &mesh.ACL{Name: "bootstrap-nodes"}, Delete: true}, mesh.ErrPrecondition, "gateways reach each other by it"},
		{"ACL that denies before all others", mesh.Change{ACL: &mesh.ACL{Name: "a", Priority: 1<<31 - 1, SourceNodes: []string{"*"}}}, mesh.ErrInvalid, "priority: 2147483647 is for what accepts"},
		{"ACL of many nodes", mesh.Change{ACL: &mesh.ACL{Name: "x", SourceNodes: many(maxRefs + 1)}}, mesh.ErrInvalid, "source_nodes: 4097 are too many"},
		{"ACL to many nodes", mesh.Change{ACL: &mesh.ACL{Name: "x", DestinationNodes: many(maxRefs + 1)}}, mesh.ErrInvalid, "destination_nodes"},
		{"ACL of many networks", mesh.Change{ACL: &mesh.ACL{Name: "x", SourceCIDRs: make([]netip.Prefix, maxCIDRs+1)}}, mesh.ErrInvalid, "source_cidrs"},
		{"ACL to many networks", mesh.Change{ACL: &mesh.ACL{Name: "x", DestinationCIDRs: make([]netip.Prefix, maxCIDRs+1)}}, mesh.ErrInvalid, "destination_cidrs"},

		{"ACL of an absent group", mesh.Change{ACL: &mesh.ACL{Name: "x", SourceNodes: []string{"ghost", "group:absent"}}}, mesh.ErrPrecondition, `source_nodes: [1]: there is no group "absent"; put it first`},
		{"ACL to an absent group", mesh.Change{ACL: &mesh.ACL{Name: "x", DestinationNodes: []string{"group:absent"}}}, mesh.ErrPrecondition, `destination_nodes: [0]: there is no group "absent"`},
		{"ACL of many ports", mesh.Change{ACL: &mesh.ACL{Name: "x", Ports: make([]uint16, maxPorts+1)}}, mesh.ErrInvalid, "ports: 1025 are too many"},
		{"ACL of many protocols", mesh.Change{ACL: &mesh.ACL{Name: "x", Protocols: make([]mesh.Protocol, maxPorts+1)}}, mesh.ErrInvalid, "protocols"},

		{"route of an absent node", route(func(r *mesh.Route) { r.Node = "absent" }), mesh.ErrPrecondition, `node: there is no node "absent"`},
		{"route of an absent group", route(func(r *mesh.Route) { r.Node = "group:absent" }), mesh.ErrPrecondition, `node: there is no group "absent"`},
		{"route by an absent node", route(func(r *mesh.Route) { r.NextHop = "absent" }), mesh.ErrPrecondition, `next_hop_node: there is no node "absent"`},
		{"route by the name of another's own", route(func(r *mesh.Route) { r.Name = "b-auto" }), mesh.ErrInvalid, `name: "b-auto" is the name of what node "b" offers`},
		{"route of a group by such a name", route(func(r *mesh.Route) { r.Name, r.Node = "staff-auto", "group:staff" }), mesh.ErrInvalid, "name:"},
		{"route to nowhere", to(), mesh.ErrInvalid, "destination_cidrs: name one"},
		{"route to everything", to("0.0.0.0/0"), mesh.ErrInvalid, "all traffic"},
		{"route to all of IPv6", to("::/0"), mesh.ErrInvalid, "all traffic"},
		{"route to half of everything", to("128.0.0.0/1"), mesh.ErrInvalid, "all traffic"},
		{"route to the Internet of IPv6", to("2000::/3"), mesh.ErrInvalid, "all traffic"},
		{"route to much in parts", to(networks8(20, 17)...), mesh.ErrInvalid, "too many addresses"},
		{"route into the mesh", to("172.16.5.0/24"), mesh.ErrInvalid, "the mesh itself"},
		{"route around the mesh", to("172.0.0.0/8"), mesh.ErrInvalid, "the mesh itself"},
		{"route to loopback", to("127.0.0.0/8"), mesh.ErrInvalid, "loopback"},
		{"route to metadata", to("169.254.169.254/32"), mesh.ErrInvalid, "link-local"},
		{"route around metadata", to("169.0.0.0/8"), mesh.ErrInvalid, "169.0.0.0/8 touches 169.254.0.0/16 (link-local)"},
		{"route to IPv4 in IPv6", to("64:ff9b::/96"), mesh.ErrInvalid, "NAT64"},
		{"route to itself twice", to("10.1.0.0/16", "10.1.2.0/24"), mesh.ErrInvalid, "overlap"},
		{"route to a gateway", to("198.18.77.1/32"), mesh.ErrInvalid, `198.18.77.1/32 holds 198.18.77.1, at which node "gw"`},
		{"route around a gateway", to("198.18.0.0/16"), mesh.ErrInvalid, "into the tunnel"},
		{"route around a replica", to("10.64.0.0/10"), mesh.ErrInvalid, "10.64.0.0/10 holds 10.64.0.5"},
		{"route of somebody else", to("10.9.1.0/24"), mesh.ErrExists, `route "lab", which "b" offers`},
		{"route of somebody else by another next hop", route(func(r *mesh.Route) {
			r.Node, r.NextHop, r.Destinations = "b", "a", prefixes("10.9.1.0/24")
		}), mesh.ErrExists, `route "lab", which "b" offers`},
		{"route of somebody else as it is by another next hop", route(func(r *mesh.Route) {
			r.Node, r.NextHop, r.Destinations = "b", "a", prefixes("10.9.0.0/16")
		}), mesh.ErrExists, `route "lab", which "b" offers`},

		{"edge to an absent node", mesh.Change{Edge: &mesh.Edge{Source: "a", Target: "zz"}}, mesh.ErrPrecondition, `target: there is no node "zz"`},
		{"edge from an absent node", mesh.Change{Edge: &mesh.Edge{Source: "0", Target: "a"}}, mesh.ErrPrecondition, `source: there is no node "0"`},
		{"edge to itself", mesh.Change{Edge: &mesh.Edge{Source: "a", Target: "a"}}, mesh.ErrInvalid, "itself"},
		{"edge below zero", mesh.Change{Edge: &mesh.Edge{Source: "a", Target: "b", Weight: -1}}, mesh.ErrInvalid, "weight: -1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.must(mesh.Change{Group: &mesh.Group{Name: "outer", Subjects: []mesh.Subject{inGroup("staff")}}})
			w.must(mesh.Change{ACL: &mesh.ACL{Name: "block", SourceNodes: []string{"group:outer"}}})
			w.must(mesh.Change{Group: &mesh.Group{Name: "wide", Subjects: []mesh.Subject{user("x")}}})
			w.must(mesh.Change{Route: &mesh.Route{Name: "wide", Node: "group:wide", Destinations: prefixes(networks8(60, 16)...)}})
			w.must(mesh.Change{Group: &mesh.Group{Name: "bound", Subjects: []mesh.Subject{user("x")}}})
			w.must(mesh.Change{Role: reader()})
			w.must(mesh.Change{Binding: &mesh.RoleBinding{Name: "bound", Role: "reader", Subjects: []mesh.Subject{inGroup("bound")}}})
			w.must(mesh.Change{Route: &mesh.Route{Name: "lab", Node: "b", Destinations: prefixes("10.9.0.0/16")}})
			before := w.registry.Snapshot().Version
			_, err := w.Change(t.Context(), tt.c, nil)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
			if after := w.registry.Snapshot().Version; after != before {
				t.Errorf("a refused change made version %d", after)
			}
		})
	}
}

// refusing takes no changes.
type refusing struct {
	store.Store
	err error
}

func (r *refusing) Apply(ctx context.Context, b store.Batch) (uint64, error) {
	if r.err != nil {
		return 0, r.err
	}
	return r.Store.Apply(ctx, b)
}

func TestChange_ErrorsOfTheStore(t *testing.T) {
	s := &refusing{Store: storetest.New()}
	w := worldOver(t, s)
	for _, tt := range []struct{ err, want error }{
		{&store.NotLeaderError{Leader: "gw-2"}, mesh.ErrPrecondition},
		{store.ErrFull, mesh.ErrExhausted},
		{store.ErrClosed, mesh.ErrUnavailable},
		{fmt.Errorf("%w: %w", store.ErrUncertain, context.DeadlineExceeded), context.DeadlineExceeded},
	} {
		s.err = tt.err
		if _, err := w.Change(t.Context(), mesh.Change{Role: reader()}, nil); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), `put role "reader"`) {
			t.Errorf("%v: got %v", tt.err, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.err = nil
	if _, err := w.Change(ctx, mesh.Change{Role: reader()}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := New(nil, nil, nil); err == nil {
		t.Error("made without a registry")
	}
}

// networks8 are n networks of /8.
func networks8(from, n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("%d.0.0.0/8", from+i))
	}
	return list
}
