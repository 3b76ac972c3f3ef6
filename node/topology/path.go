// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"hash/fnv"

	"github.com/meshgate/meshgate/node/mesh"
)

// path is a way from one node to another.
type path struct {
	// first is the node to which the path goes from its start.
	first  *vertex
	hops   int
	weight int64
	// tie is the sum of the edges' hashes.
	tie uint64
}

// compare orders paths: the shortest first. The first node breaks a tie of
// hashes, so that a plan never depends on the order of a search.
func (p path) compare(q path) int {
	if c := cmp.Or(p.length(q), cmp.Compare(p.tie, q.tie)); c != 0 {
		return c
	}
	if p.first == q.first {
		return 0
	}
	return cmp.Compare(p.first.id, q.first.id)
}

// length compares the length of p with that of q, whatever their edges hash to:
// it is positive when p is longer.
func (p path) length(q path) int {
	return cmp.Or(cmp.Compare(p.hops, q.hops), cmp.Compare(p.weight, q.weight))
}

// along returns the path that goes on over a link to a vertex. Weights are 32 bits
// wide and hops fewer than nodes, so that no sum overflows.
func (p path) along(l link, to *vertex) path {
	next := path{first: p.first, hops: p.hops + 1, weight: p.weight + int64(l.weight), tie: p.tie + l.tie()}
	if p.hops == 0 {
		next.first = to
	}
	return next
}

// tieBits is the length of a tie: so short that sums over paths do not overflow.
const tieBits = 48

// tieOf hashes the edge between two nodes to tieBits. The sums decide between paths
// of equal weight: the same way on every node, in both directions, and for every part
// of a path as for the whole.
func tieOf(a, b mesh.NodeID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(min(a, b)))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(max(a, b)))
	// FNV alone maps similar names to hashes whose sums collide. The finalizer
	// of MurmurHash3 lets every input bit change every output bit.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x >> (64 - tieBits)
}
