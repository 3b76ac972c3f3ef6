// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestUncallable_IsAnEdgeThatNobodyCanBeginAt(t *testing.T) {
	plain, ice := mesh.Edge{Source: "a", Target: "b"}, mesh.Edge{Source: "a", Target: "b", Attributes: map[string]string{"EDGE_ATTRIBUTE_ICE": "true"}}
	seeks := &mesh.Node{ID: "a", Paths: true}
	stock := &mesh.Node{ID: "b"}
	for name, tt := range map[string]struct {
		edge mesh.Edge
		b    *mesh.Node
		dead bool
	}{
		"a stock peer":          {plain, stock, true},
		"one that looks":        {plain, &mesh.Node{ID: "b", Paths: true}, false},
		"a stock peer by ICE":   {ice, stock, true},
		"one that looks by ICE": {ice, &mesh.Node{ID: "b", Paths: true}, false},
		"a public one by ICE":   {ice, &mesh.Node{ID: "b", PrimaryEndpoint: "gate.example.org"}, false},
		"a node of v1 by ICE":   {ice, &mesh.Node{ID: "b", Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}}, false},
		"a public one":          {plain, &mesh.Node{ID: "b", PrimaryEndpoint: "gate.example.org"}, false},
		"one that says where":   {plain, &mesh.Node{ID: "b", WireGuardEndpoints: []netip.AddrPort{netip.MustParseAddrPort("192.168.1.7:51820")}}, false},
		"a gateway that is shy": {plain, &mesh.Node{ID: "b", Features: []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP, Port: 8443}}}, false},
	} {
		for _, ends := range [][2]*mesh.Node{{seeks, tt.b}, {tt.b, seeks}} {
			if text := uncallable(tt.edge, ends[0], ends[1]); (text != "") != tt.dead {
				t.Errorf("%s: %q", name, text)
			}
		}
	}
}
