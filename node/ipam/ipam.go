// SPDX-License-Identifier: Apache-2.0

// Package ipam chooses the IPv4 addresses of nodes. A choice depends on nothing
// but the replicated state and the operator's static assignments, so that every
// replica makes the same one and a restart forgets nothing: an address is held
// as long as the record of its node is there, and free from then on.
package ipam

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/meshgate/meshgate/node/mesh"
)

// Held tells which addresses nodes hold; mesh.Nodes does.
type Held interface {
	// NextFreeIPv4 returns the first address from addr on that no node holds;
	// the zero Addr when there is none.
	NextFreeIPv4(addr netip.Addr) netip.Addr
	// ByAddr returns the node that holds addr.
	ByAddr(addr netip.Addr) (*mesh.Node, bool)
}

// Pool chooses addresses. It is immutable.
type Pool struct {
	static   map[mesh.NodeID]netip.Addr
	reserved map[netip.Addr]mesh.NodeID
}

// New returns a pool that gives each node in static its address and no other
// node any of them. The error wraps mesh.ErrInvalid and names the node whose
// assignment makes no sense.
func New(static map[mesh.NodeID]netip.Addr) (*Pool, error) {
	p := &Pool{static: maps.Clone(static), reserved: make(map[netip.Addr]mesh.NodeID, len(static))}
	for _, id := range slices.Sorted(maps.Keys(static)) {
		addr := static[id]
		if !addr.Is4() {
			return nil, fmt.Errorf("static address of node %q: %v is no IPv4 address: %w", id, addr, mesh.ErrInvalid)
		}
		if other, ok := p.reserved[addr]; ok {
			return nil, fmt.Errorf("static address of node %q: node %q has %v, too: %w", id, other, addr, mesh.ErrInvalid)
		}
		p.reserved[addr] = id
	}
	return p, nil
}

// Static returns the address that was assigned to a node by hand.
func (p *Pool) Static(id mesh.NodeID) (netip.Addr, bool) {
	addr, ok := p.static[id]
	return addr, ok
}

// Choose returns the address of node id in the IPv4 network as a /32: the static
// one, else the first behind last that nobody holds and that is not somebody's
// static one, going on from the beginning at the end of the network. With last
// being the one that was handed out before, an address that became free is the
// last to be handed out again. The network's own address and the broadcast
// address are left out; a /31 and a /32 thus hold none.
//
// The error wraps mesh.ErrInvalid when network is no IPv4 network,
// mesh.ErrPrecondition when the static address cannot be had, and
// mesh.ErrExhausted when every address is held. Whoever needs the address
// reserves it in the same change of the state as it was chosen from.
func (p *Pool) Choose(network netip.Prefix, id mesh.NodeID, last netip.Addr, held Held) (netip.Prefix, error) {
	if !network.IsValid() || !network.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("choose address: %v is no IPv4 network: %w", network, mesh.ErrInvalid)
	}
	// hosts are between first and end.
	first, end := network.Masked().Addr().Next(), lastOf(network)
	if addr, ok := p.static[id]; ok {
		if !Usable(network, addr) {
			return netip.Prefix{}, fmt.Errorf("choose address: the static address %v of node %q is none for a node in %v; assign another one: %w", addr, id, network, mesh.ErrPrecondition)
		}
		if other, ok := held.ByAddr(addr); ok && other.ID != id {
			return netip.Prefix{}, fmt.Errorf("choose address: node %q holds the static address %v of node %q; remove that node first: %w", other.ID, addr, id, mesh.ErrPrecondition)
		}
		return host(addr), nil
	}
	start := first
	if network.Contains(last) && last.Less(end) {
		start = last.Next()
	}
	for _, part := range [][2]netip.Addr{{start, end}, {first, start}} {
		if addr := p.free(part[0], part[1], held); addr.IsValid() {
			return host(addr), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose address: every address of %v is taken; remove nodes that are gone: %w", network, mesh.ErrExhausted)
}

// free returns the first free address from addr up to end; the zero Addr when
// there is none.
func (p *Pool) free(addr, end netip.Addr, held Held) netip.Addr {
	for {
		addr = held.NextFreeIPv4(addr)
		if !addr.IsValid() || !addr.Less(end) {
			return netip.Addr{}
		}
		if _, ok := p.reserved[addr]; !ok {
			return addr
		}
		addr = addr.Next()
	}
}

// Usable says whether a node in an IPv4 network can have addr: it is in there, and
// neither the network's own address nor the broadcast address.
func Usable(network netip.Prefix, addr netip.Addr) bool {
	return network.Contains(addr) && network.Masked().Addr().Less(addr) && addr.Less(lastOf(network))
}

func host(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// lastOf returns the last address of an IPv4 network.
func lastOf(prefix netip.Prefix) netip.Addr {
	raw := prefix.Masked().Addr().As4()
	hosts := uint32(1)<<(32-prefix.Bits()) - 1 // the shift gives 0 for a /0, and 0 - 1 is every bit
	binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(raw[:])|hosts)
	return netip.AddrFrom4(raw)
}
