// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/wg"
)

// noWay says for people why no tunnel of node self, which may be nil, leads to
// another one: to be looked for in the policy, and not in the network.
func noWay(network *policy.Network, self, o *mesh.Node) string {
	if self == nil || connects(network, self, o) {
		return "the network ACLs and the edges of the mesh leave no way to it"
	}
	return fmt.Sprintf("the network ACLs let nothing pass between %s and %s (meshgate policy test says which; "+
		"meshgate put networkacls NAME --src-node %s --dst-node %s lets it)", self.ID, o.ID, self.ID, o.ID)
}

// connects reports whether the network ACLs let two nodes exchange packets, in
// some family.
func connects(network *policy.Network, a, b *mesh.Node) bool {
	for _, from := range a.Addrs() {
		for _, to := range b.Addrs() {
			if from.Is4() == to.Is4() && network.Connects(endpointAt(a, from), endpointAt(b, to)) {
				return true
			}
		}
	}
	return false
}

// endpointAt is a node at one of its addresses.
func endpointAt(o *mesh.Node, a netip.Addr) policy.Endpoint {
	return policy.Endpoint{Node: string(o.ID), Network: netip.PrefixFrom(a, a.BitLen())}
}

// unrouted is an error of a dial to a node of s, with the reason in place of a
// fault of the network where no tunnel leads there.
func (n *Node) unrouted(s *mesh.Snapshot, o *mesh.Node, err error) error {
	if o == nil || !errors.Is(err, wg.ErrNoRoute) {
		return err
	}
	return fmt.Errorf("%w: no way to node %s: %s", mesh.ErrUnavailable, o.ID, noWay(n.networkOf(s), s.Node(n.cfg.ID), o))
}
