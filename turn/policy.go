// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
)

// policy decides which addresses the relays of a server may exchange packets
// with. It is asked for each permission, for each channel and again for each
// packet, always with the same answer to the same question:
//
//	a UDP listener of this server        never: it would be a loop
//	a relay of this server               yes: two clients meet there
//	in an open network, not own          yes
//	everything else                      only if the allow hook says so
//
// Port 0 names no socket. It is accepted in open networks alone, where a
// permission covers the whole address anyway (RFC 8656 section 9).
type policy struct {
	special   *blocks
	own       atomic.Pointer[[]netip.Addr] // addresses of the host's interfaces and the relay address
	relayIP   netip.Addr
	isRelay   func(port uint16) bool
	listeners []netip.AddrPort // an unspecified address stands for every own one
	open      []openNetwork
	allow     func(user string, peer netip.AddrPort) bool // nil: no
}

// allows says whether the relay of user may talk to peer.
func (p *policy) allows(user string, peer netip.AddrPort) bool {
	outer := peer.Addr().Unmap().WithZone("")
	addr := canonical(outer)
	own := slices.Contains(*p.own.Load(), addr)
	switch {
	case !addr.IsValid(), own && p.isListener(addr, peer.Port()):
		return false
	case addr == p.relayIP && p.isRelay(peer.Port()):
		return true
	case !own && p.isOpen(addr):
		return true
	case p.allow == nil, peer.Port() == 0, addr != outer: // an address within an address is nobody's to allow
		return false
	default:
		return p.allow(user, netip.AddrPortFrom(addr, peer.Port()))
	}
}

func (p *policy) isListener(addr netip.Addr, port uint16) bool {
	return slices.ContainsFunc(p.listeners, func(l netip.AddrPort) bool {
		return l.Port() == port && (l.Addr().IsUnspecified() || l.Addr() == addr)
	})
}

// refresh reads the addresses of the host's interfaces again.
func (p *policy) refresh() error {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	own := []netip.Addr{p.relayIP}
	for _, f := range found {
		if n, ok := f.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, a.Unmap())
			}
		}
	}
	p.own.Store(&own)
	return nil
}

// canonical returns the address that a packet to a may really end at: IPv4
// addresses hide in IPv6 ones in several ways, and each of them has been used
// to walk around a list of denied addresses.
func canonical(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("") // ::ffff:0:0/96
	if !a.Is6() {
		return a
	}
	b := a.As16()
	switch {
	case [12]byte(b[:]) == [12]byte{}, // IPv4-compatible, ::/96
		[12]byte(b[:]) == [12]byte{0x00, 0x64, 0xff, 0x9b}: // NAT64, 64:ff9b::/96 (RFC 6052)
		return netip.AddrFrom4([4]byte(b[12:]))
	case b[0] == 0x20 && b[1] == 0x02: // 6to4, 2002::/16 (RFC 3056)
		return netip.AddrFrom4([4]byte(b[2:]))
	case [4]byte(b[:]) == [4]byte{0x20, 0x01}: // Teredo, 2001::/32 (RFC 4380): the client's address, inverted
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
	default:
		return a
	}
}

// blocks are prefixes by the first byte of their addresses: most packets go to
// an address whose first byte belongs to none.
type blocks [256][]netip.Prefix

func newBlocks(prefixes []netip.Prefix) *blocks {
	var b blocks
	for _, p := range prefixes {
		first := int(p.Addr().AsSlice()[0])
		for i := range 1 << max(0, 8-p.Bits()) {
			b[first+i] = append(b[first+i], p)
		}
	}
	return &b
}

// public says whether the canonical address a is globally reachable unicast:
// outside of the blocks and, for IPv6, inside the only one that IANA gives out.
func (b *blocks) public(a netip.Addr) bool {
	first := a.As16()[0]
	if a.Is4() {
		first = a.As4()[0]
	} else if first>>5 != 1 { // 2000::/3
		return false
	}
	return !slices.ContainsFunc(b[first], func(p netip.Prefix) bool { return p.Contains(a) })
}

// IsPublic says whether a packet to addr would end at globally reachable
// unicast, whatever other address hides in addr.
func IsPublic(addr netip.Addr) bool {
	addr = canonical(addr)
	return addr.IsValid() && newBlocks(specialPurpose()).public(addr)
}

// specialPurpose lists the IANA special-purpose registries for IPv4 and IPv6,
// multicast, and addresses at which clouds serve secrets to their machines.
func specialPurpose() []netip.Prefix {
	var list []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8",         // this network
		"10.0.0.0/8",        // private
		"100.64.0.0/10",     // carrier-grade NAT
		"127.0.0.0/8",       // loopback
		"168.63.129.16/32",  // metadata of Azure
		"169.254.0.0/16",    // link-local, metadata
		"172.16.0.0/12",     // private
		"192.0.0.0/24",      // protocol assignments
		"192.0.2.0/24",      // documentation
		"192.31.196.0/24",   // AS112
		"192.52.193.0/24",   // AMT
		"192.88.99.0/24",    // 6to4 relays
		"192.168.0.0/16",    // private
		"192.175.48.0/24",   // AS112
		"198.18.0.0/15",     // benchmarking
		"198.51.100.0/24",   // documentation
		"203.0.113.0/24",    // documentation
		"224.0.0.0/4",       // multicast
		"240.0.0.0/4",       // reserved, broadcast
		"2001::/23",         // protocol assignments, benchmarking, ORCHID
		"2001:db8::/32",     // documentation
		"2002::/16",         // 6to4
		"2620:4f:8000::/48", // AS112
		"3fff::/20",         // documentation
	} {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}
