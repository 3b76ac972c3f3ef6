// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// has is a set of attributes.
type has uint32

const (
	hasUsername has = 1 << iota
	hasUserhash
	hasRealm
	hasNonce
	hasIntegrity
	hasIntegritySHA256
	hasFingerprint
	hasAlgorithm
	hasAlgorithms
	hasPeer
	hasData
	hasChannel
	hasLifetime
	hasTransport
	hasFamily
	hasAdditional
	hasEvenPort
	hasToken
	hasDontFragment
	hasChange
	hasConnection
)

// maxUnknown is how many unknown attributes an answer names.
const maxUnknown = 16

// message is a decoded STUN message. Its slices lie in the packet it came from.
// Of an attribute that appears twice it holds the first (RFC 8489 section 14),
// and of the attributes behind an integrity attribute only those that may be there.
type message struct {
	raw         []byte
	method      method
	class       class
	transaction [12]byte
	has         has
	malformed   bool // an attribute of a known type cannot be what it claims

	username, realm, nonce         []byte
	algorithm, algorithms          []byte
	integrity, integritySHA256     []byte
	integrityAt, integritySHA256At int // where these attributes begin

	peer       netip.AddrPort // the first XOR-PEER-ADDRESS
	data       []byte
	token      token
	lifetime   uint32 // seconds
	connection ConnectionID
	channel    uint16
	transport  Transport
	family     Family // REQUESTED-ADDRESS-FAMILY
	additional Family // ADDITIONAL-ADDRESS-FAMILY
	change     uint8  // flags of CHANGE-REQUEST
	reserve    bool   // the R bit of EVEN-PORT

	unknown  [maxUnknown]uint16 // comprehension-required types that are not known
	unknowns int
	end      int // of the attributes that count
}

// isMessage reports whether b is framed as one whole STUN message: the two zero
// bits, a length that fits exactly, the magic cookie (RFC 8489 section 5).
func isMessage(b []byte) bool {
	return len(b) >= headerLen && b[0] < 0x40 && len(b)%4 == 0 &&
		int(binary.BigEndian.Uint16(b[2:])) == len(b)-headerLen &&
		binary.BigEndian.Uint32(b[4:]) == magicCookie
}

// decode reads b into m. False means that b is no STUN message and must be
// ignored; a message whose attributes are wrong is malformed.
func (m *message) decode(b []byte) bool {
	if !isMessage(b) {
		return false
	}
	*m = message{raw: b, transaction: [12]byte(b[8:headerLen]), end: len(b)}
	m.method, m.class = splitType(binary.BigEndian.Uint16(b))
	for at := headerLen; at < len(b); {
		if len(b)-at < attrHeader {
			return false
		}
		kind, n := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		next := at + attrHeader + padded(n)
		if next > len(b) {
			return false
		}
		value := b[at+attrHeader : at+attrHeader+n]
		switch {
		case kind == attrFingerprint: // must be the last, and right
			if next != len(b) || n != 4 || binary.BigEndian.Uint32(value) != fingerprint(b[:at]) {
				return false
			}
			m.has |= hasFingerprint
		case m.has&hasIntegritySHA256 != 0, m.has&hasIntegrity != 0 && kind != attrIntegritySHA256:
			// Behind an integrity attribute nothing is signed and nothing counts.
		case kind == attrIntegrity:
			m.integrity, m.integrityAt = value, at
			m.note(hasIntegrity, n == sha1Len)
			m.end = min(m.end, at)
		case kind == attrIntegritySHA256:
			m.integritySHA256, m.integritySHA256At = value, at
			m.note(hasIntegritySHA256, n == sha256Len)
			m.end = min(m.end, at)
		default:
			m.attribute(kind, value)
		}
		at = next
	}
	return true
}

// note records an attribute and whether its value is well-formed.
func (m *message) note(h has, ok bool) {
	m.has |= h
	m.malformed = m.malformed || !ok
}

// first reports whether h is new; what comes again is skipped.
func (m *message) first(h has) bool { return m.has&h == 0 }

// attribute decodes one attribute that is not about integrity.
func (m *message) attribute(kind uint16, v []byte) {
	switch kind {
	case attrUsername:
		m.text(hasUsername, &m.username, v, 509)
	case attrUserhash:
		if m.first(hasUserhash) { // the hash of a name that nobody has: it is not offered
			m.note(hasUserhash, len(v) == sha256Len)
		}
	case attrRealm:
		m.text(hasRealm, &m.realm, v, 764)
	case attrNonce:
		m.text(hasNonce, &m.nonce, v, 764)
	case attrPasswordAlgorithm:
		m.text(hasAlgorithm, &m.algorithm, v, 256)
	case attrPasswordAlgorithms:
		m.text(hasAlgorithms, &m.algorithms, v, 256)
	case attrData:
		m.text(hasData, &m.data, v, 1<<16)
	case attrXORPeerAddress:
		m.peerAddress(v)
	default:
		m.number(kind, v)
	}
}

// text stores a value shorter than limit.
func (m *message) text(h has, field *[]byte, v []byte, limit int) {
	if m.first(h) {
		*field = v
		m.note(h, len(v) < limit)
	}
}

// number decodes the attributes of a fixed size.
func (m *message) number(kind uint16, v []byte) {
	switch kind {
	case attrChannelNumber:
		if m.fixed(hasChannel, v, 4) {
			m.channel = binary.BigEndian.Uint16(v)
		}
	case attrLifetime:
		if m.fixed(hasLifetime, v, 4) {
			m.lifetime = binary.BigEndian.Uint32(v)
		}
	case attrRequestedTransport:
		if m.fixed(hasTransport, v, 4) {
			m.transport = Transport(v[0])
		}
	case attrRequestedFamily:
		if m.fixed(hasFamily, v, 4) {
			m.family = Family(v[0])
		}
	case attrAdditionalFamily:
		if m.fixed(hasAdditional, v, 4) {
			m.additional = Family(v[0])
		}
	case attrEvenPort:
		if m.fixed(hasEvenPort, v, 1) {
			m.reserve = v[0]&0x80 != 0
		}
	case attrReservationToken:
		if m.fixed(hasToken, v, 8) {
			m.token = token(v)
		}
	case attrDontFragment:
		m.fixed(hasDontFragment, v, 0)
	case attrChangeRequest:
		if m.fixed(hasChange, v, 4) {
			m.change = v[3]
		}
	case attrConnectionID:
		if m.fixed(hasConnection, v, 4) {
			m.connection = ConnectionID(binary.BigEndian.Uint32(v))
		}
	case attrMappedAddress, attrErrorCode, attrUnknownAttributes, attrXORRelayedAddress, attrXORMappedAddress:
		// Known, and nothing that a request should have: ignored (RFC 8489 section 6.3).
	default:
		m.strange(kind)
	}
}

// fixed records an attribute whose value has n bytes and tells whether to read it.
func (m *message) fixed(h has, v []byte, n int) bool {
	if !m.first(h) {
		return false
	}
	m.note(h, len(v) == n)
	return len(v) == n
}

// strange records a type that this server must understand and does not.
func (m *message) strange(kind uint16) {
	if kind < 0x8000 && m.unknowns < maxUnknown {
		m.unknown[m.unknowns] = kind
		m.unknowns++
	}
}

func (m *message) peerAddress(v []byte) {
	addr, ok := xorAddress(v, m.raw)
	if !m.first(hasPeer) {
		m.malformed = m.malformed || !ok
		return
	}
	m.peer = addr
	m.note(hasPeer, ok)
}

// peers calls yield with each XOR-PEER-ADDRESS that counts. The message must
// not be malformed.
func (m *message) peers(yield func(netip.AddrPort) bool) {
	for at := headerLen; at < m.end; {
		kind, n := binary.BigEndian.Uint16(m.raw[at:]), int(binary.BigEndian.Uint16(m.raw[at+2:]))
		if kind == attrXORPeerAddress {
			addr, ok := xorAddress(m.raw[at+attrHeader:at+attrHeader+n], m.raw)
			if !ok || !yield(addr) {
				return
			}
		}
		at += attrHeader + padded(n)
	}
}

// xorAddress undoes the XOR of an address attribute (RFC 8489 section 14.2) with
// the cookie and the transaction id in header. An IPv6 address that is an IPv4
// one in disguise stays one, for the policy to see.
func xorAddress(v, header []byte) (netip.AddrPort, bool) {
	var plain [16]byte
	switch {
	case len(v) == 8 && Family(v[1]) == IPv4:
	case len(v) == 20 && Family(v[1]) == IPv6:
	default:
		return netip.AddrPort{}, false
	}
	for i, b := range v[4:] {
		plain[i] = b ^ header[4+i]
	}
	port := binary.BigEndian.Uint16(v[2:]) ^ magicCookie>>16
	addr := netip.AddrFrom16(plain)
	if len(v) == 8 {
		addr = netip.AddrFrom4([4]byte(plain[:4]))
	}
	return netip.AddrPortFrom(addr, port), true
}

// fingerprint computes FINGERPRINT for a message that ends before it and whose
// length counts it (RFC 8489 section 14.7).
func fingerprint(b []byte) uint32 { return crc32.ChecksumIEEE(b) ^ 0x5354554E }
