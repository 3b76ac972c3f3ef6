// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestIPv6Prefix_FixesFortyEightBits(t *testing.T) {
	p := mesh.IPv6Prefix([]byte("entropy"))
	raw := p.Addr().As16()
	if raw[0] != 0xfd || p.Bits() != 32 {
		t.Errorf("prefix %v is no fdXX::/32", p)
	}
	if !slices.Equal(raw[6:], make([]byte, 10)) || slices.Equal(raw[1:6], make([]byte, 5)) {
		t.Errorf("prefix %v does not fix the 48 bits", p)
	}
	if mesh.IPv6Prefix([]byte("entropy")) != p {
		t.Error("equal entropy gives another prefix")
	}
	if mesh.IPv6Prefix([]byte("other")) == p {
		t.Error("other entropy gives the same prefix")
	}
}

func TestNodeIPv6_NeedsAnIPv6Network(t *testing.T) {
	key := vectorKey(t).Public().WireGuard()
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("172.16.0.0/12")} {
		if got := mesh.NodeIPv6(p, key); got.IsValid() {
			t.Errorf("NodeIPv6(%v) = %v", p, got)
		}
	}
}

// testSnapshot is a mesh of two nodes.
func testSnapshot(t testing.TB) *mesh.Snapshot {
	t.Helper()
	key := vectorKey(t).Public()
	prefix := netip.MustParsePrefix(vectorPrefix)
	return &mesh.Snapshot{
		IPv4: netip.MustParsePrefix("172.16.0.0/12"),
		IPv6: prefix,
		Nodes: mesh.NodesOf(
			&mesh.Node{
				ID: "a", PublicKey: key,
				IPv4: netip.MustParsePrefix("172.16.0.1/32"),
				IPv6: mesh.NodeIPv6(prefix, key.WireGuard()),
			},
			&mesh.Node{ID: "placeholder"},
		),
	}
}

func TestSnapshot_Contains(t *testing.T) {
	s := testSnapshot(t)
	cases := map[string]bool{
		"172.16.0.1":                 true,
		"172.31.255.255":             true,
		"172.32.0.0":                 false,
		"::ffff:172.16.0.1":          true,
		"fd9f:86d0:8188::1":          true,
		"fd9f:86d0:8188:ffff::":      true,
		"fd9f:86d0:8189::1":          false, // inside the written /32, outside the 48 fixed bits
		"fd9f:86d0::":                false,
		"::":                         false,
		"127.0.0.1":                  false,
		"fe80::1%eth0":               false,
		"fd9f:86d0:8188::1%meshgate": false,
	}
	for addr, want := range cases {
		if got := s.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Contains(%s) = %v", addr, got)
		}
	}
	if s.Contains(netip.Addr{}) || (&mesh.Snapshot{}).Contains(netip.IPv6Unspecified()) {
		t.Error("nothing is contained in something")
	}
}

func TestSnapshot_Networks(t *testing.T) {
	want := []netip.Prefix{
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("fd9f:86d0:8188::/48"),
	}
	if diff := cmp.Diff(want, testSnapshot(t).Networks(), cmp.Comparer(samePrefix)); diff != "" {
		t.Error(diff)
	}
	if got := (&mesh.Snapshot{}).Networks(); got != nil {
		t.Errorf("a mesh without networks has %v", got)
	}
}

func samePrefix(a, b netip.Prefix) bool { return a == b }

func TestSnapshot_FindsNodes(t *testing.T) {
	s := testSnapshot(t)
	for addr, want := range map[string]bool{
		"172.16.0.1":                              true,
		"::ffff:172.16.0.1":                       true,
		"172.16.0.2":                              false,
		"fd9f:86d0:8188:ff73:2ac4:40f5:1a35:0":    true,
		"fd9f:86d0:8188:ff73:2ac4:40f5:1a35:ffff": true, // the node's /112 is its own
		"fd9f:86d0:8188:ff73:2ac4:40f5:1a36:0":    false,
	} {
		n, ok := s.NodeByAddr(netip.MustParseAddr(addr))
		if ok != want || (ok && n.ID != "a") {
			t.Errorf("NodeByAddr(%s) = %v, %v", addr, n, ok)
		}
	}
	if n, ok := s.NodeByKey(vectorKey(t).Public().WireGuard()); !ok || n.ID != "a" {
		t.Errorf("NodeByKey = %v, %v", n, ok)
	}
	if n, ok := s.NodeByKey(mesh.WireGuardKey{}); ok {
		t.Errorf("the zero key belongs to %v", n)
	}
	if n, ok := s.NodeByKey(mesh.WireGuardKey{1}); ok {
		t.Errorf("an unknown key belongs to %v", n)
	}
}

func TestNode_AddressesAndFeatures(t *testing.T) {
	n := testSnapshot(t).Node("a")
	want := []netip.Addr{netip.MustParseAddr("172.16.0.1"), netip.MustParsePrefix(vectorIPv6).Addr()}
	if got := n.Addrs(); !slices.Equal(got, want) {
		t.Errorf("Addrs = %v, want %v", got, want)
	}
	if got := (&mesh.Node{}).Addrs(); got != nil {
		t.Errorf("a node without addresses has %v", got)
	}
	if n.RunsMeshgate() {
		t.Error("a stock peer runs Meshgate")
	}
	n.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_LEADER_PROXY}}
	if !n.RunsMeshgate() || !n.HasFeature(v1.Feature_LEADER_PROXY) || n.HasFeature(v1.Feature_METRICS) {
		t.Error("features are not found")
	}
	if port, ok := n.FeaturePort(v1.Feature_NODES); !ok || port != 8443 {
		t.Errorf("FeaturePort(NODES) = %d, %v", port, ok)
	}
	if port, ok := n.FeaturePort(v1.Feature_LEADER_PROXY); ok {
		t.Errorf("a feature without a port has %d", port)
	}
}

func TestSnapshot_Routable(t *testing.T) {
	s := testSnapshot(t)
	for network, want := range map[string]bool{
		"10.0.0.0/8":            true,
		"0.0.0.0/0":             false,
		"::/0":                  false,
		"169.0.0.0/8":           false,
		"64:ff9b::/96":          false,
		"172.0.0.0/8":           true,
		"172.16.0.0/12":         false,
		"172.16.5.0/24":         false,
		"fd9f:86d0:8188::/48":   false,
		"fd9f:86d0:8188:1::/64": false,
		"fd9f:86d0:8189::/48":   true, // outside the 48 fixed bits
		"127.0.0.0/8":           false,
		"::1/128":               false,
		"169.254.169.254/32":    false,
		"fe80::/64":             false,
		"224.0.0.0/4":           false,
		"ff02::/16":             false,
		"::ffff:10.0.0.0/104":   false,
		"2001:db8::/32":         true,
		"fd9f::/16":             true,
		"2600::/16":             true,
	} {
		if got := s.Routable(netip.MustParsePrefix(network)); got != want {
			t.Errorf("Routable(%s) = %v", network, got)
		}
	}
	if s.Routable(netip.Prefix{}) {
		t.Error("no network is routable")
	}
}

func TestEdge_Protocol(t *testing.T) {
	cases := []struct {
		attributes map[string]string
		want       v1.ConnectProtocol
	}{
		{nil, v1.ConnectProtocol_CONNECT_NATIVE},
		{map[string]string{"EDGE_ATTRIBUTE_NATIVE": "true"}, v1.ConnectProtocol_CONNECT_NATIVE},
		{map[string]string{"EDGE_ATTRIBUTE_ICE": "false"}, v1.ConnectProtocol_CONNECT_NATIVE},
		{map[string]string{"EDGE_ATTRIBUTE_LIBP2P": "true"}, v1.ConnectProtocol_CONNECT_LIBP2P},
		{map[string]string{"EDGE_ATTRIBUTE_LIBP2P": "true", "EDGE_ATTRIBUTE_ICE": "true"}, v1.ConnectProtocol_CONNECT_ICE},
	}
	for _, c := range cases {
		if got := (mesh.Edge{Attributes: c.attributes}).Protocol(); got != c.want {
			t.Errorf("Protocol of %v = %v, want %v", c.attributes, got, c.want)
		}
	}
}
