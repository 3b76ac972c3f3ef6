// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"iter"
	"reflect"
	"slices"
)

// Peers is an immutable list of the peers of a plan, each of another node, in the
// order of the nodes' ids. A list that is made from another one shares almost all
// memory with it, so that a change costs about the same however many peers there
// are, and readers may pass over what they have seen before: see Changes and
// Chunks. Nobody changes what a peer in it points to. The zero value is empty.
type Peers struct{ list sorted[Peer] }

// PeersOf returns the list of peers, which come in any order. Of several of one
// node it has the last. It takes over the memory of peers.
func PeersOf(peers ...Peer) Peers {
	slices.SortStableFunc(peers, comparePeers)
	unique := peers[:0]
	for i, p := range peers {
		if i == len(peers)-1 || p.Node.ID != peers[i+1].Node.ID {
			unique = append(unique, p)
		}
	}
	clear(peers[len(unique):])
	return Peers{sorted[Peer]{
		chunks: slices.Collect(slices.Chunk(unique, chunkLen)), n: len(unique),
	}}
}

// Len returns the number of peers.
func (p Peers) Len() int { return p.list.len() }

// Get returns the peer that is the node with the given id.
func (p Peers) Get(id NodeID) (Peer, bool) { return p.list.get(peerAt(id)) }

// All yields the peers in order.
func (p Peers) All() iter.Seq[Peer] { return p.list.all() }

// With returns the list with a peer in it, in place of one that is the same node.
func (p Peers) With(peer Peer) Peers { return Peers{p.list.with(peer, peerAt(peer.Node.ID))} }

// Without returns the list without the peer that is the node with the given id.
func (p Peers) Without(id NodeID) Peers { return Peers{p.list.without(peerAt(id))} }

// Changes yields what became of the peers of old, in order: each peer that differs
// as it was and as it is, with the zero Peer where it is not there. Parts that are
// the same memory are equal; those that are not may be, and the peer is told then.
// It costs what differs when one list was made from the other in a few changes.
func (p Peers) Changes(old Peers) iter.Seq2[Peer, Peer] {
	return p.list.changes(old.list, comparePeers, Peer.Shares)
}

// Same reports whether two lists are the same memory. They are equal then; lists
// that are not may be.
func (p Peers) Same(other Peers) bool { return SameList(p.list.chunks, other.list.chunks) }

// Chunks yields the peers in order, in lists of 1 to 128. Those of which no peer has
// changed since p was made from another list are the same memory as there, as
// SameList tells.
func (p Peers) Chunks() iter.Seq[[]Peer] { return slices.Values(p.list.chunks) }

// Shares reports whether p says the same as another peer, in the same memory where
// there is much of it. Plans share what has not changed.
func (p Peer) Shares(other Peer) bool {
	return p.Node == other.Node && p.Endpoint == other.Endpoint && p.Protocol == other.Protocol &&
		SameList(p.AllowedIPs, other.AllowedIPs) && SameList(p.Veiled, other.Veiled) && p.Veils == other.Veils
}

// Equal reports whether p says the same as another peer, in whatever memory. The
// zero Peer, which is none, equals itself alone.
func (p Peer) Equal(other Peer) bool {
	return p.Endpoint == other.Endpoint && p.Protocol == other.Protocol && slices.Equal(p.AllowedIPs, other.AllowedIPs) &&
		slices.Equal(p.Veiled, other.Veiled) && p.Veils == other.Veils &&
		(p.Node == other.Node || reflect.DeepEqual(p.Node, other.Node))
}

func comparePeers(a, b Peer) int { return cmp.Compare(a.Node.ID, b.Node.ID) }

func peerAt(id NodeID) func(Peer) int {
	return func(p Peer) int { return cmp.Compare(p.Node.ID, id) }
}
