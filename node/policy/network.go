// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// Flow is a conversation that one address opens with another. A node or address
// that is not set is unknown: it matches only what matches every node or
// address. So is a protocol, or the port of a protocol that has ports.
type Flow struct {
	// SrcNode is the id of the node or the name of the user that opens it.
	SrcNode string
	Src     netip.Addr
	// DstNode is the node that holds Dst or forwards to it.
	DstNode  mesh.NodeID
	Dst      netip.Addr
	Protocol mesh.Protocol
	// Port is the port at Dst.
	Port uint16
}

// Accepts reports whether the network ACLs accept f. The first ACL that
// matches decides; when none does, f is denied. To ask about many flows of one
// snapshot, Compile it once.
func Accepts(s *mesh.Snapshot, f Flow) bool { return Compile(s).Accepts(f) }

// Expanded is a network ACL in which members stand for groups, so that a node
// which does not hold the groups decides as one that does. It is immutable.
type Expanded struct {
	mesh.ACL
	src, dst nodeSet
}

// Concerns reports whether the ACL can match traffic from or to node id.
func (e *Expanded) Concerns(id mesh.NodeID) bool {
	return e.src.has(string(id)) || e.dst.has(string(id))
}

// Expand returns the ACLs of s, in order, with all groups expanded. An ACL that
// names only empty groups matches nothing and is left out: an empty list would
// match everyone.
func Expand(s *mesh.Snapshot) []Expanded {
	groups := indexGroups(s.Groups)
	var expanded []Expanded
	for _, acl := range s.ACLs {
		e := Expanded{ACL: acl, src: groups.nodes(acl.SourceNodes), dst: groups.nodes(acl.DestinationNodes)}
		if e.src.empty() || e.dst.empty() {
			continue
		}
		e.SourceNodes, e.DestinationNodes = e.src.list(), e.dst.list()
		expanded = append(expanded, e)
	}
	return expanded
}

// Restricted reports whether an ACL of s speaks of protocols or ports, so that
// addresses alone do not tell what may pass.
func Restricted(s *mesh.Snapshot) bool {
	return slices.ContainsFunc(s.ACLs, func(a mesh.ACL) bool { return len(a.Protocols) > 0 || len(a.Ports) > 0 })
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
	// acl is the source of the rule, for explanations.
	acl      *mesh.ACL
	accept   bool
	src, dst side
	traffic
}

// Compile prepares the ACLs of s.
func Compile(s *mesh.Snapshot) *Network {
	groups := indexGroups(s.Groups)
	n := &Network{rules: make([]rule, len(s.ACLs))}
	for i := range s.ACLs {
		acl := &s.ACLs[i]
		n.rules[i] = rule{
			acl:     acl,
			accept:  acl.Accept,
			src:     side{nodes: groups.nodes(acl.SourceNodes), networks: acl.SourceCIDRs},
			dst:     side{nodes: groups.nodes(acl.DestinationNodes), networks: acl.DestinationCIDRs},
			traffic: traffic{protocols: acl.Protocols, ports: acl.Ports},
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

// Decision is what the ACLs say of a flow, and which of them says it.
type Decision struct {
	Allowed bool
	// ACL decided; nil when none matched. It belongs to the snapshot.
	ACL *mesh.ACL
}

// String says why, such as: denied by acl "block-ssh" (priority 100).
func (d Decision) String() string {
	switch {
	case d.ACL == nil:
		return "no ACL accepts"
	case d.Allowed:
		return fmt.Sprintf("accepted by acl %q (priority %d)", d.ACL.Name, d.ACL.Priority)
	default:
		return fmt.Sprintf("denied by acl %q (priority %d)", d.ACL.Name, d.ACL.Priority)
	}
}

// Accepts reports whether f is accepted; see the function Accepts.
func (n *Network) Accepts(f Flow) bool { return n.Decide(f).Allowed }

// Decide returns what decides about f when a gateway opens it in the name of
// SrcNode, as it does for the data channels of users: the first ACL that
// matches f in its own direction.
func (n *Network) Decide(f Flow) Decision {
	src, dst := f.ends()
	for i := range n.rules {
		if r := &n.rules[i]; r.holds(f.Protocol, f.Port) && r.match(src, dst) == matchWhole {
			return Decision{Allowed: r.accept, ACL: r.acl}
		}
	}
	return Decision{}
}

// Opens returns what decides about f when node SrcNode opens it with packets of
// its own: as Decide, but ACLs without protocols and ports match in both
// directions. See Connects for why.
func (n *Network) Opens(f Flow) Decision {
	src, dst := f.ends()
	for i := range n.rules {
		r := &n.rules[i]
		if r.holds(f.Protocol, f.Port) && (r.match(src, dst) == matchWhole || r.all() && r.match(dst, src) == matchWhole) {
			return Decision{Allowed: r.accept, ACL: r.acl}
		}
	}
	return Decision{}
}

// Connects reports whether a and b may exchange packets, of some protocol and
// port at least: what Filter says of packets is decided by Opens, for each.
//
// WireGuard keeps no state to tell replies from requests, so that ACLs without
// protocols and ports decide about the pair: the first that matches in either
// direction. One that accepts one direction thus lets the replies pass, and one
// that denies a direction is not undone by a weaker one that accepts the
// opposite. ACLs with protocols or ports hold in their direction only, where
// packets tell who opened the conversation.
func (n *Network) Connects(a, b Endpoint) bool { return n.connects(a, b).Allowed }

// Between returns what decides whether two nodes may exchange packets at their own
// addresses. One family in which they may is enough; where there is none, it is
// what denies them the first.
func (n *Network) Between(a, b *mesh.Node) Decision {
	var first *Decision
	for _, from := range a.Addrs() {
		for _, to := range b.Addrs() {
			if from.Is4() != to.Is4() {
				continue
			}
			d := n.connects(Endpoint{string(a.ID), host(from)}, Endpoint{string(b.ID), host(to)})
			if d.Allowed {
				return d
			}
			if first == nil {
				first = &d
			}
		}
	}
	if first == nil {
		return Decision{}
	}
	return *first
}

// connects is Connects, with the ACL that says so.
func (n *Network) connects(a, b Endpoint) Decision {
	var denied [2][]*traffic // of restricted ACLs, for a to b and for b to a
	for i := range n.rules {
		r := &n.rules[i]
		there, back := r.match(a, b), r.match(b, a)
		if r.all() {
			switch m := max(there, back); {
			case m == matchWhole:
				return Decision{Allowed: r.accept, ACL: r.acl}
			case m == matchPart && !r.accept:
				return Decision{ACL: r.acl}
			}
			continue
		}
		for direction, m := range [2]match{there, back} {
			switch {
			case m != matchNone && !r.accept:
				denied[direction] = append(denied[direction], &r.traffic)
			case m == matchWhole && r.accept && !r.within(denied[direction]):
				return Decision{Allowed: true, ACL: r.acl}
			}
		}
	}
	return Decision{}
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

// ends returns the two ends of f.
func (f Flow) ends() (src, dst Endpoint) {
	return Endpoint{f.SrcNode, host(f.Src)}, Endpoint{string(f.DstNode), host(f.Dst)}
}
