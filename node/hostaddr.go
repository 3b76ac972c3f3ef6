// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// hostAddrsAge is how long the host's addresses are believed.
const hostAddrsAge = time.Second

// hostAddrs knows the addresses of the host's interfaces. The zero value is
// ready; it is safe for concurrent use.
type hostAddrs struct{ last atomic.Pointer[hostView] }

// hostView is what the interfaces had at one time. It is immutable.
type hostView struct {
	at time.Time
	// networks hold each address with the length of its network.
	networks []netip.Prefix
}

// load asks for the addresses, at most once in hostAddrsAge. An error is not
// remembered. It wraps mesh.ErrUnavailable: who does not know which addresses
// are the host's own may not connect to any that could be.
func (h *hostAddrs) load(ask func() ([]net.Addr, error)) (*hostView, error) {
	if v := h.last.Load(); v != nil && time.Since(v.at) < hostAddrsAge {
		return v, nil
	}
	if ask == nil {
		ask = net.InterfaceAddrs
	}
	v := &hostView{at: time.Now()}
	list, err := ask()
	if err != nil {
		return nil, fmt.Errorf("%w: read this host's addresses: %w", mesh.ErrUnavailable, err)
	}
	for _, a := range list {
		if p, ok := prefixOf(a); ok {
			v.networks = append(v.networks, p)
		}
	}
	h.last.Store(v)
	return v, nil
}

// forget has load ask anew.
func (h *hostAddrs) forget() { h.last.Store(nil) }

// prefixOf reads an interface's address as the net package gives it.
func prefixOf(a net.Addr) (netip.Prefix, bool) {
	n, ok := a.(*net.IPNet)
	if !ok {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	ones, bits := n.Mask.Size()
	if bits != addr.BitLen() { // a mask of the other family, or with holes
		ones = addr.BitLen()
	}
	return netip.PrefixFrom(addr, ones), true
}

// holds reports whether addr is one of the host's addresses.
func (v *hostView) holds(addr netip.Addr) bool {
	return slices.ContainsFunc(v.networks, func(p netip.Prefix) bool { return p.Addr() == addr })
}

// edge reports whether addr means all or any of the machines on one of the
// host's links.
func (v *hostView) edge(addr netip.Addr) bool {
	return slices.ContainsFunc(v.networks, func(p netip.Prefix) bool { return isEdge(p, addr) })
}

// isEdge reports whether addr is no machine of network p but the network
// itself: the first address, which routers answer to (RFC 4291 2.6.1; old IPv4
// hosts take it for a broadcast), or the IPv4 broadcast address. Networks of
// one or two addresses have neither (RFC 3021, RFC 6164).
func isEdge(p netip.Prefix, addr netip.Addr) bool {
	if !p.Contains(addr) || p.Addr().BitLen()-p.Bits() < 2 {
		return false
	}
	if addr == p.Masked().Addr() {
		return true
	}
	// The address after a broadcast address is outside.
	return addr.Is4() && !p.Contains(addr.Next())
}

// isHere reports whether addr is an address of this host, or the public one
// behind which it stands.
func (n *Node) isHere(s *mesh.Snapshot, v *hostView, addr netip.Addr) bool {
	if v.holds(addr) {
		return true
	}
	names := []string{n.cfg.PrimaryEndpoint}
	if self, ok := s.Nodes.Get(n.cfg.ID); ok {
		names = append(names, self.PrimaryEndpoint)
		for _, e := range self.WireGuardEndpoints {
			if e.Addr().Unmap() == addr {
				return true
			}
		}
	}
	return slices.ContainsFunc(names, func(name string) bool {
		public, err := netip.ParseAddr(name)
		return err == nil && public.Unmap() == addr
	})
}

// checkRouted decides about addr, which lies in network p behind some node: here
// reports that it is this host itself, of which only exposed ports are open to
// the mesh. viaHost says that the host's own network stack would connect.
//
// Errors wrap mesh.ErrDenied or mesh.ErrUnavailable.
func (n *Node) checkRouted(s *mesh.Snapshot, p netip.Prefix, addr netip.Addr, viaHost bool) (here bool, err error) {
	switch {
	case !routable(addr):
		return false, fmt.Errorf("%w: %s means another machine on each host", mesh.ErrDenied, addr)
	case mesh.EmbedsIPv4(addr):
		return false, fmt.Errorf("%w: %s stands for an IPv4 address; name that one", mesh.ErrDenied, addr)
	case isEdge(p, addr):
		return false, fmt.Errorf("%w: %s is the network or broadcast address of the route %s; name one machine", mesh.ErrDenied, addr, p)
	case !viaHost:
		return false, nil
	}
	v, err := n.locals.load(n.cfg.InterfaceAddrs)
	if err != nil {
		return false, err
	}
	if n.isHere(s, v, addr) {
		return true, nil
	}
	if v.edge(addr) {
		return false, fmt.Errorf("%w: %s is the network or broadcast address of a link of this host; name one machine", mesh.ErrDenied, addr)
	}
	return false, nil
}
