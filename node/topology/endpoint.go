// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/meshgate/meshgate/node/mesh"
)

// defaultPort is where WireGuard listens on a node that does not say.
const defaultPort = 51820

// endpoint chooses where self sends packets for peer: a local address within
// the same zone, else the primary endpoint, else a public WireGuard endpoint.
// It is empty when peer can only call itself.
func endpoint(self, peer *mesh.Node) string {
	if self.Zone != "" && self.Zone == peer.Zone {
		if local, ok := localEndpoint(self, peer); ok {
			return local.String()
		}
	}
	if peer.PrimaryEndpoint != "" {
		return primaryEndpoint(peer)
	}
	for _, e := range peer.WireGuardEndpoints {
		if addr := e.Addr(); addr.IsGlobalUnicast() && !addr.IsPrivate() {
			return e.String()
		}
	}
	return ""
}

// primaryEndpoint returns the primary endpoint with the port at which
// WireGuard listens there.
func primaryEndpoint(peer *mesh.Node) string {
	port := uint16(defaultPort)
	if len(peer.WireGuardEndpoints) > 0 {
		port = peer.WireGuardEndpoints[0].Port()
	}
	if addr, err := netip.ParseAddr(peer.PrimaryEndpoint); err == nil {
		for _, e := range peer.WireGuardEndpoints {
			if e.Addr() == addr {
				return e.String()
			}
		}
	}
	return net.JoinHostPort(peer.PrimaryEndpoint, strconv.Itoa(int(port)))
}

// localEndpoint returns the endpoint of peer that shares a link with one of
// self's, else its first private one.
func localEndpoint(self, peer *mesh.Node) (netip.AddrPort, bool) {
	for _, e := range peer.WireGuardEndpoints {
		if slices.ContainsFunc(self.WireGuardEndpoints, func(own netip.AddrPort) bool { return sameLink(own.Addr(), e.Addr()) }) {
			return e, true
		}
	}
	for _, e := range peer.WireGuardEndpoints {
		if e.Addr().IsPrivate() {
			return e, true
		}
	}
	return netip.AddrPort{}, false
}

// sameLink guesses whether two addresses are on one link: the same /24 or /64.
func sameLink(a, b netip.Addr) bool {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	link, err := a.Prefix(bits)
	return err == nil && link.Contains(b)
}
