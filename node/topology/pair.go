// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// maxPairParts bounds the networks of one route in a pair. A route that others
// cut into more stays with the gateways.
const maxPairParts = 256

// Pair returns the peer that node b is for node a when the two, which reach each
// other through gateways, have a WireGuard session of their own: b's own
// addresses and the networks that a reaches through b, as the network ACLs grant
// them; ICE, and the endpoint that b has for everybody, if any. What is routed to
// b loses the networks of the mesh and those that another node has a longer route
// to. Of several routers to one network a may get another one than its gateway
// forwards to: the one that is nearest to a.
//
// The error is a *mesh.Refusal. Its kind is mesh.ErrNotFound where there is no such
// node, mesh.ErrDenied where the ACLs grant one of the two nothing of the
// other, and mesh.ErrPrecondition where a pair is not possible or not needed:
// one of the two takes no part in pairs, or they are neighbours already. Two with
// an edge that stands only as a pair are no neighbours.
func (p *Planner) Pair(a, b mesh.NodeID) (peer mesh.Peer, err error) {
	err = p.work.look(p.snapshot, func(w *work) error {
		from, to, err := w.ends(a, b)
		if err == nil {
			peer, err = w.mayPair(from, to)
		}
		return err
	})
	return peer, err
}

// MaySignal is nil when node a may tell node b how to find a path to it: the two
// may be a pair, or are neighbours by an edge that asks for ICE. The error is as
// that of Pair.
func (p *Planner) MaySignal(a, b mesh.NodeID) error {
	return p.work.look(p.snapshot, func(w *work) error {
		from, to, err := w.ends(a, b)
		if err != nil {
			return err
		}
		if l, ok := from.linkTo(to); ok && l.protocol() == v1.ConnectProtocol_CONNECT_ICE && w.graph.rules.connects(from.class, to.class) {
			return nil
		}
		_, err = w.mayPair(from, to)
		return err
	})
}

// Holder returns the node at which what node a sends to an address arrives, or
// leaves the mesh: the one whose address it is, or that which a reaches the
// longest route to it through. The error is a *mesh.Refusal of the kind mesh.ErrNotFound.
func (p *Planner) Holder(a mesh.NodeID, addr netip.Addr) (id mesh.NodeID, err error) {
	addr = addr.Unmap()
	none := mesh.Refuse(mesh.ErrNotFound, "no node that %q may reach holds the address %s or offers a route to it", a, addr)
	if own, ok := ownerOf(p.snapshot, addr); ok {
		return own, nil
	}
	if p.snapshot.Contains(addr) {
		return "", none // no route leads into the mesh
	}
	err = p.work.look(p.snapshot, func(w *work) error {
		from := w.graph.vertices.get(a)
		if from == nil {
			return none
		}
		id = w.router(from, addr)
		if id == "" {
			return none
		}
		return nil
	})
	return id, err
}

// ownerOf is the node whose own network holds addr, of several the smallest.
func ownerOf(s *mesh.Snapshot, addr netip.Addr) (id mesh.NodeID, ok bool) {
	bits := -1
	for n, network := range s.Nodes.Holders(addr) {
		if network.Bits() > bits {
			id, bits = n.ID, network.Bits()
		}
	}
	return id, bits >= 0
}

// look calls f with the work for s. It is w's own where that can stand at s, as
// for plan, and f has it alone.
func (w *work) look(s *mesh.Snapshot, f func(*work) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.graph != nil && !w.graph.fits(s) && s.Version < w.graph.at.Version {
		other := new(work)
		other.moveTo(s)
		return f(other)
	}
	w.moveTo(s)
	return f(w)
}

// ends returns the vertices of two nodes that take part in pairs.
func (w *work) ends(a, b mesh.NodeID) (from, to *vertex, err error) {
	if a == b {
		return nil, nil, mesh.Refuse(mesh.ErrPrecondition, "%q is the node itself", a)
	}
	var found [2]*vertex
	for i, id := range [2]mesh.NodeID{a, b} {
		n, ok := w.graph.at.Nodes.Get(id)
		v := w.graph.vertices.get(id)
		switch {
		case !ok:
			return nil, nil, mesh.Refuse(mesh.ErrNotFound, "no node %q in the mesh", id)
		case v == nil:
			return nil, nil, mesh.Refuse(mesh.ErrPrecondition, "node %q has no key yet", id)
		case !n.Paths:
			return nil, nil, mesh.Refuse(mesh.ErrPrecondition, "node %q takes no part in pairs: it runs no Meshgate, or one that cannot, or is a gateway", id)
		}
		found[i] = v
	}
	return found[0], found[1], nil
}

// mayPair returns the peer that to is for from in a pair, or why the two are none.
func (w *work) mayPair(from, to *vertex) (mesh.Peer, error) {
	if _, ok := from.linkTo(to); ok && w.graph.rules.connects(from.class, to.class) {
		return mesh.Peer{}, mesh.Refuse(mesh.ErrPrecondition, "nodes %q and %q are neighbours, and have each other for peers already", from.id, to.id)
	}
	peer := w.pair(from, to)
	if len(peer.AllowedIPs) == 0 || len(w.pair(to, from).AllowedIPs) == 0 {
		return mesh.Peer{}, mesh.Refuse(mesh.ErrDenied, "no network ACL lets nodes %q and %q reach each other", from.id, to.id)
	}
	return peer, nil
}

// pair is the peer that to is for from in a pair.
func (w *work) pair(from, to *vertex) mesh.Peer {
	peer := mesh.Peer{Node: to.node, Endpoint: to.learned().endpoint, Protocol: v1.ConnectProtocol_CONNECT_ICE}
	has := func(network netip.Prefix) bool { return hostOf(from.node, network.Addr().Is4()).IsValid() }
	for _, own := range to.learned().own {
		if has(own) {
			peer.AllowedIPs = append(peer.AllowedIPs, w.graph.rules.grants(from.node, to.node, own)...)
		}
	}
	for _, part := range w.routed(from, to) {
		if has(part) {
			peer.AllowedIPs = append(peer.AllowedIPs, w.graph.uncontested(to.id, part)...)
		}
	}
	slices.SortFunc(peer.AllowedIPs, netip.Prefix.Compare)
	peer.AllowedIPs = slices.Compact(peer.AllowedIPs)
	return peer
}

// routed returns the networks that from reaches through to, which offers routes
// to them: of several nodes that offer one, the nearest has it. Most nodes offer
// none, and then nothing is planned for that.
func (w *work) routed(from, to *vertex) []netip.Prefix {
	if len(w.graph.offers[to.id]) == 0 {
		return nil
	}
	n := w.viewOf(from).notes[to]
	if n == nil || !n.known {
		return nil
	}
	return n.nets
}

// viewOf is a view in which the networks that a node reaches are with the nodes
// that offer them.
func (w *work) viewOf(v *vertex) *view {
	if gate := w.gateOf(v); gate != nil {
		return w.view(viewKey{root: gate, viewer: v.class, lone: true}, v.node)
	}
	return w.view(viewKey{root: v, viewer: v.class}, v.node)
}

// router returns the node through which from reaches the longest route to addr;
// empty for none.
func (w *work) router(from *vertex, addr netip.Addr) mesh.NodeID {
	var seen *view
	var best mesh.NodeID
	longest := -1
	for id, networks := range w.graph.offers {
		v := w.graph.vertices.get(id)
		if v == nil || v == from || !slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) }) {
			continue
		}
		if seen == nil {
			seen = w.viewOf(from)
		}
		n := seen.notes[v]
		if n == nil || !n.known {
			continue
		}
		for _, part := range n.nets {
			if part.Contains(addr) && part.Bits() > longest {
				best, longest = id, part.Bits()
			}
		}
	}
	return best
}

// uncontested returns the parts of a network, which lies in one routed to a node,
// that are neither the mesh's own nor routed to another node by a longer prefix;
// nil when these are more than maxPairParts.
func (g *graph) uncontested(id mesh.NodeID, network netip.Prefix) []netip.Prefix {
	offered := -1 // the length of the prefix by which the node has it
	for _, own := range g.offers[id] {
		if own.Bits() <= network.Bits() && own.Contains(network.Addr()) {
			offered = max(offered, own.Bits())
		}
	}
	var holes []netip.Prefix
	for _, own := range g.at.Networks() {
		if network.Overlaps(own) {
			holes = append(holes, own.Masked())
		}
	}
	for other, networks := range g.offers {
		if other == id {
			continue
		}
		for _, longer := range networks {
			if longer.Bits() > offered && longer.Overlaps(network) && !slices.Contains(g.offers[id], longer) {
				holes = append(holes, longer)
			}
		}
	}
	slices.SortFunc(holes, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Compare(b))
	})
	parts := []netip.Prefix{network}
	for _, hole := range holes {
		var next []netip.Prefix
		for _, part := range parts {
			next = append(next, cut(part, hole)...)
		}
		if parts = next; len(parts) > maxPairParts {
			return nil
		}
	}
	return parts
}

// cut returns the parts of a masked network that are outside of another one.
func cut(network, hole netip.Prefix) []netip.Prefix {
	switch {
	case !network.Overlaps(hole):
		return []netip.Prefix{network}
	case hole.Bits() <= network.Bits():
		return nil
	}
	var parts []netip.Prefix
	for network.Bits() < hole.Bits() {
		low, high := halves(network)
		if high.Contains(hole.Addr()) {
			low, high = high, low
		}
		parts, network = append(parts, high), low
	}
	return parts
}

// halves cuts a masked network of more than one address in two.
func halves(network netip.Prefix) (low, high netip.Prefix) {
	raw := network.Addr().AsSlice()
	raw[network.Bits()/8] |= 0x80 >> (network.Bits() % 8)
	upper, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(network.Addr(), network.Bits()+1), netip.PrefixFrom(upper, network.Bits()+1)
}
