// SPDX-License-Identifier: Apache-2.0

package member

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// checkOutside refuses networks that hold an address on which the mesh itself
// runs, and endpoints of n in networks that somebody offers. It replaces the
// routes that n offers itself by the given ones if replaced is set.
//
// What n has offered or said before passes: a gateway that a route was put
// around has to start all the same. Hosts leave such routes out (node/hostnet).
func (m *Members) checkOutside(s *mesh.Snapshot, n *mesh.Node, routes []netip.Prefix, replaced bool) error {
	own, ok := autoRoute(s, n.ID)
	if !ok || own.Node != string(n.ID) {
		own = mesh.Route{}
	}
	var replicas []netip.Addr
	if len(routes) > 0 {
		replicas = m.replicas()
	}
	for _, p := range routes {
		if slices.Contains(own.Destinations, p) {
			continue
		}
		if err := s.CheckOutside(p, n, replicas); err != nil {
			return fmt.Errorf("routes: %w", err)
		}
	}
	var said []netip.Addr
	if old := s.Node(n.ID); old != nil {
		said = old.Outside()
	}
	for _, addr := range n.Outside() {
		if n.ID == m.self || slices.Contains(said, addr) {
			continue
		}
		for _, r := range s.Routes {
			if replaced && r.Name == own.Name {
				continue
			}
			if i := slices.IndexFunc(r.Destinations, func(p netip.Prefix) bool { return p.Contains(addr) }); i >= 0 {
				return fmt.Errorf("%w: primary_endpoint or wireguard_endpoints: %v is in %v, to which the route %q leads: packets of the tunnel would go into the tunnel; "+
					"give an address outside of it, or have an admin narrow the route", mesh.ErrInvalid, addr, r.Destinations[i], r.Name)
			}
		}
	}
	return nil
}
