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

	from  mesh.Peers // of the last plan
	lists [][]wg.Peer
	// made tells by the memory of each list of from what was made of it.
	made map[*mesh.Peer]deviceList
}

// deviceList is a list of peers of a plan, and what the device is told of them.
type deviceList struct {
	from []mesh.Peer
	made []wg.Peer
}

// devicePeer is one of a deviceList.
type devicePeer struct {
	from mesh.Peer
	made wg.Peer
}

// of returns what the device is told of the peers of a plan for s, in lists that
// are those of mesh.Peers.Chunks. Nobody changes it. A list of which no peer has
// changed is the memory of the last call.
func (d *devicePeers) of(s *mesh.Snapshot, peers mesh.Peers) [][]wg.Peer {
	if peers.Same(d.from) {
		return d.lists
	}
	made := make(map[*mesh.Peer]deviceList, len(d.made)+1)
	lists := make([][]wg.Peer, 0, len(d.made)+1)
	for list := range peers.Chunks() {
		if known := d.made[&list[0]]; mesh.SameList(known.from, list) {
			made[&list[0]] = known
		}
	}
	replaced := d.without(made)
	for list := range peers.Chunks() {
		known, ok := made[&list[0]]
		if !ok {
			known = d.renew(s, list, replaced)
			made[&list[0]] = known
		}
		lists = append(lists, known.made)
	}
	d.from, d.lists, d.made = peers, lists, made
	return lists
}

// without returns what is known of the peers in lists that are not kept.
func (d *devicePeers) without(kept map[*mesh.Peer]deviceList) map[mesh.NodeID]devicePeer {
	rest := make(map[mesh.NodeID]devicePeer)
	for first, list := range d.made {
		if _, ok := kept[first]; ok {
			continue
		}
		for i, p := range list.from {
			rest[p.Node.ID] = devicePeer{p, list.made[i]}
		}
	}
	return rest
}

// renew makes what the device is told of peers, of which known are not new.
func (d *devicePeers) renew(s *mesh.Snapshot, peers []mesh.Peer, known map[mesh.NodeID]devicePeer) deviceList {
	made := make([]wg.Peer, len(peers))
	for i, p := range peers {
		if was, ok := known[p.Node.ID]; ok && was.from.Shares(p) {
			made[i] = was.made
			continue
		}
		made[i] = d.peer(s, &p)
	}
	return deviceList{peers, made}
}

func (d *devicePeers) peer(s *mesh.Snapshot, p *mesh.Peer) wg.Peer {
	peer := wg.Peer{Key: s.Nodes.WireGuardKey(p.Node), Name: string(p.Node.ID), Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs, Veiled: p.Veiled, Veil: p.Veils}
	if d.calls && p.Endpoint != "" {
		peer.Keepalive = keepalive
	}
	return peer
}
