// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"math"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/wg"
)

// noWay says for people why no tunnel of node self, which may be nil, leads to
// another one: to be looked for in the policy, and not in the network.
func noWay(network *policy.Network, self, o *mesh.Node) string {
	const open = "the network ACLs and the edges of the mesh leave no way to it"
	if self == nil {
		return open
	}
	d := network.Between(self, o)
	if d.Allowed {
		return open
	}
	above := "" // the priority that is needed
	if d.ACL != nil && d.ACL.Priority < math.MaxInt32 {
		above = fmt.Sprintf(" --priority %d", d.ACL.Priority+1)
	}
	return fmt.Sprintf("the network ACLs let nothing pass between %s and %s: %s (meshgate put networkacls NAME%s --src-node %s --dst-node %s lets it)",
		self.ID, o.ID, d, above, self.ID, o.ID)
}

// unrouted is an error of a dial to a node of s, with the reason in place of a
// fault of the network where no tunnel leads there.
func (n *Node) unrouted(s *mesh.Snapshot, o *mesh.Node, err error) error {
	if o == nil || !errors.Is(err, wg.ErrNoRoute) {
		return err
	}
	return fmt.Errorf("%w: no way to node %s: %s", mesh.ErrUnavailable, o.ID, noWay(n.networkOf(s), s.Node(n.cfg.ID), o))
}
