// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"crypto/sha256"
	"net/netip"
)

// The IPv6 plan of a mesh: 48 bits name the mesh, the next 64 the node, and
// the last 16 are the node's own to use. v1 nodes write the mesh's prefix with
// a length of 32 although 48 bits are fixed.
const (
	meshBits    = 48
	meshWireLen = 32
	nodeBits    = 112
)

// IPv6Prefix derives a mesh's IPv6 network from entropy: a unique local prefix
// fdXX:XXXX:XXXX::, written /32 as v1 nodes write it. The same entropy gives
// the same prefix.
func IPv6Prefix(entropy []byte) netip.Prefix {
	digest := sha256.Sum256(entropy)
	var addr [16]byte
	addr[0] = 0xfd
	copy(addr[1:meshBits/8], digest[:])
	return netip.PrefixFrom(netip.AddrFrom16(addr), meshWireLen)
}

// NodeIPv6 derives the /112 of the node that holds key within the mesh's IPv6
// network; its first address is the node's own. The zero prefix is returned
// when meshPrefix is not IPv6.
func NodeIPv6(meshPrefix netip.Prefix, key WireGuardKey) netip.Prefix {
	if !meshPrefix.IsValid() || !meshPrefix.Addr().Is6() {
		return netip.Prefix{}
	}
	addr := meshPrefix.Addr().As16()
	digest := sha256.Sum256(key[:])
	copy(addr[meshBits/8:nodeBits/8], digest[:])
	addr[14], addr[15] = 0, 0
	return netip.PrefixFrom(netip.AddrFrom16(addr), nodeBits)
}

// meshNetwork returns the addresses that prefix really means: an IPv6 prefix
// fixes at least 48 bits, whatever its written length.
func meshNetwork(prefix netip.Prefix) netip.Prefix {
	if !prefix.IsValid() {
		return prefix
	}
	bits := prefix.Bits()
	if prefix.Addr().Is6() {
		bits = max(bits, meshBits)
	}
	return netip.PrefixFrom(prefix.Addr(), bits).Masked()
}

// Networks returns the networks of the mesh, IPv4 first, without those it does
// not have. The IPv6 one is a /48: the bits that are really fixed.
func (s *Snapshot) Networks() []netip.Prefix {
	var networks []netip.Prefix
	for _, p := range []netip.Prefix{s.IPv4, s.IPv6} {
		if p.IsValid() {
			networks = append(networks, meshNetwork(p))
		}
	}
	return networks
}

// Contains reports whether addr belongs to a network of the mesh.
func (s *Snapshot) Contains(addr netip.Addr) bool {
	addr = addr.Unmap()
	return meshNetwork(s.IPv4).Contains(addr) || meshNetwork(s.IPv6).Contains(addr)
}

// Routable reports whether a route may lead to network. Networks inside the
// mesh belong to their nodes, and those that CheckSpecial refuses mean something
// else on every node, of which a default route holds some. A network that is
// wider than the mesh is routable: the nodes' own addresses are more specific.
func (s *Snapshot) Routable(network netip.Prefix) bool {
	addr := network.Addr()
	if !network.IsValid() {
		return false
	}
	for _, own := range s.Networks() {
		if own.Bits() <= network.Bits() && own.Contains(addr) {
			return false
		}
	}
	return CheckSpecial(network) == nil
}

// NodeByAddr returns the node that holds addr: its IPv4 address, or any address
// of its IPv6 network.
func (s *Snapshot) NodeByAddr(addr netip.Addr) (*Node, bool) { return s.Nodes.ByAddr(addr) }

// NodeByKey returns the node whose WireGuard key is key.
func (s *Snapshot) NodeByKey(key WireGuardKey) (*Node, bool) {
	if key.IsZero() {
		return nil, false
	}
	return s.Nodes.ByKey(key)
}
