// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
)

// rules are the network ACLs of a snapshot, and what they said so far of the
// classes of nodes. They hold for every snapshot with the same ACLs and groups.
type rules struct {
	*classes
	acls    []mesh.ACL
	groups  []mesh.Group
	network *policy.Network
	// connected and whole are answers that were given before.
	connected, whole map[[2]class]bool
}

func newRules(s *mesh.Snapshot) *rules {
	return &rules{
		classes: newClasses(s), acls: s.ACLs, groups: s.Groups, network: policy.Compile(s),
		connected: make(map[[2]class]bool), whole: make(map[[2]class]bool),
	}
}

// fit reports whether the rules are those of s.
func (r *rules) fit(s *mesh.Snapshot) bool {
	return mesh.SameList(r.acls, s.ACLs) && mesh.SameList(r.groups, s.Groups)
}

// maxAsked bounds what is asked to find out whether ACLs say the same as others.
const maxAsked = 4096

// alike returns the rules of s if the vertices of g, which has other ACLs,
// cannot tell them from those before: they are of the same classes, and these
// may have the same of each other. Classes keep their numbers. Other groups
// offer other routes, too, and are never alike.
func (g *graph) alike(s *mesh.Snapshot) (*rules, bool) {
	if !mesh.SameList(g.rules.groups, s.Groups) {
		return nil, false
	}
	old, r := g.rules, newRules(s)
	r.samples = slices.Clone(old.samples)
	keys := make(map[class]string, len(g.present))
	for v := range g.vertices.all() {
		key := r.key(v.node)
		k, ok := r.byKey[string(key)]
		switch had, seen := keys[v.class]; {
		case !ok && !seen:
			keys[v.class] = string(key)
			r.byKey[string(key)], r.samples[v.class] = v.class, v.node
		case k != v.class || had != string(key):
			return nil, false
		}
	}
	offered := 0
	for _, networks := range g.offers {
		offered += len(networks)
	}
	if n := len(g.present); n*n > maxAsked || n*offered > maxAsked {
		return nil, false
	}
	for a := range g.present {
		for b := range g.present {
			whole := old.grantsWhole(a, b)
			if whole != r.grantsWhole(a, b) || old.connects(a, b) != r.connects(a, b) || !whole && old.connects(a, b) {
				return nil, false
			}
		}
		for id, networks := range g.offers {
			v := g.vertices.get(id)
			for _, network := range networks {
				if v != nil && !slices.Equal(old.grants(r.samples[a], v.node, network), r.grants(r.samples[a], v.node, network)) {
					return nil, false
				}
			}
		}
	}
	return r, true
}

// connects reports whether nodes of two classes may have each other as peers:
// whether their own addresses may exchange packets in some family.
func (r *rules) connects(a, b class) bool {
	pair := [2]class{a, b}
	answer, ok := r.connected[pair]
	if !ok {
		answer = r.decide(r.samples[a], r.samples[b])
		r.connected[pair] = answer
	}
	return answer
}

func (r *rules) decide(a, b *mesh.Node) bool {
	for _, v4 := range []bool{true, false} {
		from, to := hostOf(a, v4), hostOf(b, v4)
		if !from.IsValid() && !to.IsValid() {
			continue
		}
		if r.network.Connects(endpointAt(a, from), endpointAt(b, to)) {
			return true
		}
	}
	return false
}

// grants returns the parts of a network of a node that another one may have.
func (r *rules) grants(to, of *mesh.Node, network netip.Prefix) []netip.Prefix {
	from := endpointAt(to, hostOf(to, network.Addr().Is4()))
	return r.network.Granted(from, endpointAt(of, network))
}

// grantsWhole reports whether nodes of one class may have every address of
// every node of another.
func (r *rules) grantsWhole(to, of class) bool {
	pair := [2]class{to, of}
	answer, ok := r.whole[pair]
	if !ok {
		answer = true
		for _, own := range r.samples[of].Prefixes() {
			parts := r.grants(r.samples[to], r.samples[of], own)
			answer = answer && len(parts) == 1 && parts[0] == own.Masked()
		}
		r.whole[pair] = answer
	}
	return answer
}

// hostOf returns the node's own address of a family; zero if it has none.
func hostOf(n *mesh.Node, v4 bool) netip.Prefix {
	own := n.IPv6
	if v4 {
		own = n.IPv4
	}
	return netip.PrefixFrom(own.Addr(), own.Addr().BitLen())
}

// endpointAt returns n at one of its addresses.
func endpointAt(n *mesh.Node, network netip.Prefix) policy.Endpoint {
	return policy.Endpoint{Node: string(n.ID), Network: network}
}
