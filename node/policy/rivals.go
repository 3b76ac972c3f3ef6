// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
)

// Rivals returns the nodes that forward to a network to which another one
// forwards, too: that one can stand in for it. Nodes that s does not hold, which a
// group may name, are left out.
func Rivals(s *mesh.Snapshot) map[mesh.NodeID]bool {
	first := make(map[netip.Prefix]mesh.NodeID)
	rivals := make(map[mesh.NodeID]bool)
	for r, id := range RouteForwarders(s) {
		if s.Node(id) == nil {
			continue
		}
		for _, p := range r.Destinations {
			p = p.Masked()
			other, taken := first[p]
			if !taken {
				first[p] = id
			} else if other != id {
				rivals[other], rivals[id] = true, true
			}
		}
	}
	return rivals
}
