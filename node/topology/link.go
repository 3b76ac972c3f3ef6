// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"cmp"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// link is one end of an edge: 16 bytes without a pointer, of which there are more
// than of anything else.
type link struct {
	// tied is the tie of the edge, and its protocol in the lowest protocolBits.
	tied   uint64
	to     seat
	weight int32
}

// protocolBits are those that a tie leaves free.
const protocolBits = 64 - tieBits

func linkBy(e mesh.Edge, to *vertex) link {
	return link{
		tied: tieOf(e.Source, e.Target)<<protocolBits | uint64(e.Protocol()),
		to:   to.seat, weight: e.Weight,
	}
}

// tie is tieOf the edge.
func (l link) tie() uint64 { return l.tied >> protocolBits }

// protocol is how the ends of the edge reach each other.
func (l link) protocol() v1.ConnectProtocol {
	return v1.ConnectProtocol(l.tied & (1<<protocolBits - 1))
}

// compare orders the links of one vertex: by what is in the link itself, since the
// vertices at the other ends are anywhere in memory.
func (l link) compare(other link) int {
	return cmp.Or(cmp.Compare(l.tie(), other.tie()), cmp.Compare(l.to, other.to))
}

// find returns where the link to a vertex is, or belongs.
func (v *vertex) find(to *vertex) (int, bool) {
	wanted := link{tied: tieOf(v.id, to.id) << protocolBits, to: to.seat}
	return slices.BinarySearchFunc(v.links, wanted, link.compare)
}

// linkTo returns the link to another vertex.
func (v *vertex) linkTo(to *vertex) (link, bool) {
	if i, ok := v.find(to); ok {
		return v.links[i], true
	}
	return link{}, false
}

// set puts a link in, in place of one to the same vertex.
func (v *vertex) set(l link) {
	i, ok := slices.BinarySearchFunc(v.links, l, link.compare)
	if ok {
		v.links[i] = l
		return
	}
	v.links = slices.Insert(v.links, i, l)
}

// drop takes the link to another vertex out.
func (v *vertex) drop(to *vertex) {
	if i, ok := v.find(to); ok {
		v.links = slices.Delete(v.links, i, i+1)
	}
}
