// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// judge says with which error code the authenticated request g.now is refused,
// 0 when it may go on. What the policy allowed is left in g.now.peers. The
// order of the questions is that of RFC 8656 sections 7.2, 8.2, 10.2 and 12.2.
func (g *gate) judge(m message) int {
	if len(m.unknown()) > 0 {
		return codeUnknownAttribute
	}
	r := g.relay(g.now.client)
	if g.now.kind == allocateRequest {
		return g.judgeAllocate(m, r)
	}
	now := time.Now()
	switch {
	case r == nil || r.ending.Load():
		return codeMismatch
	case r.user != g.now.user:
		return codeWrongUser
	case g.now.kind == refreshRequest:
		if family, ok := m.get(attrAddressFamily); ok && family[0] != familyIPv4 {
			return codePeerFamily
		}
		return 0
	case now.After(r.expires.Add(-g.server.limits.margin())):
		return codeMismatch
	default:
		return g.judgePeers(m, r, now)
	}
}

func (g *gate) judgeAllocate(m message, r *relay) int {
	transport, hasTransport := m.get(attrRequestedTransport)
	family, hasFamily := m.get(attrAddressFamily)
	even, hasEven := m.get(attrEvenPort)
	_, token := m.get(attrReservationToken)
	switch {
	case r != nil && (r.ending.Load() || r.user != g.now.user):
		return codeMismatch
	case r != nil: // a repeated request, or a mistake: the engine knows
		return 0
	case !hasTransport, hasEven && token, hasFamily && token:
		return codeBadRequest
	case transport[0] != protocolUDP:
		return codeTransport
	case hasFamily && family[0] != familyIPv4:
		return codeFamily
	case token, hasEven && even[0]&0x80 != 0: // ports are not reserved for later
		return codeCapacity
	}
	g.now.even = hasEven
	switch err := g.server.relays.room(g.now.user); {
	case errors.Is(err, errQuota):
		return codeQuota
	case err != nil:
		g.server.full.refuse(time.Now())
		return codeCapacity
	default:
		return 0
	}
}

// judgePeers asks the policy about every peer of a CreatePermission or
// ChannelBind request; one that is denied denies the request.
func (g *gate) judgePeers(m message, r *relay, now time.Time) int {
	peers, bind := m.peers(), g.now.kind == channelBindRequest
	channel := m.channel()
	if len(peers) == 0 || bind && (channel < minChannel || channel > maxChannel || len(peers) != 1 || peers[0].Port() == 0) {
		return codeBadRequest
	}
	for _, p := range peers {
		switch {
		case !g.server.policy.allows(r.user, p) && !g.server.relays.mayOpen(p):
			return codeForbidden
		case !p.Addr().Is4():
			return codePeerFamily
		}
	}
	if !r.grantPermissions(peers, g.server.limits.Permissions, now) {
		return codeCapacity
	}
	if bind && !r.grantChannel(channel, g.server.limits.Channels, now) {
		return codeCapacity
	}
	g.now.peers = peers
	return 0
}

// lifetime is what an Allocate or Refresh request gets: 0 when it asks for 0,
// which ends an allocation, and else the one lifetime of this server. RFC 8656
// section 7.2 allows no less than the default; nobody gets more.
func (g *gate) lifetime(m message) []byte {
	if v, ok := m.get(attrLifetime); ok && g.now.kind == refreshRequest && binary.BigEndian.Uint32(v) == 0 {
		return v
	}
	return binary.BigEndian.AppendUint32(nil, uint32(g.server.limits.Lifetime/time.Second))
}

// peers returns the addresses of all XOR-PEER-ADDRESS attributes that m signs.
func (m message) peers() []netip.AddrPort {
	signed, _ := m.split()
	var peers []netip.AddrPort
	for t, v := range signed.attributes() {
		if t == attrXORPeerAddress {
			peers = append(peers, m.peerAddress(v))
		}
	}
	return peers
}

// channel returns the number of CHANNEL-NUMBER; 0 without one.
func (m message) channel() uint16 {
	v, ok := m.get(attrChannelNumber)
	if !ok {
		return 0
	}
	return binary.BigEndian.Uint16(v)
}

// unknown returns the types of the attributes of m that a server must
// understand and this one does not, in the form of UNKNOWN-ATTRIBUTES.
func (m message) unknown() []byte {
	var unknown []byte
	for t := range m.attributes() {
		switch t {
		case attrUsername, attrIntegrity, attrIntegritySHA256, attrChannelNumber, attrLifetime, attrXORPeerAddress,
			attrData, attrRealm, attrNonce, attrAddressFamily, attrEvenPort, attrRequestedTransport, attrReservationToken:
		default:
			if t < 0x8000 {
				unknown = binary.BigEndian.AppendUint16(unknown, t)
			}
		}
	}
	return unknown
}
