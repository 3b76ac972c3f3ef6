// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"slices"

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
	made [][]wg.Peer // of all of from in order, in lists of at most listLen
}

// listLen is the most peers of a list: what the device looks at for one that
// changes.
const listLen = 128

// of returns what the device is told of peers, which are sorted by id and of a
// plan for s. Nobody changes it. A list of which no peer has changed is the
// memory of the last call.
func (d *devicePeers) of(s *mesh.Snapshot, peers []mesh.Peer) [][]wg.Peer {
	if mesh.SameList(d.from, peers) {
		return d.made
	}
	made, rest, from := make([][]wg.Peer, 0, len(d.made)+1), peers, d.from
	for i, list := range d.made {
		was := from[:len(list)]
		from = from[len(list):]
		n := len(rest)
		if i < len(d.made)-1 {
			n, _ = slices.BinarySearchFunc(rest, from[0].Node.ID, func(p mesh.Peer, id mesh.NodeID) int { return cmp.Compare(p.Node.ID, id) })
		}
		made = d.renew(made, s, list, was, rest[:n])
		rest = rest[n:]
	}
	made = d.renew(made, s, nil, nil, rest) // all, the first time
	d.from, d.made = peers, made
	return made
}

// renew appends to made what the device is told of peers: list, which is made of
// was, or what is left of it and new.
func (d *devicePeers) renew(made [][]wg.Peer, s *mesh.Snapshot, list []wg.Peer, was, peers []mesh.Peer) [][]wg.Peer {
	if len(peers) == 0 {
		return made
	}
	if len(was) == len(peers) && slices.EqualFunc(was, peers, samePeer) {
		return append(made, list)
	}
	next := make([]wg.Peer, len(peers))
	before := 0
	for i := range peers {
		p := &peers[i]
		for before < len(was) && was[before].Node.ID < p.Node.ID {
			before++
		}
		if before < len(was) && samePeer(was[before], *p) {
			next[i] = list[before]
			continue
		}
		next[i] = d.peer(s, p)
	}
	if len(next) > listLen && len(next) <= 2*listLen {
		half := len(next) / 2
		return append(made, next[:half:half], next[half:])
	}
	return slices.AppendSeq(made, slices.Chunk(next, listLen))
}

// samePeer reports whether the device is told the same of two peers. It may miss
// that they are equal: what plans share, they share as memory.
func samePeer(a, b mesh.Peer) bool {
	return a.Node == b.Node && a.Endpoint == b.Endpoint && mesh.SameList(a.AllowedIPs, b.AllowedIPs)
}

func (d *devicePeers) peer(s *mesh.Snapshot, p *mesh.Peer) wg.Peer {
	peer := wg.Peer{Key: s.Nodes.WireGuardKey(p.Node), Name: string(p.Node.ID), Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs}
	if d.calls && p.Endpoint != "" {
		peer.Keepalive = keepalive
	}
	return peer
}
