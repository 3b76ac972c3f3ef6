// SPDX-License-Identifier: Apache-2.0

package member

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// defaultPort is where WireGuard is taken to listen on a node that does not say.
const defaultPort = 51820

// checkTaken refuses endpoints of n that are another member's: others would send
// to that one what is for n. Addresses that many hosts have do not count, nor do
// members that are silent, whose place n may have taken, and what n has said
// before; and a gateway has to start whatever others say.
func (m *Members) checkTaken(s *mesh.Snapshot, n *mesh.Node) error {
	if n.ID == m.self {
		return nil
	}
	fresh := places(n)
	if old := s.Node(n.ID); old != nil && len(fresh) > 0 {
		had := places(old)
		fresh = slices.DeleteFunc(fresh, func(e netip.AddrPort) bool { return slices.Contains(had, e) })
	}
	if len(fresh) == 0 {
		return nil
	}
	for id, other := range s.Nodes.All() {
		if _, silent := s.Silent[id]; silent || id == n.ID {
			continue
		}
		for _, e := range places(other) {
			if slices.Contains(fresh, e) {
				return fmt.Errorf("%w: primary_endpoint or wireguard_endpoints: %v is that of node %q; give the node's own address and port, or remove that node first if it is gone (meshgate delete nodes %s)",
					mesh.ErrExists, e, id, id)
			}
		}
	}
	return nil
}

// places are the endpoints to which others may send packets for n, without those
// that mean another host elsewhere.
func places(n *mesh.Node) []netip.AddrPort {
	var list []netip.AddrPort
	add := func(addr netip.Addr, port uint16) {
		if addr = addr.Unmap(); !addr.IsLoopback() && !addr.IsPrivate() && !shared.Contains(addr) {
			list = append(list, netip.AddrPortFrom(addr, port))
		}
	}
	port := uint16(defaultPort)
	for i, e := range n.WireGuardEndpoints {
		if i == 0 {
			port = e.Port()
		}
		add(e.Addr(), e.Port())
	}
	primary, err := netip.ParseAddr(n.PrimaryEndpoint)
	if err == nil && !slices.ContainsFunc(n.WireGuardEndpoints, func(e netip.AddrPort) bool { return e.Addr() == primary }) {
		add(primary, port)
	}
	return list
}

// shared is the space that carriers give their customers (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// checkOutside refuses networks that hold an address on which the mesh itself
// runs, and endpoints of n that are somebody else's or in networks that somebody
// offers. It replaces the
// routes that n offers itself by the given ones if replaced is set.
//
// What n has offered or said before passes: a gateway that a route was put
// around has to start all the same. Hosts leave such routes out (node/hostnet).
func (m *Members) checkOutside(s *mesh.Snapshot, n *mesh.Node, routes []netip.Prefix, replaced bool) error {
	if err := m.checkTaken(s, n); err != nil {
		return err
	}
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
