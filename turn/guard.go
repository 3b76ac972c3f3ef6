// SPDX-License-Identifier: Apache-2.0

package turn

import "encoding/binary"

// Channel numbers of RFC 8656 section 12; what RFC 5766 allowed above is reserved now,
// since its first byte belongs to other protocols (RFC 7983).
const (
	minChannel uint16 = 0x4000
	maxChannel uint16 = 0x4FFF
)

// maxAttributes bounds the work that one packet can ask for. Real requests
// have at most a dozen, plus one per peer of a CreatePermission.
const maxAttributes = 48

// check says whether b is one well-formed STUN message or ChannelData message
// and nothing else. It is the first thing that every datagram and every frame
// of a stream meets: what it passes is safe for message, and for the parsers of
// the engine, which index into attributes before they look at their length.
func check(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	switch b[0] >> 6 { // RFC 7983: the first two bits tell the protocols apart
	case 0:
		return checkMessage(b)
	case 1:
		return checkChannelData(b)
	default:
		return false
	}
}

// checkChannelData bounds the length field by the datagram; the padding that
// streams need, up to three bytes, is fine in datagrams too.
func checkChannelData(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	channel, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
	slack := len(b) - 4 - n
	return channel <= maxChannel && 0 <= slack && slack <= 3
}

// checkMessage walks the attributes once. After MESSAGE-INTEGRITY only what
// RFC 8489 section 14.5 names may follow: anything else there is unsigned.
func checkMessage(b []byte) bool {
	if len(b) < headerLen || binary.BigEndian.Uint32(b[4:]) != cookie ||
		int(binary.BigEndian.Uint16(b[2:])) != len(b)-headerLen || len(b)%4 != 0 {
		return false
	}
	signed := false
	attrs := 0
	for rest := b[headerLen:]; len(rest) > 0; attrs++ {
		t, n := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		next := attrHeader + padded(n)
		if attrs == maxAttributes || next > len(rest) || !checkAttribute(t, rest[attrHeader:attrHeader+n]) {
			return false
		}
		if signed && t != attrIntegritySHA256 && t != attrFingerprint {
			return false
		}
		if t == attrFingerprint && next != len(rest) {
			return false // FINGERPRINT is the last one (RFC 8489 section 14.7)
		}
		signed = signed || t == attrIntegrity
		rest = rest[next:]
	}
	return true
}

// checkAttribute holds the lengths that the RFCs give. Unknown types pass:
// only their bounds matter, nobody reads them.
func checkAttribute(t uint16, v []byte) bool {
	n := len(v)
	switch t {
	case attrMappedAddress, attrXORMappedAddress, attrOldXORMapped, attrXORPeerAddress, attrXORRelayedAddress,
		attrResponseAddress, attrSourceAddress, attrChangedAddress, attrReflectedFrom,
		attrAlternateServer, attrResponseOrigin, attrOtherAddress:
		return n == 8 && v[0] == 0 && v[1] == familyIPv4 || n == 20 && v[0] == 0 && v[1] == familyIPv6
	case attrChannelNumber, attrLifetime, attrRequestedTransport, attrAddressFamily, attrPriority, attrFingerprint, attrConnectionID:
		return n == 4
	case attrEvenPort:
		return n == 1
	case attrReservationToken, attrICEControlled, attrICEControlling:
		return n == 8
	case attrDontFragment, attrUseCandidate:
		return n == 0
	case attrIntegrity:
		return n == macLen
	case attrIntegritySHA256:
		return 16 <= n && n <= 32 && n%4 == 0
	case attrUsername:
		return 0 < n && n < 509
	case attrRealm, attrNonce:
		return 0 < n && n <= 763
	case attrErrorCode:
		return 4 <= n && n <= 4+763
	case attrUnknownAttributes:
		return n%2 == 0
	default:
		return true
	}
}
