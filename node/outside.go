// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/mesh"
)

// lookAtPeers is how often routes are compared with what changes without the mesh:
// where WireGuard finds peers, and gateways that have names are.
const lookAtPeers = 30 * time.Second

// addrOf returns the address of a "host:port" whose host is one.
func addrOf(at string) (netip.Addr, bool) {
	if at == "" { // that of most: errors cost memory
		return netip.Addr{}, false
	}
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(host)
	return addr.Unmap().WithZone(""), err == nil
}

// registerLeftOut registers the metric about routes that the host does not get.
func (n *Node) registerLeftOut() error {
	if n.cfg.Registerer == nil {
		return nil
	}
	err := n.cfg.Registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshgate_host_routes_left_out",
		Help: "Routes of the mesh that the host's routing table does not get, since the tunnel itself runs on an address in them, they are too wide, or the host has another route there.",
	}, func() float64 {
		if n.host == nil {
			return 0
		}
		return float64(n.host.LeftOut())
	}))
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	return nil
}

// outside are the addresses on which the tunnel and the state of the mesh run:
// of the replicas, of the gateways, and those at which plan has peers, or at which
// WireGuard found them.
func (n *Node) outside(plan *mesh.Plan) []netip.Addr {
	list := append(n.replicas.addrs(), plan.Self.Outside()...)
	for p := range plan.Peers.All() {
		if addr, ok := addrOf(p.Endpoint); ok {
			list = append(list, addr)
		}
		if p.Node.HoldsState() {
			list = append(list, p.Node.Outside()...)
		}
	}
	if !toOneAddress(plan.Routes) {
		return list
	}
	stats, err := n.contacts.stats(n.device.Stats)
	if err != nil {
		n.log.Debug("routes are not compared with where peers are", "err", err)
		return list
	}
	return append(list, found(plan.Routes, stats)...)
}

// toOneAddress reports whether a route is for a single address.
func toOneAddress(routes []netip.Prefix) bool {
	return slices.ContainsFunc(routes, netip.Prefix.IsSingleIP)
}

// found are the addresses at which WireGuard found peers, such as the outside one
// of the NAT that a peer is behind, as far as one of routes is for such an address
// alone. It would take the tunnel to that peer into the tunnel of another. A wider
// route stays: where a packet says that it is from is no reason to take a whole
// network away from everybody.
func found(routes []netip.Prefix, stats mesh.InterfaceStats) []netip.Addr {
	single := map[netip.Addr]bool{}
	for _, p := range routes {
		if p.IsSingleIP() {
			single[p.Addr()] = true
		}
	}
	var list []netip.Addr
	for _, p := range stats.Peers {
		if addr, ok := addrOf(p.Endpoint); ok && single[addr] {
			list = append(list, addr)
		}
	}
	return list
}
