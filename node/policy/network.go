// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// Flow is traffic from one address to another. A node or address that is not
// set is unknown: it matches only what matches every node or address.
type Flow struct {
	// SrcNode is the id of the node or the name of the user that sends.
	SrcNode string
	Src     netip.Addr
	// DstNode is the node that holds Dst or forwards to it.
	DstNode mesh.NodeID
	Dst     netip.Addr
}

// Accepts reports whether the network ACLs accept f. The first ACL that
// matches decides; when none does, f is denied. To ask about many flows of one
// snapshot, Compile it once.
func Accepts(s *mesh.Snapshot, f Flow) bool { return Compile(s).Accepts(f) }

// Concerning returns the ACLs that can match traffic from or to node id, in
// order, with all groups expanded, so that a node which does not hold the
// groups decides as one that does. An ACL that names only empty groups matches
// nothing and is left out: an empty list would match everyone.
func Concerning(s *mesh.Snapshot, id mesh.NodeID) []mesh.ACL {
	groups := indexGroups(s.Groups)
	var concerning []mesh.ACL
	for _, acl := range s.ACLs {
		src, dst := groups.nodes(acl.SourceNodes), groups.nodes(acl.DestinationNodes)
		if src.empty() || dst.empty() || !(src.has(string(id)) || dst.has(string(id))) {
			continue
		}
		acl.SourceNodes, acl.DestinationNodes = src.list(), dst.list()
		concerning = append(concerning, acl)
	}
	return concerning
}

// Endpoint is one end of traffic: somebody, and the addresses that are meant.
type Endpoint struct {
	// Node is a node id or user name; empty is unknown.
	Node string
	// Network is every address that traffic may come from or go to; the zero
	// prefix is unknown.
	Network netip.Prefix
}

// Network is the network ACLs of a snapshot, compiled. It is immutable and safe
// for concurrent use.
type Network struct {
	rules []rule
	// cidrs are the networks that ACLs name, each once.
	cidrs []netip.Prefix
}

// rule is one ACL.
type rule struct {
	accept   bool
	src, dst side
}

// side is what an ACL says of one end.
type side struct {
	nodes nameSet
	// networks are empty for every address.
	networks []netip.Prefix
}

// match says how much of an Endpoint a side or rule speaks of.
type match int

const (
	matchNone match = iota
	matchPart
	matchWhole
)

// Compile prepares the ACLs of s.
func Compile(s *mesh.Snapshot) *Network {
	groups := indexGroups(s.Groups)
	n := &Network{rules: make([]rule, len(s.ACLs))}
	for i, acl := range s.ACLs {
		n.rules[i] = rule{
			accept: acl.Accept,
			src:    side{nodes: groups.nodes(acl.SourceNodes), networks: acl.SourceCIDRs},
			dst:    side{nodes: groups.nodes(acl.DestinationNodes), networks: acl.DestinationCIDRs},
		}
		n.cidrs = append(append(n.cidrs, acl.SourceCIDRs...), acl.DestinationCIDRs...)
	}
	for i, cidr := range n.cidrs {
		n.cidrs[i] = cidr.Masked()
	}
	slices.SortFunc(n.cidrs, netip.Prefix.Compare)
	n.cidrs = slices.Compact(n.cidrs)
	return n
}

// Accepts reports whether f is accepted; see the function Accepts.
func (n *Network) Accepts(f Flow) bool {
	src, dst := Endpoint{f.SrcNode, host(f.Src)}, Endpoint{string(f.DstNode), host(f.Dst)}
	return n.decide(func(r *rule) match { return r.match(src, dst) })
}

// Connects reports whether a and b may exchange packets. WireGuard and packet
// filters keep no state to tell replies from requests, so the pair gets one
// decision: that of the first ACL that matches in either direction. An ACL that
// accepts one direction thus lets the replies pass, and one that denies a
// direction is not undone by a weaker one that accepts the opposite.
func (n *Network) Connects(a, b Endpoint) bool {
	return n.decide(func(r *rule) match { return max(r.match(a, b), r.match(b, a)) })
}

// Granted returns the parts of b's network with which a may exchange traffic,
// in order: the whole of it, or what is left when it is cut along the networks
// that ACLs name. It is nil when nothing is granted.
func (n *Network) Granted(a, b Endpoint) []netip.Prefix {
	if !b.Network.IsValid() {
		return nil
	}
	b.Network = b.Network.Masked()
	return n.appendGranted(nil, a, b, n.cidrs)
}

// appendGranted halves b's network until no network among cidrs divides it.
func (n *Network) appendGranted(parts []netip.Prefix, a, b Endpoint, cidrs []netip.Prefix) []netip.Prefix {
	if n.Connects(a, b) {
		return append(parts, b.Network)
	}
	var inside []netip.Prefix
	for _, cidr := range cidrs {
		if cidr != b.Network && contains(b.Network, cidr) {
			inside = append(inside, cidr)
		}
	}
	if len(inside) == 0 {
		return parts
	}
	low, high := halves(b.Network)
	parts = n.appendGranted(parts, a, Endpoint{b.Node, low}, inside)
	return n.appendGranted(parts, a, Endpoint{b.Node, high}, inside)
}

// decide returns what the first matching rule says; no rule denies. An accepting
// rule for a part of the traffic leaves the rest to the rules below; a denying
// rule for a part denies the whole.
func (n *Network) decide(match func(*rule) match) bool {
	for i := range n.rules {
		r := &n.rules[i]
		switch match(r) {
		case matchWhole:
			return r.accept
		case matchPart:
			if !r.accept {
				return false
			}
		}
	}
	return false
}

// match returns how much of the traffic from src to dst the rule speaks of.
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
