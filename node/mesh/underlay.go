// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"slices"
)

// Outside returns the addresses outside of the mesh at which the node says that
// it is reached: its primary endpoint unless that is a name, and those of its
// WireGuard. They may repeat.
func (n *Node) Outside() []netip.Addr {
	list := make([]netip.Addr, 0, 1+len(n.WireGuardEndpoints))
	if addr, err := netip.ParseAddr(n.PrimaryEndpoint); err == nil {
		list = append(list, addr.Unmap().WithZone(""))
	}
	for _, e := range n.WireGuardEndpoints {
		list = append(list, e.Addr().Unmap().WithZone(""))
	}
	return list
}

// CheckOutside refuses a network that holds an address on which the mesh itself
// runs: an endpoint of a member, or one of replicas, at which gateways keep the
// state together. Hosts would send the packets of the tunnel, and those between
// the replicas, into the tunnel. The endpoints of self, unless it is nil, count
// in place of those that s has for its id. Of other members that hold no state
// only those on the Internet count: any member may say what it likes of itself,
// and private addresses of one network are those of another, too. A host leaves
// out a route to where it has a peer. The error wraps ErrInvalid.
func (s *Snapshot) CheckOutside(network netip.Prefix, self *Node, replicas []netip.Addr) error {
	if i := slices.IndexFunc(replicas, network.Contains); i >= 0 {
		return fmt.Errorf("%w: %v holds %v, at which gateways keep the state of the mesh together; leave that address out", ErrInvalid, network, replicas[i])
	}
	check := func(n *Node) error {
		list := n.Outside()
		if n != self && !n.FollowsNone() {
			list = slices.DeleteFunc(list, func(a netip.Addr) bool { return !IsInternet(a) })
		}
		if i := slices.IndexFunc(list, network.Contains); i >= 0 {
			return fmt.Errorf("%w: %v holds %v, at which node %q is reached outside of the mesh: packets of the tunnel would go into the tunnel; leave that address out",
				ErrInvalid, network, list[i], n.ID)
		}
		return nil
	}
	if self != nil {
		if err := check(self); err != nil {
			return err
		}
	}
	for id, n := range s.Nodes.All() {
		if self != nil && id == self.ID {
			continue
		}
		if err := check(n); err != nil {
			return err
		}
	}
	return nil
}
