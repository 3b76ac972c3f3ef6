// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// match says how much of an Endpoint a side or rule speaks of.
type match int

const (
	matchNone match = iota
	matchPart
	matchWhole
)

// side is what an ACL says of one end.
type side struct {
	nodes nodeSet
	// networks are empty for every address.
	networks []netip.Prefix
}

// match returns how much of the traffic from src to dst the rule speaks of,
// whatever its protocol and port.
func (r *rule) match(src, dst Endpoint) match {
	if m := r.src.match(src); m != matchNone {
		return min(m, r.dst.match(dst))
	}
	return matchNone
}

// match returns how much of e the side speaks of.
func (s *side) match(e Endpoint) match {
	if !s.nodes.has(e.Node) {
		return matchNone
	}
	if len(s.networks) == 0 {
		return matchWhole
	}
	found := matchNone
	for _, p := range s.networks {
		switch {
		case !e.Network.IsValid():
			if p.Bits() == 0 {
				return matchWhole
			}
		case contains(p, e.Network):
			return matchWhole
		case p.Overlaps(e.Network):
			found = matchPart
		}
	}
	return found
}

// traffic is what an ACL says of protocols and ports.
type traffic struct {
	// protocols are sorted; empty is every protocol.
	protocols []mesh.Protocol
	// ports are sorted; empty is every port and what has no ports.
	ports []uint16
}

// all reports whether the ACL speaks of all traffic between its ends.
func (t *traffic) all() bool { return len(t.protocols) == 0 && len(t.ports) == 0 }

// holds reports whether a conversation of protocol p with a port is meant. An
// unknown protocol or port is meant only where all are.
func (t *traffic) holds(p mesh.Protocol, port uint16) bool {
	if len(t.protocols) > 0 && !slices.Contains(t.protocols, p) {
		return false
	}
	if len(t.ports) == 0 {
		return true
	}
	if !p.HasPorts() {
		return false
	}
	_, found := slices.BinarySearch(t.ports, port)
	return found
}

// carries reports whether some packet of protocol p is meant.
func (t *traffic) carries(p mesh.Protocol) bool {
	return (len(t.protocols) == 0 || slices.Contains(t.protocols, p)) && (len(t.ports) == 0 || p.HasPorts())
}

// within reports whether others hold everything that t holds. Others are asked
// about each protocol and port that t names. Where t names none, they are asked
// about those that they name themselves and one that nobody names, since all
// further ones are like it; of protocols with ports there are few.
func (t *traffic) within(others []*traffic) bool {
	if len(others) == 0 {
		// Ports of protocols that have none are nothing at all.
		return len(t.ports) > 0 && len(t.protocols) > 0 && !slices.ContainsFunc(t.protocols, mesh.Protocol.HasPorts)
	}
	protocols, ports := t.protocols, t.ports
	if len(protocols) == 0 {
		for p := range mesh.Protocol(255) {
			if p.HasPorts() {
				protocols = append(protocols, p)
			}
		}
		for _, o := range others {
			protocols = append(protocols, o.protocols...)
		}
		protocols = append(protocols, unnamed(protocols, 255))
	}
	if len(ports) == 0 {
		for _, o := range others {
			ports = append(ports, o.ports...)
		}
		ports = append(ports, unnamed(ports, 65535))
	}
	for _, p := range protocols {
		for _, port := range ports {
			if t.holds(p, port) && !slices.ContainsFunc(others, func(o *traffic) bool { return o.holds(p, port) }) {
				return false
			}
		}
	}
	return true
}

// unnamed returns the largest number up to last that is not in list.
func unnamed[T mesh.Protocol | uint16](list []T, last T) T {
	for last > 1 && slices.Contains(list, last) {
		last--
	}
	return last
}

// halves cuts the masked prefix p, which holds more than one address, in two.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits()
	raw := p.Addr().AsSlice()
	raw[bits/8] |= 0x80 >> (bits % 8)
	upper, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(p.Addr(), bits+1), netip.PrefixFrom(upper, bits+1)
}

// contains reports whether every address of inner is in outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.IsValid() && inner.IsValid() && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// host returns the network of addr alone; zero for the zero address.
func host(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	return netip.PrefixFrom(addr, addr.BitLen())
}
