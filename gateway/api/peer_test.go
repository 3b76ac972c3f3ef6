// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// v1 nodes put allowed_ips into WireGuard as they are and send to
// primary_endpoint as it is; the record itself has an endpoint without a port.
func TestPeerToProto_HasTheFormThatV1NodesRead(t *testing.T) {
	for endpoint, want := range map[string]string{
		"192.0.2.1:51820": "192.0.2.1:51820", "[2001:db8::1]:7": "[2001:db8::1]:7", "gate.example.org:51820": "gate.example.org:51820", "": "",
	} {
		n := &mesh.Node{
			ID: "gw", PrimaryEndpoint: "192.0.2.9",
			IPv4: netip.MustParsePrefix("172.16.0.1/32"), IPv6: netip.MustParsePrefix("fd00:0:0:1::/112"),
		}
		got := peerToProto(mesh.Peer{
			Node: n, AllowedIPs: n.Prefixes(), Endpoint: endpoint, Protocol: v1.ConnectProtocol_CONNECT_LIBP2P,
		})
		if got.GetNode().GetPrimaryEndpoint() != want || n.PrimaryEndpoint != "192.0.2.9" {
			t.Errorf("primary_endpoint %q, want %q; the record has %q", got.GetNode().GetPrimaryEndpoint(), want, n.PrimaryEndpoint)
		}
		if allowed := []string{"172.16.0.1/32", "fd00:0:0:1::/112"}; !slices.Equal(got.GetAllowedIps(), allowed) {
			t.Errorf("allowed_ips %q, want %q", got.GetAllowedIps(), allowed)
		}
		if got.GetProto() != v1.ConnectProtocol_CONNECT_LIBP2P || len(got.GetAllowedRoutes()) != 0 {
			t.Errorf("proto %v, allowed_routes %q", got.GetProto(), got.GetAllowedRoutes())
		}
	}
}
