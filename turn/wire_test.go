// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"encoding/binary"
	"net/netip"
)

// Of the wire, for packets that no codec writes.
const (
	headerLen   = 20
	cookie      = 0x2112A442
	familyIPv4  = 0x01
	familyIPv6  = 0x02
	protocolTCP = 6
	protocolUDP = 17

	bindingRequest          uint16 = 0x0001
	allocateRequest         uint16 = 0x0003
	createPermissionRequest uint16 = 0x0008
	sendIndication          uint16 = 0x0016

	attrErrorCode          uint16 = 0x0009
	attrChannelNumber      uint16 = 0x000C
	attrLifetime           uint16 = 0x000D
	attrXORPeerAddress     uint16 = 0x0012
	attrData               uint16 = 0x0013
	attrXORRelayedAddress  uint16 = 0x0016
	attrAddressFamily      uint16 = 0x0017
	attrEvenPort           uint16 = 0x0018
	attrRequestedTransport uint16 = 0x0019
	attrDontFragment       uint16 = 0x001A
	attrReservationToken   uint16 = 0x0022
	attrConnectionID       uint16 = 0x002A
	attrAdditionalFamily   uint16 = 0x8000
	attrAlternateServer    uint16 = 0x8023
)

// attr is an attribute on the wire; the length field says what it likes.
func attr(t uint16, length int, v ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, t)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, v...)
	return append(b, make([]byte, padded(len(b))-len(b))...)
}

// packet is a STUN message of attributes, with a length that fits.
func packet(kind uint16, attrs ...[]byte) []byte {
	m := binary.BigEndian.AppendUint16(nil, kind)
	m = binary.BigEndian.AppendUint16(m, 0)
	m = binary.BigEndian.AppendUint32(m, cookie)
	m = append(m, make([]byte, 12)...)
	for _, a := range attrs {
		m = append(m, a...)
	}
	binary.BigEndian.PutUint16(m[2:], uint16(len(m)-headerLen))
	return m
}

// xored is the value of XOR-PEER-ADDRESS for p.
func xored(p netip.AddrPort, transaction []byte) []byte {
	family := byte(familyIPv4)
	if p.Addr().Is6() {
		family = familyIPv6
	}
	v := binary.BigEndian.AppendUint16([]byte{0, family}, p.Port()^cookie>>16)
	mask := append(binary.BigEndian.AppendUint32(nil, cookie), transaction...)
	for i, b := range p.Addr().AsSlice() {
		v = append(v, b^mask[i])
	}
	return v
}

func padded(n int) int { return (n + 3) &^ 3 }
