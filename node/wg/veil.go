// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"net"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// WireGuard sends packets for an address to one peer, and takes packets from it of
// the same one alone. A node that others reach by way of a gateway, and over a
// session of their own besides, is behind one of the two peers at a time: who
// changes from one to the other loses what is on its way, and what the other end
// sends before it has changed as well.
//
// Veiled packets are for that. In them the first byte of both addresses is another
// one, which no node has: the veiled networks are behind the peer of the session,
// and the plain ones stay behind the gateway. Packets are taken from both, and each
// end sends where it wants to, at once and without the other. Veils take no room,
// and what checksums cover is as it was once the packet has arrived.
//
// The first bytes are few, so that no two networks look the same when veiled: for
// IPv4 those of networks that meshes use inside, in what is reserved above
// multicast; for IPv6 global unicast and unique local addresses, in what IANA has
// left unassigned.

// veilable4 are the first bytes of IPv4 addresses that can be veiled. The one at i
// becomes 240+i.
var veilable4 = [...]byte{10, 100, 172, 192, 198}

// veilBytes has for the first byte of an address what stands for it in the first
// table, and the other way round in the second; 0 for nothing.
type veilBytes [2][256]byte

const veiling, lifting = 0, 1

var veils4, veils6 = newVeilBytes()

func newVeilBytes() (v4, v6 veilBytes) {
	for i, b := range veilable4 {
		v4[veiling][b], v4[lifting][240+i] = byte(240+i), b
	}
	for i := range 256 {
		if b := byte(i); b&0xe0 == 0x20 || b&0xfe == 0xfc { // 2000::/3, fc00::/7
			v6[veiling][b], v6[lifting][b^0x80] = b^0x80, b
		}
	}
	return v4, v6
}

// tables are those for addresses of so many bytes.
func tables(size int) *veilBytes {
	if size == net.IPv4len {
		return &veils4
	}
	return &veils6
}

// ends are the addresses in an IP packet; nil for what is none.
func ends(packet []byte) (src, dst []byte) {
	switch ipVersion(packet) {
	case 4:
		return packet[12:16], packet[16:20]
	case 6:
		return packet[8:24], packet[24:40]
	}
	return nil, nil
}

// turn changes both addresses of a packet. It reports false, and changes nothing,
// where one of them cannot be.
func turn(src, dst []byte, which int) bool {
	if len(src) == 0 {
		return false
	}
	table := &tables(len(src))[which]
	from, to := table[src[0]], table[dst[0]]
	if from == 0 || to == 0 {
		return false
	}
	src[0], dst[0] = from, to
	return true
}

// lastEnd is the address in the packet before, of which the next one most likely is,
// too, and what is known of it. The zero value is none.
type lastEnd struct {
	bytes [net.IPv6len]byte
	size  int
	is    bool
}

func (l *lastEnd) same(a []byte) bool { return l.size == len(a) && bytes.Equal(l.bytes[:l.size], a) }

func (l *lastEnd) note(a []byte, is bool) { l.size, l.is = copy(l.bytes[:], a), is }

// turned is an address with its veil, or without; false for one that cannot be.
func turned(a netip.Addr, which int) (netip.Addr, bool) {
	if a.Is4() {
		b := a.As4()
		b[0] = veils4[which][b[0]]
		return netip.AddrFrom4(b), b[0] != 0
	}
	b := a.As16()
	b[0] = veils6[which][b[0]]
	return netip.AddrFrom16(b), b[0] != 0
}

// isVeiled reports whether an address is one that stands for another.
func isVeiled(a netip.Addr) bool {
	_, ok := turned(a, lifting)
	return ok
}

// CanVeil reports whether packets from all addresses of a masked network, and to
// them, can go veiled.
func CanVeil(p netip.Prefix) bool {
	least := 8
	switch a := p.Addr(); {
	case !p.IsValid() || a.Is4In6():
		return false
	case a.Is6() && a.As16()[0]&0xe0 == 0x20:
		least = 3
	case a.Is6():
		least = 7
	}
	_, ok := turned(p.Addr(), veiling)
	return ok && p.Bits() >= least
}

// TouchesVeil reports whether a network holds addresses that veiled packets have:
// who routes it can have none. One of all addresses does no harm.
func TouchesVeil(p netip.Prefix) bool {
	return p.Bits() > 0 && slices.ContainsFunc(veilSpaces[:], p.Overlaps)
}

var veilSpaces = [...]netip.Prefix{
	netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("a000::/3"), netip.MustParsePrefix("7c00::/7"),
}

// networks is all that the library is to have behind the peer.
func (p *Peer) networks() []netip.Prefix {
	if len(p.Veiled) == 0 {
		return p.AllowedIPs
	}
	list := slices.Grow(slices.Clone(p.AllowedIPs), len(p.Veiled))
	for _, plain := range p.Veiled {
		veiled, _ := turned(plain.Addr(), veiling)
		list = append(list, netip.PrefixFrom(veiled, plain.Bits()))
	}
	return list
}

// veiledPeer is a peer from which veiled packets are taken.
type veiledPeer struct {
	contact  *contact
	networks []netip.Prefix // the plain ones
	on       bool           // packets go there veiled
}

// veils are what the gate knows of them. They are immutable.
type veils struct {
	behind *prefixSet // the plain networks
	on     map[*contact]bool
}

// newVeils returns nil for none.
func newVeils(peers map[mesh.WireGuardKey]veiledPeer) *veils {
	if len(peers) == 0 {
		return nil
	}
	v := &veils{on: make(map[*contact]bool)}
	var routes []route
	for _, p := range peers {
		for _, network := range p.networks {
			routes = append(routes, route{network, p.contact})
		}
		if p.on {
			v.on[p.contact] = true
		}
	}
	v.behind = newPrefixSet(routes)
	return v
}

// veiled returns which peers are veiled with the changes, and which of them are so
// before and after as well.
func (d *Device) veiled(ch *changes) (next, still map[mesh.WireGuardKey]veiledPeer) {
	next = make(map[mesh.WireGuardKey]veiledPeer)
	for key, p := range d.veiledPeers {
		next[key] = p
	}
	for _, key := range ch.removed {
		delete(next, key)
	}
	for i := range ch.peers {
		p := &ch.peers[i]
		delete(next, p.Key)
		if len(p.Veiled) > 0 {
			next[p.Key] = veiledPeer{p.contact, slices.Clone(p.Veiled), p.Veil}
		}
	}
	still = make(map[mesh.WireGuardKey]veiledPeer)
	for key, p := range next {
		if was, ok := d.veiledPeers[key]; ok && was.contact == p.contact && slices.Equal(was.networks, p.networks) {
			p.on = p.on && was.on
			still[key] = p
		}
	}
	return next, still
}

// sends reports whether packets to an address go veiled: where the network around
// it is not behind another peer that is nearer.
func (v *veils) sends(routes *prefixSet, dst netip.Addr) bool {
	bits, to := v.behind.find(dst)
	if to == nil || !v.on[to] {
		return false
	}
	plain, _ := routes.find(dst)
	return plain <= bits
}

// veil veils the packets that are to go so.
func (g *gate) veil(v *veils, routes *prefixSet, bufs [][]byte, sizes []int, offset int) {
	if g.veiling != v || g.veilingOf != routes {
		clear(g.veiled[:])
		g.veiling, g.veilingOf = v, routes
	}
	var last lastEnd
	for i, size := range sizes {
		src, dst := ends(bufs[i][offset : offset+size])
		if dst == nil {
			continue
		}
		if !last.same(dst) {
			a, _ := netip.AddrFromSlice(dst)
			known := &g.veiled[spread(a)>>(64-recentBits)]
			if known.dst != a {
				known.dst, known.on = a, v.sends(routes, a)
			}
			last.note(dst, known.on)
		}
		if last.is {
			turn(src, dst, veiling) // what cannot be goes as it would without
		}
	}
}

// Write implements tun.Device.
func (g *gate) Write(bufs [][]byte, offset int) (int, error) {
	g.lift(bufs, offset)
	return g.plane.Write(bufs, offset)
}

// lift lifts the veils of packets that came. Those of a peer that has everything
// behind it may look like veiled ones and be none; the filter drops them.
func (g *gate) lift(bufs [][]byte, offset int) {
	v := g.veils.Load()
	if v == nil {
		return
	}
	var last lastEnd
	for _, buf := range bufs {
		src, dst := ends(buf[offset:])
		if src == nil || tables(len(src))[lifting][src[0]] == 0 {
			continue
		}
		if !last.same(src) {
			a, _ := netip.AddrFromSlice(src)
			plain, _ := turned(a, lifting)
			_, ok := v.behind.match(plain)
			last.note(src, ok)
		}
		if last.is {
			turn(src, dst, lifting)
		}
	}
}

// showVeils makes the networks behind peers those that packets are sent to, as if
// there were no veils. The caller holds changing.
func (d *Device) showVeils(s *uapiState) {
	if d.gate.veils.Load() == nil {
		return
	}
	carried := make(map[netip.Prefix]mesh.WireGuardKey)
	for key, p := range s.peers {
		is := d.applied.peers[key]
		var shown []netip.Prefix
		for _, network := range p.AllowedIPs {
			plain, ok := turned(network.Addr(), lifting)
			switch {
			case !ok:
				shown = append(shown, network)
			case is != nil && is.veil:
				network = netip.PrefixFrom(plain, network.Bits())
				if !slices.Contains(p.AllowedIPs, network) {
					shown = append(shown, network)
				}
				carried[network] = key
			}
		}
		p.AllowedIPs = shown
	}
	for key, p := range s.peers {
		p.AllowedIPs = slices.DeleteFunc(p.AllowedIPs, func(network netip.Prefix) bool {
			by, ok := carried[network]
			return ok && by != key
		})
	}
}
