// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// View is how pairs change the plan of a node. Nobody changes it.
type View struct {
	// peers are those that the plan does not have, by their ids. The addresses of
	// one whose session does not stand are left out: a gateway carries them.
	peers []mesh.Peer
	// waiting are peers of the plan whose session does not stand, or that are sent to
	// veiled.
	waiting map[mesh.NodeID]bool
	// veils are what peers of the plan have veiled.
	veils map[mesh.NodeID]veil
}

// Apply returns the plan with the pairs in it. What a peer of the plan loses
// while it waits is what a gateway carries: without one it would be lost.
func (v *View) Apply(plan mesh.Plan) mesh.Plan {
	if len(v.peers) == 0 && len(v.waiting) == 0 && len(v.veils) == 0 {
		return plan
	}
	for p := range plan.Peers.All() {
		veil, veiled := v.veils[p.Node.ID]
		p.Veiled, p.Veils = veil.networks, veil.on
		if v.waiting[p.Node.ID] {
			p.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(a netip.Prefix) bool { return carried(plan.Peers, p.Node.ID, a) })
		}
		if veiled || v.waiting[p.Node.ID] {
			plan.Peers = plan.Peers.With(p)
		}
	}
	taken := make(map[netip.Prefix]bool)
	for _, p := range v.peers {
		for _, a := range p.AllowedIPs {
			taken[a] = true
		}
	}
	if len(taken) > 0 {
		plan.Peers = without(plan.Peers, taken)
	}
	for _, p := range v.peers {
		plan.Peers = plan.Peers.With(p)
	}
	return plan
}

// without returns peers without some networks: WireGuard lets one peer have each.
func without(peers mesh.Peers, networks map[netip.Prefix]bool) mesh.Peers {
	out := peers
	for p := range peers.All() {
		if slices.ContainsFunc(p.AllowedIPs, func(a netip.Prefix) bool { return networks[a] }) {
			p.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(a netip.Prefix) bool { return networks[a] })
			out = out.With(p)
		}
	}
	return out
}

// Peers are those that the plan does not have. Nobody changes the list.
func (v *View) Peers() []mesh.Peer { return v.peers }

// carried reports whether a peer other than id carries all of a network.
func carried(peers mesh.Peers, id mesh.NodeID, network netip.Prefix) bool {
	for p := range peers.All() {
		if p.Node.ID != id && slices.ContainsFunc(p.AllowedIPs, func(a netip.Prefix) bool {
			return a.Bits() <= network.Bits() && a.Contains(network.Addr())
		}) {
			return true
		}
	}
	return false
}

// publish makes the view anew.
func (p *Pairs) publish() {
	v := &View{waiting: make(map[mesh.NodeID]bool), veils: make(map[mesh.NodeID]veil)}
	taken := make(map[netip.Prefix]bool)
	links := slices.SortedFunc(maps.Values(p.links), func(a, b *link) int { return b.answered.Compare(a.answered) })
	veils := p.veil(links)
	for _, l := range links {
		id := l.peer.Node.ID
		switch {
		case l.kind == sought:
			peer := l.peer
			peer.Endpoint = ""
			peer.AllowedIPs = nil
			peer.Veiled, peer.Veils = veils[l].networks, veils[l].on
			for _, a := range l.peer.AllowedIPs {
				// A network that moves from one node to another is behind the one that the
				// directory told of last.
				if l.bare() && !taken[a] {
					taken[a] = true
					peer.AllowedIPs = append(peer.AllowedIPs, a)
				}
			}
			v.peers = append(v.peers, peer)
		case l.kind == edge:
			if v.veils[id] = veils[l]; !l.bare() {
				v.waiting[id] = true
			}
		}
	}
	slices.SortFunc(v.peers, func(a, b mesh.Peer) int { return cmp.Compare(a.Node.ID, b.Node.ID) })
	status := p.statuses()
	p.view.Store(v)
	p.status.Store(&status)
	p.count()
	p.cfg.Publish()
}
