// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/meshgate/meshgate/turn/core"
)

// policy decides which addresses the relays of a server may exchange packets
// with. It is asked for each permission, channel and connection, and for packets:
//
//	a listener of this server            never: it would be a loop
//	a port of TCP that takes mail        never
//	a relay of this server               yes: two clients meet there
//	in an open network, not own          yes
//	everything else                      only if the allow hook says so, for UDP
//
// Port 0 names no socket. It is accepted in open networks alone, where a
// permission covers the whole address anyway (RFC 8656 section 9).
type policy struct {
	special   *blocks
	shut      *blocks                      // of special: what no wider network opens
	own       atomic.Pointer[[]netip.Addr] // addresses of the host's interfaces and of the relays
	open      atomic.Pointer[[]openNetwork]
	relays    *relays
	listeners []netip.AddrPort                            // an unspecified address stands for every own one
	allow     func(user string, peer netip.AddrPort) bool // nil: no
}

// setOpen changes the networks that are open to all users.
func (p *policy) setOpen(networks []netip.Prefix) error {
	open, err := openNetworks(networks, p.special)
	if err != nil {
		return err
	}
	p.open.Store(&open)
	return nil
}

// permit is Permit of core.Config.
func (p *policy) permit(user string, peer core.Peer) bool {
	addr, port := peer.Canonical.Addr(), peer.Canonical.Port()
	own := slices.Contains(*p.own.Load(), addr)
	switch {
	case !addr.IsValid(), own && p.isListener(addr, port), peer.TCP && isMail(port):
		return false
	case !peer.Embedded() && p.relays.isOpen(peer.Canonical, peer.TCP):
		return true
	case !peer.Embedded() && !peer.Traffic && p.relays.mayOpen(peer.Canonical):
		return true
	case !own && p.isOpen(addr):
		return true
	case p.allow == nil, port == 0, peer.TCP, peer.Embedded(): // the hook speaks of UDP; an address within another is nobody's to allow
		return false
	default:
		return p.allow(user, peer.Canonical)
	}
}

// isMail says whether a port of TCP takes mail: what is sent there in the name of a
// gateway ruins its address.
func isMail(port uint16) bool { return port == 25 || port == 465 || port == 587 }

// fleeting is Fleeting of core.Config: relays come and go without a word.
func (p *policy) fleeting(peer netip.AddrPort) bool { return p.relays.isPublic(peer.Addr()) }

func (p *policy) isListener(addr netip.Addr, port uint16) bool {
	return slices.ContainsFunc(p.listeners, func(l netip.AddrPort) bool {
		return l.Port() == port && (l.Addr().IsUnspecified() || l.Addr() == addr)
	})
}

// refresh reads the addresses of the host's interfaces again, and says whether
// they are others.
func (p *policy) refresh() (changed bool, err error) {
	own, err := hostAddrs()
	if err != nil {
		return false, err
	}
	own = append(own, p.relays.public()...)
	before := p.own.Swap(&own)
	return before == nil || !slices.Equal(*before, own), nil
}

// hostAddrs are the addresses of the host's interfaces.
func hostAddrs() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, f := range found {
		if n, ok := f.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(n.IP); ok {
				addrs = append(addrs, a.Unmap())
			}
		}
	}
	return addrs, nil
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

// holds says whether a is in one of the blocks.
func (b *blocks) holds(a netip.Addr) bool {
	return slices.ContainsFunc(b[firstByte(a)], func(p netip.Prefix) bool { return p.Contains(a) })
}

// public says whether the canonical address a is globally reachable unicast:
// outside of the blocks and, for IPv6, inside the only one that IANA gives out.
func (b *blocks) public(a netip.Addr) bool {
	if a.Is6() && firstByte(a)>>5 != 1 { // 2000::/3
		return false
	}
	return !b.holds(a)
}

func firstByte(a netip.Addr) byte {
	if a.Is4() {
		return a.As4()[0]
	}
	return a.As16()[0]
}

// IsPublic says whether a packet to addr would end at globally reachable
// unicast, whatever other address hides in addr.
func IsPublic(addr netip.Addr) bool {
	addr = core.Canonical(addr)
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
