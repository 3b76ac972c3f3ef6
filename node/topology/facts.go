// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// facts are what the plans of most others say of a node. They are made when the
// first plan needs them, and all plans share them: a public node is in those of
// 128 others.
type facts struct {
	made bool
	// endpoint is where nodes of other zones send packets.
	endpoint string
	// own are the node's addresses as AllowedIPs, sorted.
	own []netip.Prefix
}

func (v *vertex) learned() *facts {
	if f := &v.facts; !f.made {
		f.made, f.endpoint = true, endpoint(&mesh.Node{}, v.node)
		for _, own := range v.node.Prefixes() {
			f.own = append(f.own, own.Masked())
		}
		slices.SortFunc(f.own, netip.Prefix.Compare)
	}
	return &v.facts
}

// endpointFor is endpoint(self, v.node).
func (v *vertex) endpointFor(self *mesh.Node) string {
	if self.Zone != "" && self.Zone == v.node.Zone {
		return endpoint(self, v.node)
	}
	return v.learned().endpoint
}
