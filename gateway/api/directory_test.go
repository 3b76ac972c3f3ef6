// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// The lists are those of the snapshot that is asked about, whatever was asked
// about before.
func TestDirectory_FollowsTheServers(t *testing.T) {
	server := func(id mesh.NodeID, endpoint string, kinds ...v1.Feature) *mesh.Node {
		n := &mesh.Node{ID: id, PrimaryEndpoint: endpoint, IPv4: netip.MustParsePrefix("172.16.0.1/32")}
		for _, kind := range kinds {
			n.Features = append(n.Features, mesh.Feature{Kind: kind, Port: 53})
		}
		return n
	}
	const ice, dns = v1.Feature_ICE_NEGOTIATION, v1.Feature_MESH_DNS
	empty := mesh.NodesOf()
	gateway := empty.With(server("gw", "192.0.2.1", ice))
	more := gateway.With(&mesh.Node{ID: "laptop"})
	second := more.With(server("gw2", "192.0.2.2", ice, dns))
	moved := second.With(server("gw2", "192.0.2.3", ice))
	gone := moved.Without("gw")
	steps := []struct {
		nodes    mesh.Nodes
		ice, dns []string
	}{
		{empty, nil, nil},
		{gateway, []string{"192.0.2.1:53"}, nil},
		{more, []string{"192.0.2.1:53"}, nil},
		{second, []string{"192.0.2.1:53", "192.0.2.2:53"}, []string{"172.16.0.1:53"}},
		{moved, []string{"192.0.2.1:53", "192.0.2.3:53"}, nil},
		{gone, []string{"192.0.2.3:53"}, nil},
	}
	var d directory
	for _, from := range steps { // forth and back between any two
		for _, to := range steps {
			for _, step := range []struct {
				nodes    mesh.Nodes
				ice, dns []string
			}{from, to} {
				s := &mesh.Snapshot{Nodes: step.nodes}
				if got := d.iceServers(s); !slices.Equal(got, step.ice) {
					t.Errorf("ICE servers %v, want %v", got, step.ice)
				}
				if got := d.dnsServers(s, "laptop"); !slices.Equal(got, step.dns) {
					t.Errorf("DNS servers %v, want %v", got, step.dns)
				}
			}
		}
	}
}
