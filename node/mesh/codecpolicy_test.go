// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func TestRoute_RoundTrips(t *testing.T) {
	for _, r := range []mesh.Route{
		{Name: "node-a-auto", Node: "node-a", Destinations: prefixes("10.0.0.0/8", "2001:db8::/32")},
		{Name: "exit", Node: "group:exits", NextHop: "relay", Destinations: prefixes("0.0.0.0/0")},
		{Name: "empty", Node: "node-a"},
	} {
		got, err := mesh.RouteFromProto(mesh.RouteToProto(r))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, got, netipValues); diff != "" {
			t.Error(diff)
		}
	}
}

func TestRouteFromProto_MasksDestinations(t *testing.T) {
	r, err := mesh.RouteFromProto(&v1.Route{Name: "r", Node: "a", DestinationCidrs: []string{"10.1.2.3/8"}})
	if err != nil || r.Destinations[0] != netip.MustParsePrefix("10.0.0.0/8") {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestACL_RoundTrips(t *testing.T) {
	every := prefixes("0.0.0.0/0", "::/0")
	for _, a := range []mesh.ACL{
		{Name: "deny-all", Priority: -1 << 31},
		{
			Name: "full", Priority: 1<<31 - 1, Accept: true,
			SourceNodes: []string{"*"}, DestinationNodes: []string{"group:ops", "node-a", "alice@example.com"},
			SourceCIDRs: every, DestinationCIDRs: prefixes("10.0.0.0/8", "fd00::/8"),
			Protocols: []mesh.Protocol{mesh.ProtocolTCP, mesh.ProtocolSCTP}, Ports: []uint16{1, 443, 65535},
		},
		{Name: "ping", Protocols: []mesh.Protocol{mesh.ProtocolICMP, mesh.ProtocolICMPv6}},
		{Name: "numbers", Protocols: []mesh.Protocol{mesh.ProtocolICMP, 47, 255}},
	} {
		got, err := mesh.ACLFromProto(mesh.ACLToProto(a))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, got, netipValues); diff != "" {
			t.Error(diff)
		}
	}
}

func TestACLFromProto_ReadsCIDRs(t *testing.T) {
	a, err := mesh.ACLFromProto(&v1.NetworkACL{
		Name: "a", Action: v1.ACLAction_ACTION_ACCEPT,
		SourceCidrs:      []string{"10.0.0.0/8", "*"},
		DestinationCidrs: []string{"10.1.2.3/8", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := mesh.ACL{
		Name: "a", Accept: true,
		SourceCIDRs:      prefixes("0.0.0.0/0", "::/0"),
		DestinationCIDRs: prefixes("10.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128", "192.0.2.2/32"),
	}
	if diff := cmp.Diff(want, a, netipValues); diff != "" {
		t.Error(diff)
	}
	if p := mesh.ACLToProto(a); len(p.GetSourceCidrs()) != 1 || p.GetSourceCidrs()[0] != "*" {
		t.Errorf("every address is written as %q", p.GetSourceCidrs())
	}
}

func TestACLFromProto_ReadsProtocolsAndPorts(t *testing.T) {
	for _, c := range []struct {
		protocols []string
		ports     []uint32
		want      mesh.ACL
	}{
		{[]string{"UDP", "6", "tcp"}, []uint32{443, 80, 443}, mesh.ACL{Protocols: []mesh.Protocol{6, 17}, Ports: []uint16{80, 443}}},
		{[]string{"Icmp"}, nil, mesh.ACL{Protocols: []mesh.Protocol{1, 58}}},
		{[]string{"icmpv4", "gre"}, nil, mesh.ACL{Protocols: []mesh.Protocol{1, 47}}},
		{[]string{"ipv6-icmp"}, nil, mesh.ACL{Protocols: []mesh.Protocol{58}}},
		{[]string{"tcp", "*"}, nil, mesh.ACL{}},
		{nil, []uint32{53}, mesh.ACL{Ports: []uint16{53}}},
	} {
		c.want.Name = "a"
		got, err := mesh.ACLFromProto(&v1.NetworkACL{Name: "a", Protocols: c.protocols, Ports: c.ports})
		if err != nil {
			t.Errorf("%v %v: %v", c.protocols, c.ports, err)
		} else if diff := cmp.Diff(c.want, got, netipValues); diff != "" {
			t.Errorf("%v %v: %s", c.protocols, c.ports, diff)
		}
	}
}

func TestACLFromProto_OnlyAcceptAccepts(t *testing.T) {
	for _, action := range []v1.ACLAction{v1.ACLAction_ACTION_UNKNOWN, v1.ACLAction_ACTION_DENY, 3, -1} {
		if a, err := mesh.ACLFromProto(&v1.NetworkACL{Name: "a", Action: action}); err != nil || a.Accept {
			t.Errorf("action %d: %+v, %v", action, a, err)
		}
	}
}

func TestRBAC_RoundTrips(t *testing.T) {
	role := mesh.Role{Name: "r", Rules: []mesh.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_DATA_CHANNELS, v1.RuleResource_RESOURCE_EDGES},
		Names:     []string{"node-a"},
		Verbs:     []v1.RuleVerb{v1.RuleVerb_VERB_PUT},
	}}}
	if got, err := mesh.RoleFromProto(mesh.RoleToProto(role)); err != nil || !cmp.Equal(role, got) {
		t.Errorf("role: %+v, %v", got, err)
	}
	subjects := []mesh.Subject{
		{Type: v1.SubjectType_SUBJECT_NODE, Name: "node-a"},
		{Type: v1.SubjectType_SUBJECT_GROUP, Name: "ops"},
		{Type: v1.SubjectType_SUBJECT_ALL, Name: "*"},
	}
	binding := mesh.RoleBinding{Name: "b", Role: "r", Subjects: subjects}
	if got, err := mesh.RoleBindingFromProto(mesh.RoleBindingToProto(binding)); err != nil || !cmp.Equal(binding, got) {
		t.Errorf("binding: %+v, %v", got, err)
	}
	group := mesh.Group{Name: "g", Subjects: subjects}
	if got, err := mesh.GroupFromProto(mesh.GroupToProto(group)); err != nil || !cmp.Equal(group, got) {
		t.Errorf("group: %+v, %v", got, err)
	}
}

func TestRoleFromProto_CollapsesAll(t *testing.T) {
	role, err := mesh.RoleFromProto(&v1.Role{Name: "r", Rules: []*v1.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_EDGES, v1.RuleResource_RESOURCE_ALL},
		Verbs:     []v1.RuleVerb{v1.RuleVerb_VERB_ALL, v1.RuleVerb_VERB_GET},
	}}})
	want := mesh.Role{Name: "r", Rules: []mesh.Rule{{
		Resources: []v1.RuleResource{v1.RuleResource_RESOURCE_ALL},
		Verbs:     []v1.RuleVerb{v1.RuleVerb_VERB_ALL},
	}}}
	if err != nil || !cmp.Equal(want, role) {
		t.Errorf("got %+v, %v", role, err)
	}
}

func TestPolicyDecoders_NameTheBadField(t *testing.T) {
	edges, put := []v1.RuleResource{v1.RuleResource_RESOURCE_EDGES}, []v1.RuleVerb{v1.RuleVerb_VERB_PUT}
	bad := []*v1.Subject{{Name: "a", Type: v1.SubjectType_SUBJECT_NODE}, {Name: "a"}}
	unnamed := []*v1.Subject{{Type: v1.SubjectType_SUBJECT_USER}}
	anyGroup := []*v1.Subject{{Name: "*", Type: v1.SubjectType_SUBJECT_GROUP}}
	rules := func(r *v1.Rule) *v1.Role { return &v1.Role{Name: "r", Rules: []*v1.Rule{r}} }
	cases := []struct {
		field string
		in    proto.Message
	}{
		{"name", &v1.Route{Node: "a"}},
		{"node", &v1.Route{Name: "r"}},
		{"node", &v1.Route{Name: "r", Node: "group:"}},
		{"node", &v1.Route{Name: "r", Node: "*"}},
		{"destination_cidrs: [0]", &v1.Route{Name: "r", Node: "a", DestinationCidrs: []string{"10.0.0.1"}}},
		{"next_hop_node", &v1.Route{Name: "r", Node: "a", NextHopNode: "a:b"}},
		{"name", &v1.NetworkACL{Name: "a/b"}},
		{"source_nodes: [1]", &v1.NetworkACL{Name: "a", SourceNodes: []string{"*", ""}}},
		{"destination_nodes: [0]", &v1.NetworkACL{Name: "a", DestinationNodes: []string{"group:a:b"}}},
		{"source_cidrs: [0]", &v1.NetworkACL{Name: "a", SourceCidrs: []string{"10.0.0.0/33"}}},
		{"destination_cidrs: [1]", &v1.NetworkACL{Name: "a", DestinationCidrs: []string{"*", "x"}}},
		{"protocols: [1]", &v1.NetworkACL{Name: "a", Protocols: []string{"tcp", "http"}}},
		{"protocols: [0]", &v1.NetworkACL{Name: "a", Protocols: []string{"0"}}},
		{"protocols: [0]", &v1.NetworkACL{Name: "a", Protocols: []string{"256"}}},
		{"protocols: [0]", &v1.NetworkACL{Name: "a", Protocols: []string{"", "*"}}},
		{"ports: [1]", &v1.NetworkACL{Name: "a", Ports: []uint32{80, 0}}},
		{"ports: [0]", &v1.NetworkACL{Name: "a", Ports: []uint32{65536}}},
		{"ports", &v1.NetworkACL{Name: "a", Protocols: []string{"tcp", "icmp"}, Ports: []uint32{80}}},
		{"name", &v1.Role{}},
		{"rules: [0]: resources", rules(&v1.Rule{Verbs: put})},
		{"rules: [0]: resources", rules(&v1.Rule{Verbs: put, Resources: []v1.RuleResource{0}})},
		{"rules: [0]: resources", rules(&v1.Rule{Verbs: put, Resources: []v1.RuleResource{77}})},
		{"rules: [0]: verbs", rules(&v1.Rule{Resources: edges})},
		{"rules: [0]: verbs", rules(&v1.Rule{Resources: edges, Verbs: []v1.RuleVerb{0, v1.RuleVerb_VERB_ALL}})},
		{"name", &v1.RoleBinding{Role: "r"}},
		{"role", &v1.RoleBinding{Name: "b"}},
		{"subjects: [1]: type", &v1.RoleBinding{Name: "b", Role: "r", Subjects: bad}},
		{"name", &v1.Group{}},
		{"subjects: [0]: name", &v1.Group{Name: "g", Subjects: unnamed}},
		{"subjects: [0]: name", &v1.Group{Name: "g", Subjects: anyGroup}},
	}
	for _, c := range cases {
		var err error
		switch p := c.in.(type) {
		case *v1.Route:
			_, err = mesh.RouteFromProto(p)
		case *v1.NetworkACL:
			_, err = mesh.ACLFromProto(p)
		case *v1.Role:
			_, err = mesh.RoleFromProto(p)
		case *v1.RoleBinding:
			_, err = mesh.RoleBindingFromProto(p)
		case *v1.Group:
			_, err = mesh.GroupFromProto(p)
		}
		if !errors.Is(err, mesh.ErrInvalid) || !strings.HasPrefix(err.Error(), c.field+":") {
			t.Errorf("%T %v: error %v, want one for %s", c.in, c.in, err, c.field)
		}
	}
}

// FuzzPolicyFromProto reads the same bytes as each policy object; what a
// decoder accepts must survive the way back.
func FuzzPolicyFromProto(f *testing.F) {
	for _, p := range []proto.Message{
		&v1.Route{Name: "r", Node: "group:g", DestinationCidrs: []string{"10.0.0.0/8"}, NextHopNode: "b"},
		&v1.NetworkACL{Name: "a", Priority: -1, Action: 1, SourceNodes: []string{"*"}, SourceCidrs: []string{"*", "::1"}, Protocols: []string{"tcp", "17"}, Ports: []uint32{53}},
		&v1.MeshEdge{Source: "a", Target: "b", Weight: 1, Attributes: map[string]string{"k": "v"}},
		&v1.Group{Name: "g", Subjects: []*v1.Subject{{Name: "*", Type: v1.SubjectType_SUBJECT_ALL}}},
		&v1.RoleBinding{Name: "b", Role: "r", Subjects: []*v1.Subject{{Name: "n", Type: v1.SubjectType_SUBJECT_NODE}}},
		&v1.Role{Name: "r", Rules: []*v1.Rule{{Resources: []v1.RuleResource{999}, Verbs: []v1.RuleVerb{1}}}},
	} {
		raw, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		checkRoundTrip(t, raw, new(v1.Route), mesh.RouteFromProto, mesh.RouteToProto)
		checkRoundTrip(t, raw, new(v1.NetworkACL), mesh.ACLFromProto, mesh.ACLToProto)
		checkRoundTrip(t, raw, new(v1.MeshEdge), mesh.EdgeFromProto, mesh.EdgeToProto)
		checkRoundTrip(t, raw, new(v1.Group), mesh.GroupFromProto, mesh.GroupToProto)
		checkRoundTrip(t, raw, new(v1.RoleBinding), mesh.RoleBindingFromProto, mesh.RoleBindingToProto)
		checkRoundTrip(t, raw, new(v1.Role), mesh.RoleFromProto, mesh.RoleToProto)
	})
}

func checkRoundTrip[P proto.Message, V any](t *testing.T, raw []byte, p P, from func(P) (V, error), to func(V) P) {
	t.Helper()
	if proto.Unmarshal(raw, p) != nil {
		return
	}
	v, err := from(p)
	if err != nil {
		if !errors.Is(err, mesh.ErrInvalid) {
			t.Fatalf("error %v does not wrap ErrInvalid", err)
		}
		return
	}
	again, err := from(to(v))
	if err != nil {
		t.Fatalf("own message is refused: %v", err)
	}
	if diff := cmp.Diff(v, again, netipValues); diff != "" {
		t.Fatal(diff)
	}
}
