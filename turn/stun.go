// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"iter"
	"net/netip"
)

// Sizes and the magic cookie of RFC 8489 section 5.
const (
	headerLen   = 20
	attrHeader  = 4
	cookie      = 0x2112A442
	macLen      = sha1.Size
	familyIPv4  = 0x01
	familyIPv6  = 0x02
	protocolUDP = 17
)

// Message types that a client sends to a TURN server (RFC 8489 section 5,
// RFC 8656 section 17), and the bits that tell a response from them.
const (
	bindingRequest          uint16 = 0x0001
	allocateRequest         uint16 = 0x0003
	refreshRequest          uint16 = 0x0004
	createPermissionRequest uint16 = 0x0008
	channelBindRequest      uint16 = 0x0009
	sendIndication          uint16 = 0x0016

	classMask     uint16 = 0x0110
	classResponse uint16 = 0x0100 // success; set in errors as well
	classError    uint16 = 0x0110
)

// Attribute types (RFC 8489 section 18.3, RFC 8656 section 18). The ones at
// 0x8000 and above may be ignored by who does not know them.
const (
	attrMappedAddress      uint16 = 0x0001
	attrResponseAddress    uint16 = 0x0002
	attrSourceAddress      uint16 = 0x0004
	attrChangedAddress     uint16 = 0x0005
	attrUsername           uint16 = 0x0006
	attrIntegrity          uint16 = 0x0008
	attrErrorCode          uint16 = 0x0009
	attrUnknownAttributes  uint16 = 0x000A
	attrReflectedFrom      uint16 = 0x000B
	attrChannelNumber      uint16 = 0x000C
	attrLifetime           uint16 = 0x000D
	attrXORPeerAddress     uint16 = 0x0012
	attrData               uint16 = 0x0013
	attrRealm              uint16 = 0x0014
	attrNonce              uint16 = 0x0015
	attrXORRelayedAddress  uint16 = 0x0016
	attrAddressFamily      uint16 = 0x0017
	attrEvenPort           uint16 = 0x0018
	attrRequestedTransport uint16 = 0x0019
	attrDontFragment       uint16 = 0x001A
	attrIntegritySHA256    uint16 = 0x001C
	attrXORMappedAddress   uint16 = 0x0020
	attrReservationToken   uint16 = 0x0022
	attrPriority           uint16 = 0x0024
	attrUseCandidate       uint16 = 0x0025
	attrConnectionID       uint16 = 0x002A
	attrOldXORMapped       uint16 = 0x8020 // the number of XOR-MAPPED-ADDRESS before RFC 5389
	attrAlternateServer    uint16 = 0x8023
	attrFingerprint        uint16 = 0x8028
	attrICEControlled      uint16 = 0x8029
	attrICEControlling     uint16 = 0x802A
	attrResponseOrigin     uint16 = 0x802B
	attrOtherAddress       uint16 = 0x802C
)

// Error codes that the gate answers with (RFC 8489 section 14.8, RFC 8656 section
// 19); 401 and 438, which come with a nonce, are the engine's.
const (
	codeBadRequest       = 400
	codeForbidden        = 403
	codeUnknownAttribute = 420
	codeMismatch         = 437
	codeFamily           = 440
	codeWrongUser        = 441
	codeTransport        = 442
	codePeerFamily       = 443
	codeQuota            = 486
	codeCapacity         = 508
)

// message is a STUN message that check has passed; its methods rely on that.
type message []byte

func (m message) kind() uint16        { return binary.BigEndian.Uint16(m) }
func (m message) transaction() []byte { return m[8:headerLen] }

// attributes yields type and value of each attribute, in the order of the wire.
func (m message) attributes() iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for b := m[headerLen:]; len(b) >= attrHeader; {
			n := int(binary.BigEndian.Uint16(b[2:]))
			if !yield(binary.BigEndian.Uint16(b), b[attrHeader:attrHeader+n]) {
				return
			}
			b = b[attrHeader+padded(n):]
		}
	}
}

// get returns the first attribute of type t, as RFC 8489 section 14 asks.
func (m message) get(t uint16) ([]byte, bool) {
	for at, v := range m.attributes() {
		if at == t {
			return v, true
		}
	}
	return nil, false
}

// split returns the part of m that MESSAGE-INTEGRITY signs and its value; nil when m has none.
func (m message) split() (signed message, mac []byte) {
	for b := m[headerLen:]; len(b) >= attrHeader; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if binary.BigEndian.Uint16(b) == attrIntegrity {
			return m[:len(m)-len(b)], b[attrHeader : attrHeader+n]
		}
		b = b[attrHeader+padded(n):]
	}
	return m, nil
}

// errorCode returns the number of an error response; 0 when it has none.
func (m message) errorCode() int {
	v, ok := m.get(attrErrorCode)
	if !ok || len(v) < 4 {
		return 0
	}
	return int(v[2]&7)*100 + int(v[3])
}

// peerAddress undoes the XOR of an address attribute (RFC 8489 section 14.2).
func (m message) peerAddress(v []byte) netip.AddrPort {
	var plain [16]byte
	for i := range v[4:] {
		plain[i] = v[4+i] ^ m[4+i] // cookie, then transaction id
	}
	port := binary.BigEndian.Uint16(v[2:]) ^ cookie>>16
	addr := netip.AddrFrom16(plain)
	if v[1] == familyIPv4 {
		addr = netip.AddrFrom4([4]byte(plain[:4]))
	}
	return netip.AddrPortFrom(addr, port)
}

// newMessage writes the header of a message without attributes into buf, which is cut to length 0 first.
func newMessage(buf []byte, kind uint16, transaction []byte) message {
	buf = binary.BigEndian.AppendUint16(buf[:0], kind)
	buf = binary.BigEndian.AppendUint16(buf, 0)
	buf = binary.BigEndian.AppendUint32(buf, cookie)
	return append(buf, transaction...)
}

// add returns m with one more attribute and its length put right. Padding is zero.
func (m message) add(t uint16, v []byte) message {
	m = binary.BigEndian.AppendUint16(m, t)
	m = binary.BigEndian.AppendUint16(m, uint16(len(v)))
	m = append(m, v...)
	m = append(m, make([]byte, padded(len(v))-len(v))...)
	binary.BigEndian.PutUint16(m[2:], uint16(len(m)-headerLen))
	return m
}

// sign returns m with a MESSAGE-INTEGRITY under key.
func (m message) sign(key []byte) message { return m.add(attrIntegrity, m.mac(key)) }

// mac computes the MESSAGE-INTEGRITY that follows m: the length of the header
// counts the attribute that is yet to come (RFC 8489 section 14.5).
func (m message) mac(key []byte) []byte {
	header := [headerLen]byte(m)
	binary.BigEndian.PutUint16(header[2:], uint16(len(m)-headerLen+attrHeader+macLen))
	h := hmac.New(sha1.New, key)
	h.Write(header[:])
	h.Write(m[headerLen:])
	return h.Sum(nil)
}

// padded rounds n up to the four-byte boundary of attributes and of stream frames.
func padded(n int) int { return (n + 3) &^ 3 }
