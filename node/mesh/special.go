// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
)

// special is a network that means something else on each host, on each link or
// to a translator: no node stands for it, and none is reached there.
type special struct {
	network netip.Prefix
	what    string
	// embeds marks networks whose addresses stand for IPv4 ones in them.
	embeds bool
}

// specials are the one list of such networks. They are those of the IANA IPv4
// and IPv6 Special-Purpose Address Registries (RFC 6890) that are not globally
// reachable or that lead to a tunnel, multicast, and what the IANA IPv6 Address
// Space has as reserved or deprecated. Left out, since honest meshes route them,
// are private networks (RFC 1918, RFC 4193), the space that carriers share
// (RFC 6598), benchmarks (RFC 2544, RFC 5180) and documentation (RFC 5737,
// RFC 3849, RFC 9637). The metadata services of clouds are not IANA's: their
// vendors document them.
var specials = [...]special{
	{netip.MustParsePrefix("0.0.0.0/8"), "this host and network", false},        // RFC 791
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback", false},                   // RFC 1122
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local", false},              // RFC 3927
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments", false},      // RFC 6890
	{netip.MustParsePrefix("192.88.99.0/24"), "relays of 6to4", false},          // RFC 7526
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast", false},                  // RFC 5771
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved and broadcast", false},     // RFC 1112, RFC 919
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata of a cloud", false},   // Azure
	{netip.MustParsePrefix("::/128"), "no address", false},                      // RFC 4291
	{netip.MustParsePrefix("::1/128"), "loopback", false},                       // RFC 4291
	{netip.MustParsePrefix("::/96"), "IPv4-compatible", true},                   // RFC 4291
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped", true},               // RFC 4291
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "IPv4-translated", true},         // RFC 2765
	{netip.MustParsePrefix("64:ff9b::/96"), "NAT64", true},                      // RFC 6052
	{netip.MustParsePrefix("64:ff9b:1::/48"), "NAT64", true},                    // RFC 8215
	{netip.MustParsePrefix("::/8"), "reserved", false},                          // RFC 4291
	{netip.MustParsePrefix("100::/64"), "discarded", false},                     // RFC 6666
	{netip.MustParsePrefix("100:0:0:1::/64"), "a dummy", false},                 // RFC 9780
	{netip.MustParsePrefix("2001::/32"), "Teredo", true},                        // RFC 4380
	{netip.MustParsePrefix("2001:10::/28"), "identifiers of hosts", false},      // RFC 4843
	{netip.MustParsePrefix("2001:20::/28"), "identifiers of hosts", false},      // RFC 7343
	{netip.MustParsePrefix("2002::/16"), "6to4", true},                          // RFC 3056
	{netip.MustParsePrefix("fd00:ec2::/32"), "metadata of a cloud", false},      // Amazon
	{netip.MustParsePrefix("fd20:ce::254/128"), "metadata of a cloud", false},   // Google
	{netip.MustParsePrefix("fe80::/10"), "link-local", false},                   // RFC 4291
	{netip.MustParsePrefix("fec0::/10"), "site-local, which is no more", false}, // RFC 3879
	{netip.MustParsePrefix("ff00::/8"), "multicast", false},                     // RFC 4291
}

// CheckSpecial refuses a network that holds, or lies in, one for which no node
// can stand. The error wraps ErrInvalid.
func CheckSpecial(network netip.Prefix) error {
	for i := range specials {
		if s := &specials[i]; s.network.Overlaps(network) {
			return fmt.Errorf("%w: %v touches %v (%s), for which no node can stand; leave it out", ErrInvalid, network, s.network, s.what)
		}
	}
	return nil
}

// IsSpecial reports whether no node can be reached at addr from another one.
func IsSpecial(addr netip.Addr) bool {
	for i := range specials {
		if specials[i].network.Contains(addr) {
			return true
		}
	}
	return false
}

// carriers is the space that carriers share (RFC 6598).
var carriers = netip.MustParsePrefix("100.64.0.0/10")

// IsInternet reports whether addr is one to which an exit takes packets: a unicast
// address that is neither special nor, by RFC 1918, RFC 4193 and RFC 6598, of a
// network of somebody's own. What an exit has of these it opens by routes, if at
// all.
func IsInternet(addr netip.Addr) bool {
	return addr.IsValid() && addr.IsGlobalUnicast() && !addr.IsPrivate() && !carriers.Contains(addr) &&
		!addr.Is4In6() && !IsSpecial(addr) && !EmbedsIPv4(addr)
}

// EmbedsIPv4 reports whether addr is an IPv6 address that stands for an IPv4 one
// which a translator or tunnel takes out of it. What the IPv4 address would
// have been refused for, the IPv6 one hides.
func EmbedsIPv4(addr netip.Addr) bool {
	if !addr.Is6() {
		return false
	}
	for i := range specials {
		if s := &specials[i]; s.embeds && s.network.Contains(addr) {
			return true
		}
	}
	// ISATAP, RFC 5214, says it in the interface identifier.
	b := addr.As16()
	return b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe && b[8]&^2 == 0
}
