// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"net/netip"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// wanted is one thing that a node wants to reach, and what it was told about it.
type wanted struct {
	text string
	addr netip.Addr // invalid for the id of a node
	told bool

	// The answer, and what it was made of.
	peer   mesh.Peer
	reason string
	other  *mesh.Node // nil when there is none
	linked bool       // an edge joins the two
}

// stale returns what s may answer in another way than the state before. What
// concerns neither of the two nodes, ACLs, groups and routes changes no answer,
// and is told by looking whether these are the same memory as before. An answer
// that routes are part of depends on who is nearest, too.
func (f *pairFollower) stale(s *mesh.Snapshot, self *mesh.Node) []*wanted {
	before := f.decided
	f.decided = s
	all := before == nil || self != before.Node(f.id) || s.IPv4 != before.IPv4 || s.IPv6 != before.IPv6 ||
		!mesh.SameList(s.ACLs, before.ACLs) || !mesh.SameList(s.Groups, before.Groups) || !mesh.SameList(s.Routes, before.Routes)
	routers := f.service.forwarders.of(s)
	var list []*wanted
	for _, w := range f.wanted {
		if all || !w.told || s != before && w.mayDiffer(s, f.id, routers) {
			list = append(list, w)
		}
	}
	return list
}

// mayDiffer reports whether other nodes or edges may make another answer.
func (w *wanted) mayDiffer(s *mesh.Snapshot, id mesh.NodeID, routers map[mesh.NodeID]bool) bool {
	if len(routers) > 0 && (w.other == nil && w.addr.IsValid() || routers[id] || w.other != nil && routers[w.other.ID]) {
		return true
	}
	other := w.owner(s)
	if other != w.other {
		return true // or a route leads to the latter, of which any node may be the nearest
	}
	return other != nil && linked(s, id, other.ID) != w.linked
}

// owner is the node that is wanted, or that has the wanted address for its own;
// nil for none.
func (w *wanted) owner(s *mesh.Snapshot) *mesh.Node {
	if !w.addr.IsValid() {
		return s.Node(mesh.NodeID(w.text))
	}
	n, _ := s.NodeByAddr(w.addr)
	return n
}

func linked(s *mesh.Snapshot, a, b mesh.NodeID) bool {
	from, to := s.Node(a), s.Node(b)
	if from == nil || to == nil {
		return false
	}
	_, ok := s.EdgeBetween(from, to)
	return ok
}

// decide makes the answer for node id by s, and reports whether the node has to
// be told.
func (w *wanted) decide(plans PairPlans, s *mesh.Snapshot, id mesh.NodeID) (news bool) {
	next := wanted{text: w.text, addr: w.addr, told: true}
	other := mesh.NodeID(w.text)
	var err error
	if w.addr.IsValid() {
		other, err = plans.Holder(s, id, w.addr)
	}
	if err == nil {
		next.other = s.Node(other)
		next.linked = linked(s, id, other)
		next.peer, err = plans.Pair(s, id, other)
	}
	if err != nil {
		next.peer, next.reason = mesh.Peer{}, words(err)
	}
	news = !w.told || next.reason != w.reason || next.reason == "" && !next.peer.Equal(w.peer)
	*w = next
	return news
}

// words are what an error says to people.
func words(err error) string {
	if refusal, ok := errors.AsType[*mesh.Refusal](err); ok {
		return refusal.Text // the kind is for programs
	}
	return err.Error()
}

// message tells the answer.
func (w *wanted) message() *meshgatev1.Pair {
	m := &meshgatev1.Pair{Wanted: w.text, GoneReason: w.reason}
	if w.reason == "" {
		m.Peer = peerToProto(w.peer)
	}
	return m
}

// forwarders are the nodes that offer routes. They are the same for all who ask
// about one state; the zero value is ready for use.
type forwarders struct {
	mu     sync.Mutex // guards the fields below
	routes []mesh.Route
	groups []mesh.Group
	ids    map[mesh.NodeID]bool
}

// of returns the forwarders of s, whether they are there or not. Nobody changes
// the map.
func (f *forwarders) of(s *mesh.Snapshot) map[mesh.NodeID]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !mesh.SameList(f.routes, s.Routes) || !mesh.SameList(f.groups, s.Groups) {
		f.routes, f.groups, f.ids = s.Routes, s.Groups, make(map[mesh.NodeID]bool)
		for _, id := range policy.RouteForwarders(s) {
			f.ids[id] = true
		}
	}
	return f.ids
}
