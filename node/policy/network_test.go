// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// addr parses s; "" is the unknown address.
func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// acls returns a snapshot with the groups of granted and these ACLs, which
// stand in the order in which they are asked.
func acls(list ...mesh.ACL) *mesh.Snapshot {
	s := granted(nil)
	s.ACLs = list
	return s
}

func TestAccepts(t *testing.T) {
	accept := func(src, dst []string) mesh.ACL {
		return mesh.ACL{Accept: true, SourceNodes: src, DestinationNodes: dst}
	}
	everything := mesh.ACL{Accept: true}
	flow := func(src, srcAddr, dst, dstAddr string) policy.Flow {
		return policy.Flow{SrcNode: src, Src: addr(srcAddr), DstNode: mesh.NodeID(dst), Dst: addr(dstAddr)}
	}
	ab := flow("a", "172.16.0.1", "b", "172.16.0.2")
	cases := []struct {
		name string
		acls []mesh.ACL
		flow policy.Flow
		want bool
	}{
		{"no ACL denies", nil, ab, false},
		{"empty lists match all", []mesh.ACL{everything}, ab, true},
		{"the first match decides", []mesh.ACL{{}, everything}, ab, false},
		{"a later match does not", []mesh.ACL{everything, {}}, ab, true},
		{"what does not match is passed over", []mesh.ACL{{SourceNodes: []string{"c"}}, everything}, ab, true},
		{"nodes by name", []mesh.ACL{accept([]string{"x", "a"}, []string{"b"})}, ab, true},
		{"the other direction is another flow", []mesh.ACL{accept([]string{"b"}, []string{"a"})}, ab, false},
		{"star", []mesh.ACL{accept([]string{"*"}, []string{"*"})}, ab, true},
		{"star among others", []mesh.ACL{accept([]string{"x", "*"}, nil)}, ab, true},
		{"group", []mesh.ACL{accept([]string{"group:devs"}, nil)}, flow("alice", "", "b", ""), true},
		{"nested group", []mesh.ACL{accept([]string{"group:devs"}, nil)}, flow("printer", "", "b", ""), true},
		{"group in a cycle", []mesh.ACL{accept(nil, []string{"group:loop"})}, flow("a", "", "pooled", ""), true},
		{"not in the group", []mesh.ACL{accept([]string{"group:staff"}, nil)}, flow("alice", "", "b", ""), false},
		{"missing group is nobody", []mesh.ACL{accept([]string{"group:missing"}, nil)}, ab, false},
		{"group of everyone", []mesh.ACL{accept([]string{"group:everyone"}, nil)}, ab, true},
		{"a node is not the group of its name", []mesh.ACL{accept([]string{"group:a"}, nil)}, ab, false},
		{"unknown node matches star", []mesh.ACL{accept([]string{"*"}, nil)}, flow("", "", "b", ""), true},
		{"unknown node matches no name", []mesh.ACL{accept([]string{"a"}, nil)}, flow("", "", "b", ""), false},
		{"source network", []mesh.ACL{{Accept: true, SourceCIDRs: prefixes("10.0.0.0/8", "172.16.0.0/31")}}, ab, true},
		{"outside the source network", []mesh.ACL{{Accept: true, SourceCIDRs: prefixes("172.16.0.2/31")}}, ab, false},
		{"destination network", []mesh.ACL{{Accept: true, DestinationCIDRs: prefixes("172.16.0.2/32")}}, ab, true},
		{"a prefix is no address", []mesh.ACL{{Accept: true, DestinationCIDRs: prefixes("172.16.0.0/32")}}, ab, false},
		{"every address of the family", []mesh.ACL{{Accept: true, SourceCIDRs: prefixes("0.0.0.0/0")}}, ab, true},
		{"every address of the other family", []mesh.ACL{{Accept: true, SourceCIDRs: prefixes("::/0")}}, ab, false},
		{
			"mapped addresses are IPv4", []mesh.ACL{{Accept: true, SourceCIDRs: prefixes("172.16.0.1/32")}},
			flow("a", "::ffff:172.16.0.1", "b", ""), true,
		},
		{
			"IPv6", []mesh.ACL{{Accept: true, DestinationCIDRs: prefixes("fd00:1::/48")}},
			flow("a", "", "b", "fd00:1::7"), true,
		},
		{
			"an unknown address matches every address", []mesh.ACL{{Accept: true, SourceCIDRs: prefixes("0.0.0.0/0", "::/0")}},
			flow("a", "", "b", ""), true,
		},
		{
			"an unknown address is in no network", []mesh.ACL{{Accept: true, SourceCIDRs: prefixes("172.16.0.0/12")}},
			flow("a", "", "b", ""), false,
		},
		{"both sides must match", []mesh.ACL{accept([]string{"a"}, []string{"c"})}, ab, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := policy.Accepts(acls(c.acls...), c.flow); got != c.want {
				t.Errorf("Accepts = %v", got)
			}
		})
	}
}

func TestConcerning_ExpandsGroups(t *testing.T) {
	s := acls(
		mesh.ACL{Name: "everyone", SourceCIDRs: prefixes("10.0.0.0/8")},
		mesh.ACL{Name: "mine", Accept: true, SourceNodes: []string{"group:devs", "a"}, DestinationNodes: []string{"me"}},
		mesh.ACL{Name: "from me", SourceNodes: []string{"me"}, DestinationNodes: []string{"group:everyone", "x"}},
		mesh.ACL{Name: "others", Accept: true, SourceNodes: []string{"a"}, DestinationNodes: []string{"b"}},
		mesh.ACL{Name: "to nobody", SourceNodes: []string{"me"}, DestinationNodes: []string{"group:missing"}},
		mesh.ACL{Name: "from nobody", Accept: true, SourceNodes: []string{"group:missing"}},
	)
	want := []mesh.ACL{
		{Name: "everyone", SourceNodes: []string{"*"}, DestinationNodes: []string{"*"}, SourceCIDRs: prefixes("10.0.0.0/8")},
		{Name: "mine", Accept: true, SourceNodes: []string{"a", "alice", "printer"}, DestinationNodes: []string{"me"}},
		{Name: "from me", SourceNodes: []string{"me"}, DestinationNodes: []string{"*"}},
	}
	if diff := cmp.Diff(want, policy.Concerning(s, "me"), comparePrefixes); diff != "" {
		t.Error(diff)
	}
	if s.ACLs[1].SourceNodes[0] != "group:devs" {
		t.Error("the snapshot was changed")
	}
}

// Between says of two nodes what decides, in the family in which they may.
func TestBetween_NamesTheACL(t *testing.T) {
	a := &mesh.Node{ID: "a", IPv4: prefixes("172.16.0.1/32")[0], IPv6: prefixes("fd00::1:0/112")[0]}
	b := &mesh.Node{ID: "b", IPv4: prefixes("172.16.0.2/32")[0], IPv6: prefixes("fd00::2:0/112")[0]}
	everything := mesh.ACL{Name: "all", Accept: true}
	for name, tt := range map[string]struct {
		acls []mesh.ACL
		b    *mesh.Node
		want string
	}{
		"none":            {nil, b, "no ACL accepts"},
		"all":             {[]mesh.ACL{everything}, b, `accepted by acl "all" (priority 0)`},
		"a denial":        {[]mesh.ACL{{Name: "shut", Priority: 7, DestinationNodes: []string{"a"}}, everything}, b, `denied by acl "shut" (priority 7)`},
		"of one family":   {[]mesh.ACL{{Name: "shut", DestinationCIDRs: prefixes("172.16.0.0/12")}, everything}, b, `accepted by acl "all" (priority 0)`},
		"of one port":     {[]mesh.ACL{{Name: "web", Accept: true, Protocols: []mesh.Protocol{mesh.ProtocolTCP}, Ports: []uint16{80}}}, b, `accepted by acl "web" (priority 0)`},
		"without a place": {[]mesh.ACL{everything}, &mesh.Node{ID: "b"}, "no ACL accepts"},
	} {
		if got := policy.Compile(acls(tt.acls...)).Between(a, tt.b).String(); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestGranted_CutsNetworksAlongACLs(t *testing.T) {
	self := policy.Endpoint{Node: "a", Network: netip.MustParsePrefix("172.16.0.1/32")}
	everything := mesh.ACL{Accept: true}
	cases := []struct {
		name    string
		acls    []mesh.ACL
		network string
		want    []netip.Prefix
	}{
		{"nothing", nil, "10.0.0.0/8", nil},
		{"everything", []mesh.ACL{everything}, "10.1.2.3/8", prefixes("10.0.0.0/8")},
		{
			"a part", []mesh.ACL{{Accept: true, DestinationCIDRs: prefixes("10.1.0.0/16", "192.168.0.0/16")}},
			"10.0.0.0/8", prefixes("10.1.0.0/16"),
		},
		{
			"all but a part", []mesh.ACL{{DestinationCIDRs: prefixes("10.64.0.0/10")}, everything},
			"10.0.0.0/8", prefixes("10.0.0.0/10", "10.128.0.0/9"),
		},
		{
			"parts side by side are the whole",
			[]mesh.ACL{{Accept: true, DestinationCIDRs: prefixes("10.0.0.0/9", "10.128.0.0/9")}},
			"10.0.0.0/8", prefixes("10.0.0.0/9", "10.128.0.0/9"),
		},
		{
			"replies count", []mesh.ACL{{Accept: true, SourceCIDRs: prefixes("10.1.0.0/16"), DestinationNodes: []string{"a"}}},
			"10.0.0.0/8", prefixes("10.1.0.0/16"),
		},
		{
			"one address of an IPv6 network", []mesh.ACL{{Accept: true, DestinationCIDRs: prefixes("fd00::5/128")}},
			"fd00::/112", prefixes("fd00::5/128"),
		},
		{
			"a denied address", []mesh.ACL{{DestinationCIDRs: prefixes("10.0.0.0/32")}, everything},
			"10.0.0.0/30", prefixes("10.0.0.1/32", "10.0.0.2/31"),
		},
		{"no network", []mesh.ACL{everything}, "", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var network netip.Prefix
			if c.network != "" {
				network = netip.MustParsePrefix(c.network)
			}
			got := policy.Compile(acls(c.acls...)).Granted(self, policy.Endpoint{Node: "b", Network: network})
			if diff := cmp.Diff(c.want, got, comparePrefixes); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestForwarders(t *testing.T) {
	s := granted(nil)
	s.Nodes = mesh.NodesOf(&mesh.Node{ID: "a"}, &mesh.Node{ID: "looped"}, &mesh.Node{ID: "pooled"})
	cases := []struct {
		route mesh.Route
		want  []mesh.NodeID
	}{
		{mesh.Route{Node: "a"}, []mesh.NodeID{"a"}},
		{mesh.Route{Node: "gone"}, nil},
		{mesh.Route{Node: "group:loop"}, []mesh.NodeID{"looped", "pooled"}},
		{mesh.Route{Node: "group:devs"}, nil},
		{mesh.Route{Node: "group:everyone"}, nil},
		{mesh.Route{Node: "a", NextHop: "looped"}, []mesh.NodeID{"looped"}},
		{mesh.Route{Node: "a", NextHop: "gone"}, nil},
	}
	for _, c := range cases {
		if diff := cmp.Diff(c.want, policy.Forwarders(s, c.route)); diff != "" {
			t.Errorf("%+v: %s", c.route, diff)
		}
	}
}

func TestRouteForwarders(t *testing.T) {
	s := &mesh.Snapshot{
		Nodes: mesh.NodesOf(&mesh.Node{ID: "a"}),
		Groups: []mesh.Group{{Name: "g", Subjects: []mesh.Subject{
			{Type: v1.SubjectType_SUBJECT_NODE, Name: "a"}, {Type: v1.SubjectType_SUBJECT_NODE, Name: "gone"},
		}}},
		Routes: []mesh.Route{{Name: "r1", Node: "group:g"}, {Name: "r2", Node: "a", NextHop: "hop"}, {Name: "r3", Node: "group:none"}},
	}
	var got []string
	for r, id := range policy.RouteForwarders(s) {
		got = append(got, r.Name+" "+string(id))
	}
	slices.Sort(got)
	if want := []string{"r1 a", "r1 gone", "r2 hop"}; !slices.Equal(got, want) {
		t.Errorf("forwarders %q, want %q", got, want)
	}
	for range policy.RouteForwarders(s) {
		break // a caller may stop
	}
}
