// SPDX-License-Identifier: Apache-2.0

package path

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// maxLookups bounds the requests of a Lookup that wait for their answers. The
// oldest makes room.
const maxLookups = 32

// Lookup asks STUN servers where the packets of a socket come from. It does not
// repeat what gets lost: ask again. It is not safe for concurrent use.
type Lookup struct {
	tag   Tag
	asked []lookup // oldest first
}

type lookup struct {
	route Route
	ask   ask
}

// Reflexive is what a STUN server says of a socket.
type Reflexive struct {
	Socket Socket
	// Server is who was asked, and answered.
	Server netip.AddrPort
	// Mapped is where the server sees the packets of the socket come from.
	Mapped netip.AddrPort
	// Other is a further address of the server, for tests of the behaviour of NATs
	// (RFC 5780); most have none.
	Other netip.AddrPort
	RTT   time.Duration
}

// NewLookup returns a lookup that waits for nothing.
func NewLookup() *Lookup {
	id := newTransaction(Tag{})
	return &Lookup{tag: Tag(id[len(Tag{}):])}
}

// Tag is what Owner returns of messages for this lookup.
func (l *Lookup) Tag() Tag { return l.tag }

// Ask returns a request to send to a STUN server. The server is one that this
// node trusts: others can name any address. Errors wrap mesh.ErrInvalid.
func (l *Lookup) Ask(now time.Time, number Socket, server netip.AddrPort) (Packet, error) {
	server = unmap(server)
	if !server.IsValid() || server.Port() == 0 {
		return Packet{}, fmt.Errorf("server %v is not IP:PORT: %w", server, mesh.ErrInvalid)
	}
	m := Message{Type: BindingRequest, ID: newTransaction(l.tag), Fingerprint: true, Length: AskLength}
	if len(l.asked) == maxLookups {
		l.asked = slices.Delete(l.asked, 0, 1)
	}
	r := Route{number, server}
	l.asked = append(l.asked, lookup{r, ask{m.ID, now}})
	return Packet{r, m.Marshal("")}, nil
}

// Packet takes a datagram that came to a socket from an address. It says what a
// server answers, and whether the datagram is a STUN message for this lookup; of
// one that is not believed the result has no Mapped.
func (l *Lookup) Packet(now time.Time, number Socket, from netip.AddrPort, b []byte) (Reflexive, bool) {
	m, err := ParseMessage(b)
	if err != nil || m.Type == BindingRequest || Tag(m.ID[:len(Tag{})]) != l.tag {
		return Reflexive{}, false
	}
	r := Route{number, unmap(from)}
	i := slices.IndexFunc(l.asked, func(k lookup) bool { return k.route == r && k.ask.id == m.ID })
	if i < 0 || now.Sub(l.asked[i].ask.at) >= answerable || m.Type != BindingSuccess || m.strange || CheckAddress(m.Mapped) != nil {
		return Reflexive{}, true
	}
	took := now.Sub(l.asked[i].ask.at)
	l.asked = slices.Delete(l.asked, i, i+1)
	return Reflexive{Socket: number, Server: r.To, Mapped: m.Mapped, Other: m.Other, RTT: took}, true
}
