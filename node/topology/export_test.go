// SPDX-License-Identifier: Apache-2.0

package topology

import "github.com/meshgate/meshgate/node/mesh"

// SummarizeFrom is summarizeFrom.
const SummarizeFrom = summarizeFrom

// ByPaths plans without what leaves share.
func (p *Planner) ByPaths(self mesh.NodeID) mesh.Plan {
	return (&planning{Planner: p, self: p.snapshot.Node(self)}).byPaths(p.vertex(self))
}
