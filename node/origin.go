// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/meshgate/meshgate/node/mesh"
)

// origins tells which member of the mesh a source address speaks for, so that
// one member is one however many addresses it has. The zero value is ready; it
// is safe for concurrent use.
type origins struct{ last atomic.Pointer[originIndex] }

// originIndex is made for one snapshot and plan. It is immutable.
type originIndex struct {
	snapshot *mesh.Snapshot
	plan     *mesh.Plan
	members  map[netip.Prefix]string
	// bits4 and bits6 are the prefix lengths in use, longest first.
	bits4, bits6 []int
}

// origin names the member that addr speaks for: the node that has it, or that
// routes to it, or else the network that it is in as WireGuard knows it. An
// address that nobody can have is its own member.
func (n *Node) origin(addr netip.Addr) string {
	addr = addr.Unmap()
	s, p := n.snapshot.Load(), n.current.Load()
	index := n.origins.last.Load()
	if index == nil || index.snapshot != s || index.plan != p {
		index = newOriginIndex(s, p)
		n.origins.last.Store(index)
	}
	return index.member(addr)
}

// newOriginIndex reads what is known; both may be nil.
func newOriginIndex(s *mesh.Snapshot, p *mesh.Plan) *originIndex {
	x := &originIndex{snapshot: s, plan: p, members: map[netip.Prefix]string{}}
	if s != nil {
		for _, o := range s.Nodes.All() {
			for _, own := range o.Prefixes() {
				x.add(own.Masked(), string(o.ID))
			}
		}
		for _, r := range s.Routes {
			for _, network := range r.Destinations {
				x.add(network.Masked(), r.Node)
			}
		}
	}
	if p != nil {
		// A node that holds no state does not know who is behind its peers.
		for peer := range p.Peers.All() {
			for _, network := range peer.AllowedIPs {
				x.add(network.Masked(), network.Masked().String())
			}
		}
	}
	longestFirst := func(a, b int) int { return b - a }
	slices.SortFunc(x.bits4, longestFirst)
	slices.SortFunc(x.bits6, longestFirst)
	return x
}

// add keeps the first name of a network.
func (x *originIndex) add(p netip.Prefix, name string) {
	if _, ok := x.members[p]; ok || !p.IsValid() {
		return
	}
	x.members[p] = name
	bits := &x.bits6
	if p.Addr().Is4() {
		bits = &x.bits4
	}
	if !slices.Contains(*bits, p.Bits()) {
		*bits = append(*bits, p.Bits())
	}
}

func (x *originIndex) member(addr netip.Addr) string {
	lengths := x.bits6
	if addr.Is4() {
		lengths = x.bits4
	}
	for _, bits := range lengths {
		if p, err := addr.Prefix(bits); err == nil {
			if name, ok := x.members[p]; ok {
				return name
			}
		}
	}
	return addr.String()
}
