// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/meshgate/meshgate/node/mesh"
)

// filterPages and pageSlots bound the decisions that a filter remembers: enough for
// the pairs of addresses that a relay carries at a time. A filter is made for each
// plan, and few packets may come before the next: a page of slots is there once one
// of them is taken, so that a filter takes 1 KiB while empty and 65 KiB with all
// pages. A remembered pair takes 4 bytes more for each ACL with protocols or ports
// that concerns it.
const (
	filterPages = 128
	pageSlots   = 64
)

// page is some of the slots of a filter.
type page [pageSlots]atomic.Pointer[verdict]

// Filter is a packet filter: the network ACLs of one snapshot, and the owners
// of its addresses. Its methods are safe for concurrent use.
//
// It remembers a bounded number of decisions about pairs of addresses without
// locks; a flood of addresses costs the remembered ones and nothing else.
type Filter struct {
	network *Network
	owners  *Owners
	flows   *Flows
	// trusted are nodes whose packets pass; nil for a filter that trusts nobody.
	trusted map[string]bool
	// strangers lets packets from addresses of nobody pass.
	strangers bool
	seed      maphash.Seed
	pages     [filterPages]atomic.Pointer[page]
}

// ForwardFilter compiles the ACLs of s for a node that forwards packets of
// others. Both addresses of a packet must be of nodes or lie in networks that
// nodes offer routes to. The filter notes in flows what it forwards.
func ForwardFilter(s *mesh.Snapshot, flows *Flows) *Filter {
	return newFilter(s, IndexOwners(s), flows)
}

// DeliveryFilter compiles the ACLs of s for packets to the addresses of a node
// itself, whose plan is p. WireGuard has checked that a packet's source lies
// behind the peer that sent it. What is left to decide is:
//
//   - The own packets of a gateway pass. It opens connections in the name of
//     users, about whom it has asked the ACLs, and holds all state anyway.
//   - Packets that a gateway forwards passed its ForwardFilter. A node that
//     follows a gateway knows only its peers, and lets the others' pass.
//   - All other packets are their senders' own, and are held against the ACLs.
func DeliveryFilter(s *mesh.Snapshot, p mesh.Plan, flows *Flows) *Filter {
	o := IndexOwners(s)
	f := newFilter(s, o, flows)
	f.strangers, f.trusted = true, make(map[string]bool)
	for peer := range p.Peers.All() {
		if peer.Node.HoldsState() {
			f.trusted[string(peer.Node.ID)] = true
			continue
		}
		for _, network := range slices.Concat(peer.AllowedIPs, peer.Veiled) {
			if !o.own(network) {
				o.more.add(network, string(peer.Node.ID))
			}
		}
	}
	return f
}

// ExitFilter compiles the ACLs of s for node self as an exit: what nobody offers
// a route to belongs to it. Both ends of a packet must be somebody's, and a sender
// must be a node that s has.
func ExitFilter(s *mesh.Snapshot, self mesh.NodeID, flows *Flows) *Filter {
	o := IndexOwners(s)
	for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		o.routes.add(netip.PrefixFrom(all, 0), string(self))
	}
	return newFilter(s, o, flows)
}

func newFilter(s *mesh.Snapshot, o *Owners, flows *Flows) *Filter {
	return &Filter{
		network: Compile(s), owners: o, flows: flows,
		seed: maphash.MakeSeed(),
	}
}

// Allow reports whether p may pass. Where ACLs name protocols or ports, the
// packet may open a conversation that they accept or continue one: which of the
// two it does is told by TCP's flags and ICMP's types, and for UDP and the like
// by whether the other side has sent before; see Flows.
//
// A later fragment passes where any conversation of its protocol would: without
// its first fragment, which is held against the ports, it is worth nothing.
func (f *Filter) Allow(p mesh.Packet) bool {
	v, there := f.verdict(p.Src, p.Dst)
	if v.whole() {
		return v.accepted
	}
	switch p.Kind {
	case mesh.PacketBroken:
		return false
	case mesh.PacketFragment:
		return v.carries(p.Protocol)
	case mesh.PacketOpens:
		return v.opens(there, p.Protocol, p.DstPort)
	case mesh.PacketContinues, mesh.PacketReports:
		return v.opens(there, p.Protocol, p.DstPort) || v.opens(!there, p.Protocol, p.SrcPort)
	}
	answer := v.opens(!there, p.Protocol, p.SrcPort)
	if v.opens(there, p.Protocol, p.DstPort) {
		if !answer {
			f.flows.note(p)
		}
		return true
	}
	return answer && f.flows.answers(p)
}

// Sent tells the filter of a packet that the node itself sends, so that the
// answer to it may come in.
func (f *Filter) Sent(p mesh.Packet) {
	if p.Kind != mesh.PacketUnclear {
		return
	}
	if v, _ := f.verdict(p.Src, p.Dst); !v.whole() {
		f.flows.note(p)
	}
}

// verdict is a remembered decision about a pair of addresses.
type verdict struct {
	low, high netip.Addr
	// accepted is the decision, if it is one about everything.
	accepted bool
	// parts are decisions by protocol and port, one for each pair of owners:
	// a packet passes if one of them lets it.
	parts []part
	rules []rule
}

// part decides by protocol and port.
type part struct {
	// steps are asked in order: twice the index of a rule, plus one if it
	// speaks of conversations that the higher address opens.
	steps []int32
	// accepted is what remains.
	accepted bool
}

// whole reports whether the addresses alone decide.
func (v *verdict) whole() bool { return len(v.parts) == 0 }

// opens reports whether the lower address, or the higher one if upward is
// false, may open a conversation with a port of the other.
func (v *verdict) opens(upward bool, p mesh.Protocol, port uint16) bool {
	side := int32(1)
	if upward {
		side = 0
	}
	return slices.ContainsFunc(v.parts, func(part part) bool {
		for _, step := range part.steps {
			if r := &v.rules[step>>1]; step&1 == side && r.holds(p, port) {
				return r.accept
			}
		}
		return part.accepted
	})
}

// carries reports whether an ACL may accept some conversation of protocol p.
func (v *verdict) carries(p mesh.Protocol) bool {
	return slices.ContainsFunc(v.parts, func(part part) bool {
		return part.accepted || slices.ContainsFunc(part.steps, func(step int32) bool {
			r := &v.rules[step>>1]
			return r.accept && r.carries(p)
		})
	})
}

// verdict returns the decision about a pair of addresses, and whether src is
// the lower of them. It holds for both directions, so that the addresses are put
// in order first.
func (f *Filter) verdict(src, dst netip.Addr) (v *verdict, upward bool) {
	low, high := src.Unmap(), dst.Unmap()
	upward = true
	if high.Less(low) {
		low, high, upward = high, low, false
	}
	slot := f.slot(f.hash(low, high))
	if v := slot.Load(); v != nil && v.low == low && v.high == high {
		return v, upward
	}
	v = &verdict{low: low, high: high, rules: f.network.rules}
	f.decide(v)
	slot.Store(v)
	return v, upward
}

// slot returns where the decision about a pair of addresses with a hash is kept.
func (f *Filter) slot(hash uint64) *atomic.Pointer[verdict] {
	at := &f.pages[hash/pageSlots%filterPages]
	p := at.Load()
	if p == nil {
		at.CompareAndSwap(nil, new(page)) // somebody else's will do
		p = at.Load()
	}
	return &p[hash%pageSlots]
}

// hash returns a hash of a pair of addresses that outsiders cannot predict.
func (f *Filter) hash(low, high netip.Addr) uint64 {
	var pair [32]byte
	l, h := low.As16(), high.As16()
	copy(pair[:16], l[:])
	copy(pair[16:], h[:])
	return maphash.Bytes(f.seed, pair[:])
}

// decide asks the ACLs. A network that several nodes offer is reachable when
// one of them may be reached for it.
func (f *Filter) decide(v *verdict) {
	low, high := f.owners.Of(v.low), f.owners.Of(v.high)
	if f.trusts(low) || f.trusts(high) {
		v.accepted = true
		return
	}
	for _, from := range low {
		for _, to := range high {
			p := f.network.part(Endpoint{from, host(v.low)}, Endpoint{to, host(v.high)})
			if len(p.steps) > 0 {
				v.parts = append(v.parts, p)
			} else if p.accepted {
				v.accepted, v.parts = true, nil
				return
			}
		}
	}
}

// trusts reports whether packets of an address with these owners pass.
func (f *Filter) trusts(owners []string) bool {
	if len(owners) == 0 {
		return f.strangers
	}
	return slices.ContainsFunc(owners, func(id string) bool { return f.trusted[id] })
}

// part returns what decides between two single addresses.
func (n *Network) part(low, high Endpoint) part {
	var p part
	for i := range n.rules {
		r := &n.rules[i]
		up, down := r.match(low, high) == matchWhole, r.match(high, low) == matchWhole
		if r.all() && (up || down) {
			p.accepted = r.accept
			break
		}
		if up {
			p.steps = append(p.steps, int32(2*i))
		}
		if down {
			p.steps = append(p.steps, int32(2*i+1))
		}
	}
	if !slices.ContainsFunc(p.steps, func(step int32) bool { return n.rules[step>>1].accept != p.accepted }) {
		return part{accepted: p.accepted} // the ports make no difference
	}
	return p
}
