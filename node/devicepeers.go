// SPDX-License-Identifier: Apache-2.0

package node

import (
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
)

// devicePeers makes the peers of the WireGuard device from those of plans. From
// one plan to the next it makes only those that changed: a gateway of a large
// mesh has ten thousand, and a new plan with each that joins. One goroutine uses
// it.
type devicePeers struct {
	// calls is true for a node that others cannot call, so that it has to keep
	// its way to them open.
	calls bool

	from []mesh.Peer // of the last plan, by their ids
	made []wg.Peer   // of each of from
}

// of returns what the device is told of peers, which are sorted by id and of a
// plan for s. Nobody changes it.
func (d *devicePeers) of(s *mesh.Snapshot, peers []mesh.Peer) []wg.Peer {
	if mesh.SameList(d.from, peers) {
		return d.made
	}
	made := make([]wg.Peer, len(peers))
	before := 0
	for i := range peers {
		p := &peers[i]
		for before < len(d.from) && d.from[before].Node.ID < p.Node.ID {
			before++
		}
		if before < len(d.from) && samePeer(&d.from[before], p) {
			made[i] = d.made[before]
			continue
		}
		made[i] = d.peer(s, p)
	}
	d.from, d.made = peers, made
	return made
}

// samePeer reports whether the device is told the same of two peers. It may miss
// that they are equal: what plans share, they share as memory.
func samePeer(a, b *mesh.Peer) bool {
	return a.Node == b.Node && a.Endpoint == b.Endpoint && mesh.SameList(a.AllowedIPs, b.AllowedIPs)
}

func (d *devicePeers) peer(s *mesh.Snapshot, p *mesh.Peer) wg.Peer {
	peer := wg.Peer{Key: s.Nodes.WireGuardKey(p.Node), Name: string(p.Node.ID), Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs}
	if d.calls && p.Endpoint != "" {
		peer.Keepalive = keepalive
	}
	return peer
}
