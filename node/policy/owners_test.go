// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

// An address belongs to the node with the narrowest network around it, to all of
// several with the same, and to routers only where no node has it.
func TestOwners(t *testing.T) {
	node := func(id mesh.NodeID, v4, v6 string) *mesh.Node {
		n := &mesh.Node{ID: id}
		if v4 != "" {
			n.IPv4 = netip.MustParsePrefix(v4)
		}
		if v6 != "" {
			n.IPv6 = netip.MustParsePrefix(v6)
		}
		return n
	}
	s := &mesh.Snapshot{
		IPv4: netip.MustParsePrefix("10.9.0.0/16"), IPv6: netip.MustParsePrefix("fd00::/32"),
		Nodes: mesh.NodesOf(node("a", "10.9.0.1/32", "fd00::1:0/112"), node("b", "10.9.0.2/32", "fd00::1:5/128"),
			node("c", "10.9.0.2/32", "fd00::2:7/112"), node("outside", "192.0.2.1/32", "")),
		Routes: []mesh.Route{
			{Name: "site", Node: "a", Destinations: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			{Name: "half", Node: "b", Destinations: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25"), netip.MustParsePrefix("10.9.0.0/24")}},
		},
	}
	o := policy.IndexOwners(s)
	for addr, want := range map[string][]string{
		"10.9.0.1": {"a"}, "10.9.0.2": {"b", "c"}, "10.9.0.3": nil, "10.9.1.1": nil,
		"fd00::1:1": {"a"}, "fd00::1:5": {"b"}, "fd00::2:0": {"c"}, "fd00::3:0": nil,
		"192.0.2.1": {"outside"}, "192.0.2.2": {"a"}, "192.0.2.200": {"b"}, "198.51.100.1": nil,
	} {
		if got := o.Of(netip.MustParseAddr(addr)); !slices.Equal(got, want) {
			t.Errorf("%s belongs to %q, want %q", addr, got, want)
		}
	}
}
