// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/meshgate/meshgate/node/mesh"
)

// IP header layout that the data path needs.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	ipv4TTL       = 8
	ipv4Checksum  = 10
	ipv6HopLimit  = 7
)

// verdict says what becomes of a packet that a peer sent.
type verdict uint8

const (
	// deliver: the packet is for an address of ours.
	deliver verdict = iota
	// forward: the packet is for somebody else, who may have it.
	forward
	// dropMalformed: the packet has no readable IP header.
	dropMalformed
	// dropMartian: no honest router would send the packet on.
	dropMartian
	// dropDenied: Config.Allow or Config.Accept refused it.
	dropDenied
	// dropNoRoute: the packet is for an unused address of our own network.
	dropNoRoute
)

// reason names a verdict that drops.
func (v verdict) reason() dropReason {
	switch v {
	case dropMalformed:
		return reasonMalformed
	case dropMartian:
		return reasonMartian
	case dropDenied:
		return reasonDenied
	}
	return reasonNoRoute
}

// rules are what decides about packets from peers. They are immutable.
type rules struct {
	// prefixes is Config.Addresses.
	prefixes []netip.Prefix
	// own are our addresses, a handful.
	own []netip.Addr
	// networks are our own prefixes that hold more than one address.
	networks []netip.Prefix
	// routes are the allowed IPs of all peers.
	routes *prefixSet
	// lazy is true when some of the peers may be idle.
	lazy bool
	// allow, accept and sent are those of Config.
	allow, accept func(mesh.Packet) bool
	sent          func(mesh.Packet)
	// seek is that of Config.
	seek func(netip.Addr)
}

// newRules returns the rules of a valid configuration; routes are the allowed
// IPs of its peers.
func newRules(c *Config, routes *prefixSet) *rules {
	r := &rules{routes: routes, allow: c.Allow, accept: c.Accept, sent: c.Sent, seek: c.Seek, prefixes: slices.Clone(c.Addresses)}
	for _, p := range c.Addresses {
		r.own = append(r.own, p.Addr())
		if !p.IsSingleIP() {
			r.networks = append(r.networks, p.Masked())
		}
	}
	return r
}

// ownAddr reports whether a is one of our addresses.
func (r *rules) ownAddr(a netip.Addr) bool { return slices.Contains(r.own, a) }

// source returns our first address of the family of dst.
func (r *rules) source(dst netip.Addr) (netip.Addr, bool) {
	for _, a := range r.own {
		if a.Is4() == dst.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// reachable reports whether a is ours or behind a peer.
func (r *rules) reachable(a netip.Addr) bool {
	if r.ownAddr(a) {
		return true
	}
	_, ok := r.routes.match(a)
	return ok
}

// judge decides about one decrypted packet.
func (r *rules) judge(packet []byte) verdict {
	src, dst, ok := addresses(packet)
	switch {
	case !ok:
		return dropMalformed
	case martian(src) || r.ownAddr(src) || isVeiled(src):
		return dropMartian
	case r.ownAddr(dst):
		if r.accept != nil && !r.accept(describe(packet)) {
			return dropDenied
		}
		return deliver
	case martian(dst):
		return dropMartian
	case r.unassigned(dst):
		return dropNoRoute
	case r.allow != nil && !r.allow(describe(packet)):
		return dropDenied
	}
	return forward
}

// observe tells Config.Sent of the packets that are our own.
func (r *rules) observe(bufs [][]byte, sizes []int, offset int) {
	if r.sent == nil {
		return
	}
	for i, size := range sizes {
		packet := bufs[i][offset : offset+size]
		if src, _, ok := addresses(packet); ok && r.ownAddr(src) {
			r.sent(describe(packet))
		}
	}
}

// unassigned reports whether a lies in a network of ours that no peer has a
// more specific claim on. Sent on, such a packet would come back to us until
// its hop limit ran out.
func (r *rules) unassigned(a netip.Addr) bool {
	for _, own := range r.networks {
		if own.Contains(a) {
			bits, ok := r.routes.match(a)
			return !ok || bits <= own.Bits()
		}
	}
	return false
}

// martian reports whether a is an address that never belongs into a tunnel.
func martian(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || a.Is4In6()
}

// addresses reads source and destination of an IP packet.
func addresses(packet []byte) (src, dst netip.Addr, ok bool) {
	switch ipVersion(packet) {
	case 4:
		return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20])), true
	case 6:
		return netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40])), true
	}
	return src, dst, false
}

// ipVersion returns 4 or 6 for a packet that holds a whole fixed header of
// that version, else 0.
func ipVersion(packet []byte) int {
	switch {
	case len(packet) >= ipv4HeaderLen && packet[0]>>4 == 4 && packet[0]&15 >= 5:
		return 4
	case len(packet) >= ipv6HeaderLen && packet[0]>>4 == 6:
		return 6
	}
	return 0
}

// decrementTTL takes one hop off a packet that judge let pass. It reports
// false, and changes nothing, when that was the last.
func decrementTTL(packet []byte) bool {
	if packet[0]>>4 == 6 {
		if packet[ipv6HopLimit] <= 1 {
			return false
		}
		packet[ipv6HopLimit]--
		return true
	}
	if packet[ipv4TTL] <= 1 {
		return false
	}
	packet[ipv4TTL]--
	// RFC 1624: the checksum word moves by as much as the TTL word did, the
	// other way, in one's complement.
	sum := uint32(binary.BigEndian.Uint16(packet[ipv4Checksum:])) + 0x0100
	if sum >= 0xffff {
		sum++
	}
	binary.BigEndian.PutUint16(packet[ipv4Checksum:], uint16(sum))
	return true
}

// filter holds the current rules for readers that must not wait.
type filter struct{ current atomic.Pointer[rules] }

// load returns the current rules, never nil.
func (f *filter) load() *rules {
	if r := f.current.Load(); r != nil {
		return r
	}
	return &rules{}
}
