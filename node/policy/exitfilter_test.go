// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

// TestExitFilter has b be an exit: it stands for the Internet, and for no address
// of the mesh, whoever holds it or nobody does.
func TestExitFilter(t *testing.T) {
	all := mesh.ACL{Accept: true}
	aToB := mesh.ACL{Accept: true, SourceNodes: []string{"a"}, DestinationNodes: []string{"b"}}
	for _, c := range []struct {
		name     string
		acl      mesh.ACL
		src, dst string
		want     bool
	}{
		{"the Internet", aToB, "172.16.0.1", "198.51.100.1", true},
		{"the Internet, IPv6", aToB, "fd00:1:0:1::", "2001:db8::1", true},
		{"an answer", aToB, "198.51.100.1", "172.16.0.1", true},
		{"of another node", aToB, "172.16.0.3", "198.51.100.1", false},
		{"another node", aToB, "172.16.0.1", "172.16.0.3", false},
		{"a route of another node", aToB, "172.16.0.1", "10.1.2.3", false},
		{"a route of its own", aToB, "172.16.0.1", "11.1.2.3", true},
		{"to a mesh address of nobody", all, "172.16.0.1", "172.16.0.9", false},
		{"to a mesh address of nobody, IPv6", all, "fd00:1:0:1::", "fd00:1:0:9::", false},
		{"to a mesh address of nobody that a route has", all, "172.16.0.1", "172.16.9.9", false},
		{"from a mesh address of nobody", all, "172.16.0.9", "198.51.100.1", false},
		{"from a mesh address of nobody, IPv6", all, "fd00:1:0:9::", "2001:db8::1", false},
	} {
		f := policy.ExitFilter(filterSnapshot(c.acl), "b", policy.NewFlows())
		if got := f.Allow(mesh.Packet{Src: netip.MustParseAddr(c.src), Dst: netip.MustParseAddr(c.dst)}); got != c.want {
			t.Errorf("%s, %s to %s: got %t, want %t", c.name, c.src, c.dst, got, c.want)
		}
	}
}
