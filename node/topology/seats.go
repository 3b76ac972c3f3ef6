// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"iter"

	"github.com/meshgate/meshgate/node/mesh"
)

// seat is the number that a vertex has in its graph as long as it is there.
// Links name vertices by it: ten thousand public nodes have more than a million
// links, and the garbage collector passes over what holds no pointers.
type seat int32

// unseated is the seat of a vertex that is gone.
const unseated seat = -1

// seats are the vertices of a graph, found by id and by seat. Whoever removes a
// vertex takes the links to it out first, since the next one that comes is given
// its seat. There is no link to an unseated vertex, so that to look for one finds
// none, and never that to whoever sits there now.
type seats struct {
	byID map[mesh.NodeID]*vertex
	// bySeat is nil where nobody sits, which is at the seats in free.
	bySeat []*vertex
	free   []seat
}

func newSeats(n int) seats {
	return seats{byID: make(map[mesh.NodeID]*vertex, n), bySeat: make([]*vertex, 0, n)}
}

// len returns the number of vertices.
func (s *seats) len() int { return len(s.byID) }

// get returns the vertex of a node; nil if it is none.
func (s *seats) get(id mesh.NodeID) *vertex { return s.byID[id] }

// at returns the vertex that a link names.
func (s *seats) at(n seat) *vertex { return s.bySeat[n] }

// all yields the vertices, in any order.
func (s *seats) all() iter.Seq[*vertex] {
	return func(yield func(*vertex) bool) {
		for _, v := range s.bySeat {
			if v != nil && !yield(v) {
				return
			}
		}
	}
}

// add seats a new vertex.
func (s *seats) add(v *vertex) {
	s.byID[v.id] = v
	if last := len(s.free) - 1; last >= 0 {
		v.seat, s.free = s.free[last], s.free[:last]
		s.bySeat[v.seat] = v
		return
	}
	v.seat = seat(len(s.bySeat))
	s.bySeat = append(s.bySeat, v)
}

// remove unseats a vertex, to which no link leads any more.
func (s *seats) remove(v *vertex) {
	delete(s.byID, v.id)
	s.bySeat[v.seat] = nil
	s.free = append(s.free, v.seat)
	v.seat = unseated
}
