// SPDX-License-Identifier: Apache-2.0

package core

// Sizes and the magic cookie of RFC 8489 section 5 and RFC 8656 section 12.4.
const (
	headerLen     = 20
	attrHeader    = 4
	channelHeader = 4
	magicCookie   = 0x2112A442
	maxBody       = 65532 // bytes of attributes: the length has 16 bits and is a multiple of 4
)

// Channel numbers of RFC 8656 section 12.
const (
	minChannel uint16 = 0x4000
	maxChannel uint16 = 0x4FFF
)

// Largest payloads of a UDP datagram by family.
const (
	maxDatagram4 = 65507
	maxDatagram6 = 65527
)

// method is what a STUN message is about, without its class.
type method uint16

// Methods of RFC 8489, RFC 8656 and RFC 6062.
const (
	methodBinding           method = 0x001
	methodAllocate          method = 0x003
	methodRefresh           method = 0x004
	methodSend              method = 0x006
	methodData              method = 0x007
	methodCreatePermission  method = 0x008
	methodChannelBind       method = 0x009
	methodConnect           method = 0x00A
	methodConnectionBind    method = 0x00B
	methodConnectionAttempt method = 0x00C
)

// class tells requests, indications and responses apart.
type class uint8

const (
	classRequest class = iota
	classIndication
	classSuccess
	classError
)

// messageType puts method and class into the 14 bits of RFC 8489 section 5.
func messageType(m method, c class) uint16 {
	return uint16(m)&0xF | uint16(m)&0x70<<1 | uint16(m)&0xF80<<2 | uint16(c)&1<<4 | uint16(c)&2<<7
}

// splitType undoes messageType.
func splitType(t uint16) (method, class) {
	return method(t&0xF | t>>1&0x70 | t>>2&0xF80), class(t>>4&1 | t>>7&2)
}

// Attribute types (RFC 8489 section 18.3, RFC 8656 section 18, RFC 6062
// section 6.2, RFC 5780 section 7). Those below 0x8000 must be understood.
const (
	attrMappedAddress      uint16 = 0x0001
	attrChangeRequest      uint16 = 0x0003
	attrUsername           uint16 = 0x0006
	attrIntegrity          uint16 = 0x0008
	attrErrorCode          uint16 = 0x0009
	attrUnknownAttributes  uint16 = 0x000A
	attrChannelNumber      uint16 = 0x000C
	attrLifetime           uint16 = 0x000D
	attrXORPeerAddress     uint16 = 0x0012
	attrData               uint16 = 0x0013
	attrRealm              uint16 = 0x0014
	attrNonce              uint16 = 0x0015
	attrXORRelayedAddress  uint16 = 0x0016
	attrRequestedFamily    uint16 = 0x0017
	attrEvenPort           uint16 = 0x0018
	attrRequestedTransport uint16 = 0x0019
	attrDontFragment       uint16 = 0x001A
	attrIntegritySHA256    uint16 = 0x001C
	attrPasswordAlgorithm  uint16 = 0x001D
	attrUserhash           uint16 = 0x001E
	attrXORMappedAddress   uint16 = 0x0020
	attrReservationToken   uint16 = 0x0022
	attrConnectionID       uint16 = 0x002A
	attrAdditionalFamily   uint16 = 0x8000
	attrAddressErrorCode   uint16 = 0x8001
	attrPasswordAlgorithms uint16 = 0x8002
	attrAlternateDomain    uint16 = 0x8003
	attrICMP               uint16 = 0x8004
	attrSoftware           uint16 = 0x8022
	attrAlternateServer    uint16 = 0x8023
	attrFingerprint        uint16 = 0x8028
	attrResponseOrigin     uint16 = 0x802B
	attrOtherAddress       uint16 = 0x802C
)

// Family is an address family in the numbers of STUN.
type Family uint8

// The address families.
const (
	IPv4 Family = 0x01
	IPv6 Family = 0x02
)

// Transport is a transport protocol in the numbers of IANA.
type Transport uint8

// The transports of relays.
const (
	TCP Transport = 6
	UDP Transport = 17
)

// Error codes (RFC 8489 section 14.8, RFC 8656 section 19, RFC 6062 section 6.3).
const (
	codeTryAlternate     = 300
	codeBadRequest       = 400
	codeUnauthenticated  = 401
	codeForbidden        = 403
	codeUnknownAttribute = 420
	codeMismatch         = 437
	codeStaleNonce       = 438
	codeFamily           = 440
	codeWrongCredentials = 441
	codeTransport        = 442
	codePeerFamily       = 443
	codeConnectionExists = 446
	codeConnectionFailed = 447
	codeQuota            = 486
	codeCapacity         = 508
)

// reason is the phrase that goes with a code to clients that have shown a credential.
func reason(code int) string {
	switch code {
	case codeTryAlternate:
		return "Try Alternate"
	case codeBadRequest:
		return "Bad Request"
	case codeForbidden:
		return "Forbidden"
	case codeUnknownAttribute:
		return "Unknown Attribute"
	case codeMismatch:
		return "Allocation Mismatch"
	case codeFamily:
		return "Address Family not Supported"
	case codeWrongCredentials:
		return "Wrong Credentials"
	case codeTransport:
		return "Unsupported Transport Protocol"
	case codePeerFamily:
		return "Peer Address Family Mismatch"
	case codeConnectionExists:
		return "Connection Already Exists"
	case codeConnectionFailed:
		return "Connection Timeout or Failure"
	case codeQuota:
		return "Allocation Quota Reached"
	case codeCapacity:
		return "Insufficient Capacity"
	default:
		return ""
	}
}

// padded rounds n up to the four-byte boundary of attributes and of stream frames.
func padded(n int) int { return (n + 3) &^ 3 }
