// SPDX-License-Identifier: Apache-2.0

package core

import "net/netip"

// Peer is a peer as Permit sees it.
type Peer struct {
	// Wire is the address that the client named and that packets are sent to.
	Wire netip.AddrPort
	// Canonical is the same with the address that such packets may really end
	// at. Decide by it. Port 0 is a permission for all ports of the address:
	// what is sent under it is asked about again with its port.
	Canonical netip.AddrPort
	// TCP says that it is a peer of a TCP relay, else of a UDP one.
	TCP bool
	// Traffic says that something is to be sent to it, or has come from it; else
	// it is asked about for a permission or a channel, which is only the right to
	// ask again.
	Traffic bool
}

// Embedded reports whether one address hides in the other.
func (p Peer) Embedded() bool { return p.Wire != p.Canonical }

// Canonical returns the address at which a packet to a may really end. IPv4
// addresses hide in IPv6 ones in several ways, and each of them has been used
// to walk around a list of denied addresses. It is invalid for addresses of
// which nobody but their network can tell, which must be denied.
func Canonical(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("") // ::ffff:0:0/96
	if !a.Is6() {
		return a
	}
	b := a.As16()
	switch {
	case [12]byte(b[:]) == [12]byte{}, // IPv4-compatible, ::/96
		[12]byte(b[:]) == [12]byte{0x00, 0x64, 0xff, 0x9b}: // NAT64, 64:ff9b::/96 (RFC 6052)
		return netip.AddrFrom4([4]byte(b[12:]))
	case [6]byte(b[:]) == [6]byte{0x00, 0x64, 0xff, 0x9b, 0x00, 0x01}: // 64:ff9b:1::/48 (RFC 8215)
		return netip.Addr{} // where in it the IPv4 address is depends on the network
	case b[0] == 0x20 && b[1] == 0x02: // 6to4, 2002::/16 (RFC 3056)
		return netip.AddrFrom4([4]byte(b[2:]))
	case [4]byte(b[:]) == [4]byte{0x20, 0x01}: // Teredo, 2001::/32 (RFC 4380): the client's address, inverted
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
	default:
		return a
	}
}

// permits is the one place where a peer is judged: for permissions, channels,
// packets in both directions and connections.
func (c *Core) permits(a *allocation, wire netip.AddrPort, traffic bool) bool {
	addr := Canonical(wire.Addr())
	if !addr.IsValid() || wire.Addr().Is4In6() || c.cfg.Permit == nil {
		return false // an IPv4-mapped address is no address on any wire
	}
	canonical := netip.AddrPortFrom(addr, wire.Port())
	for _, l := range c.cfg.Listeners {
		if l.Addr == canonical {
			return false // a relay that talks to this server is a loop
		}
	}
	return c.cfg.Permit(a.user, Peer{Wire: wire, Canonical: canonical, TCP: a.transport == TCP, Traffic: traffic})
}

// allowed is permits for packets, with the verdict kept until the policy changes.
func (c *Core) allowed(a *allocation, p *peer) bool {
	switch {
	case p.policy != c.policy:
		p.policy = c.policy
		p.fleeting = c.cfg.Fleeting != nil && c.cfg.Fleeting(netip.AddrPortFrom(Canonical(p.addr.Addr()), p.addr.Port()))
	case !p.fleeting:
		return p.allowed
	}
	p.allowed = c.permits(a, p.addr, true)
	return p.allowed
}
