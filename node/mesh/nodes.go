// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"hash/fnv"
	"iter"
	"net/netip"
)

// Nodes is an immutable set of nodes, found by id, key and address without
// looking at all of them. A set that is made from another one shares almost all
// memory with it, so that a change costs about the same however many nodes
// there are. Nobody changes a node that is in a set. The zero value is empty.
type Nodes struct{ index *nodeIndex }

// nodeIndex is the content of Nodes. It is immutable.
type nodeIndex struct {
	byID, byKey, byIPv4, byIPv6 sorted[*entry]
	// public, zoned and gateways are the nodes that have implicit edges; see
	// Snapshot.EdgesOf.
	public, zoned, gateways sorted[*entry]
}

// entry is a node with what it is found by.
type entry struct {
	node *Node
	key  WireGuardKey
	// block is the /112 that holds the node's IPv6 network.
	block netip.Addr
	// place is where the node stands among the public ones; see ring.
	place uint64
}

var emptyIndex = &nodeIndex{}

// NodesOf returns the set of list. Of several nodes with one id it has the last.
func NodesOf(list ...*Node) Nodes {
	var s Nodes
	for _, n := range list {
		s = s.With(n)
	}
	return s
}

func (s Nodes) get() *nodeIndex {
	if s.index == nil {
		return emptyIndex
	}
	return s.index
}

// Len returns the number of nodes.
func (s Nodes) Len() int { return s.get().byID.len() }

// Get returns the node with the given id.
func (s Nodes) Get(id NodeID) (*Node, bool) {
	e, ok := s.get().byID.get(atID(id))
	if !ok {
		return nil, false
	}
	return e.node, true
}

// WireGuardKey is the key by which WireGuard knows n: n.PublicKey.WireGuard(),
// which takes some microseconds, once for a node of the set.
func (s Nodes) WireGuardKey(n *Node) WireGuardKey {
	if e, ok := s.get().byID.get(atID(n.ID)); ok && e.node.PublicKey == n.PublicKey {
		return e.key
	}
	return n.PublicKey.WireGuard()
}

// All yields the nodes in the order of their ids.
func (s Nodes) All() iter.Seq2[NodeID, *Node] {
	return func(yield func(NodeID, *Node) bool) {
		for e := range s.get().byID.all() {
			if !yield(e.node.ID, e.node) {
				return
			}
		}
	}
}

// Changes yields what became of the nodes of old, in the order of their ids:
// each node that differs as it was and as it is, nil where it is not there. It
// costs what differs when one set was made from the other in a few changes.
func (s Nodes) Changes(old Nodes) iter.Seq2[*Node, *Node] {
	same := func(a, b *entry) bool { return a == b }
	order := func(a, b *entry) int { return cmp.Compare(a.node.ID, b.node.ID) }
	return func(yield func(before, after *Node) bool) {
		for a, b := range s.get().byID.changes(old.get().byID, order, same) {
			if !yield(a.orNil(), b.orNil()) {
				return
			}
		}
	}
}

func (e *entry) orNil() *Node {
	if e == nil {
		return nil
	}
	return e.node
}

// With returns the set with n in it, in place of a node with the same id.
func (s Nodes) With(n *Node) Nodes {
	e := &entry{node: n, place: placeOf(n.ID)}
	if n.IPv6.IsValid() {
		e.block = blockOf(n.IPv6.Addr())
	}
	old, existed := s.get().byID.get(atID(n.ID))
	if existed && old.node.PublicKey == n.PublicKey {
		e.key = old.key
	} else {
		e.key = n.PublicKey.WireGuard() // some microseconds
	}
	next := *s.get()
	next.byID = next.byID.with(e, atID(n.ID))
	if existed {
		next.drop(old, e)
	}
	next.add(e)
	return Nodes{&next}
}

// Without returns the set without the node with the given id.
func (s Nodes) Without(id NodeID) Nodes {
	old, ok := s.get().byID.get(atID(id))
	if !ok {
		return s
	}
	next := *s.get()
	next.byID = next.byID.without(atID(id))
	next.drop(old, nil)
	return Nodes{&next}
}

// add puts e into every index by which it can be found, but byID.
func (x *nodeIndex) add(e *entry) {
	if !e.key.IsZero() {
		x.byKey = x.byKey.with(e, atKey(e.key, e.node.ID))
	}
	if e.node.IPv4.IsValid() {
		x.byIPv4 = x.byIPv4.with(e, atIPv4(e.node.IPv4.Addr(), e.node.ID))
	}
	if e.node.IPv6.IsValid() {
		x.byIPv6 = x.byIPv6.with(e, atBlock(e.block, e.node.ID))
	}
	if !e.node.linksItself() {
		return
	}
	x.public = x.public.with(e, atPlace(e.place, e.node.ID))
	if e.node.Zone != "" {
		x.zoned = x.zoned.with(e, atZone(e.node.Zone, e.place, e.node.ID))
	}
	if e.node.HoldsState() {
		x.gateways = x.gateways.with(e, atPlace(e.place, e.node.ID))
	}
}

// drop takes e out of every index, but byID, in which next does not replace it.
func (x *nodeIndex) drop(e, next *entry) {
	n, id := e.node, e.node.ID
	if !e.key.IsZero() && (next == nil || next.key != e.key) {
		x.byKey = x.byKey.without(atKey(e.key, id))
	}
	if n.IPv4.IsValid() && (next == nil || next.node.IPv4.Addr() != n.IPv4.Addr()) {
		x.byIPv4 = x.byIPv4.without(atIPv4(n.IPv4.Addr(), id))
	}
	if n.IPv6.IsValid() && (next == nil || next.block != e.block) {
		x.byIPv6 = x.byIPv6.without(atBlock(e.block, id))
	}
	if !n.linksItself() {
		return
	}
	if next == nil || !next.node.linksItself() {
		x.public = x.public.without(atPlace(e.place, id))
	}
	if n.Zone != "" && (next == nil || !next.node.linksItself() || next.node.Zone != n.Zone) {
		x.zoned = x.zoned.without(atZone(n.Zone, e.place, id))
	}
	x.gateways = x.gateways.without(atPlace(e.place, id))
}

// ByKey returns the node whose WireGuard key is key.
func (s Nodes) ByKey(key WireGuardKey) (*Node, bool) {
	for e := range s.get().byKey.from(atKey(key, "")) {
		if e.key != key {
			break
		}
		return e.node, true
	}
	return nil, false
}

// ByAddr returns the node that holds addr: its IPv4 address, or any address of
// its IPv6 network.
func (s Nodes) ByAddr(addr netip.Addr) (*Node, bool) {
	addr = addr.Unmap()
	if !addr.IsValid() || addr.Zone() != "" {
		return nil, false
	}
	return s.Overlapping(netip.PrefixFrom(addr, addr.BitLen()))
}

// Holders yields all nodes that hold addr, as ByAddr finds one, by their ids, each
// with its network that addr is in. Several do when records contradict each other.
func (s Nodes) Holders(addr netip.Addr) iter.Seq2[*Node, netip.Prefix] {
	addr = addr.Unmap()
	return func(yield func(*Node, netip.Prefix) bool) {
		switch {
		case addr.Is4():
			for e := range s.get().byIPv4.from(atIPv4(addr, "")) {
				if e.node.IPv4.Addr() != addr || !yield(e.node, e.node.IPv4) {
					return
				}
			}
		case addr.Is6():
			block := blockOf(addr)
			for e := range s.get().byIPv6.from(atBlock(block, "")) {
				if e.block != block || e.node.IPv6.Contains(addr) && !yield(e.node, e.node.IPv6) {
					return
				}
			}
		}
	}
}

// Overlapping returns a node that has an address in network; nil and false if none has.
func (s Nodes) Overlapping(network netip.Prefix) (*Node, bool) {
	network = network.Masked()
	if !network.IsValid() {
		return nil, false
	}
	if network.Addr().Is4() {
		for e := range s.get().byIPv4.from(atIPv4(network.Addr(), "")) {
			if network.Contains(e.node.IPv4.Addr()) {
				return e.node, true
			}
			break // it is the next one
		}
		return nil, false
	}
	first := blockOf(network.Addr())
	for e := range s.get().byIPv6.from(atBlock(first, "")) {
		if e.node.IPv6.Overlaps(network) {
			return e.node, true
		}
		if e.block != first && !network.Contains(e.block) {
			break
		}
	}
	return nil, false
}

// NextFreeIPv4 returns the first address from addr on that no node holds; the
// zero Addr when there is none up to the end of all addresses. It looks at the
// addresses in between, which are few when addr is behind the last one that was
// handed out.
func (s Nodes) NextFreeIPv4(addr netip.Addr) netip.Addr {
	for e := range s.get().byIPv4.from(atIPv4(addr, "")) {
		switch held := e.node.IPv4.Addr(); {
		case addr.Less(held):
			return addr
		case held == addr: // else a second node with the same one
			if addr = addr.Next(); !addr.IsValid() {
				return addr
			}
		}
	}
	return addr
}

// blockOf returns the first address of the /112 around an IPv6 address.
func blockOf(addr netip.Addr) netip.Addr {
	raw := addr.As16()
	raw[14], raw[15] = 0, 0
	return netip.AddrFrom16(raw)
}

// placeOf hashes an id, so that ids that are alike stand anywhere on the ring.
func placeOf(id NodeID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	return mix(h.Sum64())
}

// mix lets every input bit change every output bit: the finalizer of MurmurHash3.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// The orders of the indexes. An id breaks ties, so that records of v1 nodes
// that share a key or an address are all there.

func atID(id NodeID) func(*entry) int {
	return func(e *entry) int { return cmp.Compare(e.node.ID, id) }
}

func atKey(key WireGuardKey, id NodeID) func(*entry) int {
	return func(e *entry) int {
		return cmp.Or(cmp.Compare(string(e.key[:]), string(key[:])), cmp.Compare(e.node.ID, id))
	}
}

func atIPv4(addr netip.Addr, id NodeID) func(*entry) int {
	return func(e *entry) int {
		return cmp.Or(e.node.IPv4.Addr().Compare(addr), cmp.Compare(e.node.ID, id))
	}
}

func atBlock(block netip.Addr, id NodeID) func(*entry) int {
	return func(e *entry) int { return cmp.Or(e.block.Compare(block), cmp.Compare(e.node.ID, id)) }
}

func atPlace(place uint64, id NodeID) func(*entry) int {
	return func(e *entry) int { return cmp.Or(cmp.Compare(e.place, place), cmp.Compare(e.node.ID, id)) }
}

func atZone(zone string, place uint64, id NodeID) func(*entry) int {
	return func(e *entry) int {
		return cmp.Or(cmp.Compare(e.node.Zone, zone), cmp.Compare(e.place, place), cmp.Compare(e.node.ID, id))
	}
}
