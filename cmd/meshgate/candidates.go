// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// mayCheck reports whether ICE may send checks to a candidate that a client of
// this gateway named. Addresses of the mesh are reached by channels, which
// policy decides about, and the gateway's own UDP ports have no client behind
// them. Private addresses stay: browsers in the same network have them.
func (p *gatewayProcess) mayCheck(at netip.AddrPort) bool {
	ports := []uint16{p.icePort, p.cfg.wgPort}
	if p.turn != nil {
		for _, a := range p.turn.UDPAddrs() {
			ports = append(ports, a.Port())
		}
	}
	own := func(a netip.Addr) bool { return a == p.address || isOwnAddress(a) }
	return checkable(at, p.node.Snapshot(), p.node.Self(), ports, own)
}

// checkable is mayCheck for a snapshot, which may be nil, and the UDP ports of
// this host that are the gateway's. own reports whether an address is the host's.
func checkable(at netip.AddrPort, s *mesh.Snapshot, self mesh.NodeID, ports []uint16, own func(netip.Addr) bool) bool {
	addr := at.Addr().Unmap()
	if s != nil {
		if s.Contains(addr) {
			return false
		}
		if n, ok := s.Nodes.Get(self); ok {
			for _, e := range n.WireGuardEndpoints { // with the port that the host picked
				ports = append(ports, e.Port())
			}
		}
	}
	return !slices.Contains(ports, at.Port()) || !addr.IsLoopback() && !own(addr)
}
