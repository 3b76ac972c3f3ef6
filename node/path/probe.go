// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// AskLength is how long plain Binding requests are, in bytes: as long as an answer
// that names an IPv6 address. No server need send more than it got (see Answer).
const AskLength = stunHeader + 4 + 20 + fingerprintSize

// Probe keeps the best way to a peer that does not signal, but answers plain
// Binding requests (see Answer) at addresses that are known: the WireGuard port
// of a gateway, directly or by way of relays. Answers are known by their source
// and by an id that only those on the way can see, who could drop the packets
// as well. It is not safe for concurrent use.
type Probe struct {
	ways
}

// NewProbe returns a probe that knows nothing yet.
func NewProbe() *Probe {
	p := &Probe{}
	id := newTransaction(Tag{})
	p.ways = ways{
		tag:     Tag(id[len(Tag{}):]),
		decides: true,
		patient: lostMostProbe,
		met:     true, // its addresses are of our own configuration
		marshal: func(m *Message, _ *way) []byte {
			m.Note, m.Length = nil, max(m.Length, AskLength)
			return m.Marshal("")
		},
	}
	return p
}

// Tag is what Owner returns of messages for this probe.
func (p *Probe) Tag() Tag { return p.tag }

// SetRemote says at which addresses the peer listens, in place of all said
// before. They come from this node's configuration or its mesh, never from a
// stranger. Errors wrap mesh.ErrInvalid.
func (p *Probe) SetRemote(now time.Time, addrs []netip.AddrPort) error {
	if len(addrs) > MaxRemote {
		return fmt.Errorf("peer has %d addresses, more than %d: %w", len(addrs), MaxRemote, mesh.ErrInvalid)
	}
	var remotes []remote
	for _, addr := range addrs {
		addr = unmap(addr)
		if !addr.IsValid() || addr.Port() == 0 || addr.Addr().IsUnspecified() || addr.Addr().IsMulticast() {
			return fmt.Errorf("address %v is none of a peer: %w", addr, mesh.ErrInvalid)
		}
		r := remote{Candidate: Candidate{Kind: Host, Addr: addr}}
		if !slices.Contains(remotes, r) {
			remotes = append(remotes, r)
		}
	}
	if !slices.Equal(p.remotes, remotes) {
		p.remotes = remotes
		p.rebuild(now)
	}
	return nil
}

// Packet takes a datagram that came to one of the sockets from an address, and
// says whether it is a STUN message for this probe. b is the caller's again
// afterwards.
func (p *Probe) Packet(now time.Time, number Socket, from netip.AddrPort, b []byte) bool {
	m, err := ParseMessage(b)
	if err != nil || m.Type == BindingRequest || Tag(m.ID[:len(Tag{})]) != p.tag {
		return false
	}
	w, took, ok := p.answered(now, Route{number, unmap(from)}, m.ID)
	if !ok || m.Type != BindingSuccess || m.strange || !m.Mapped.IsValid() {
		p.counters.Refused++
		return true
	}
	p.stood(now, w, &m, took)
	return true
}

// Reflexive returns where the peer sees the packets of the native socket come
// from, which are server-reflexive candidates for other peers: at most one IPv4
// and one IPv6 address, from ways that stand.
func (p *Probe) Reflexive() []netip.AddrPort {
	var list []netip.AddrPort
	for _, is4 := range []bool{true, false} {
		var last *way
		for _, w := range p.list {
			if w.stands && !w.relayed() && w.mapped.Addr().Is4() == is4 && CheckAddress(w.mapped) == nil &&
				(last == nil || w.verified.After(last.verified)) {
				last = w
			}
		}
		if last != nil {
			list = append(list, last.mapped)
		}
	}
	return list
}

// Answer returns the answer to a plain Binding request that came from an address:
// what the address is. False for what is none, and where the answer would be
// longer than the request, since the source may be forged: requests of nodes are
// AskLength long for that. It keeps nothing, and bounds nothing: who sends the
// answer does.
func Answer(b []byte, from netip.AddrPort) ([]byte, bool) {
	m, err := ParseMessage(b)
	if err != nil || m.Type != BindingRequest || m.strange || m.Username != nil || m.sealed > 0 || m.ChangeIP || m.ChangePort ||
		!from.IsValid() || from.Port() == 0 {
		return nil, false
	}
	answer := Message{Type: BindingSuccess, ID: m.ID, Mapped: unmap(from), Fingerprint: m.Fingerprint}
	out := answer.Marshal("")
	return out, len(out) <= len(b)
}
