// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"net/netip"
)

// Sizes and the magic cookie of RFC 8489 section 5.
const (
	headerLen    = 20
	attrHeader   = 4
	cookie       = 0x2112A442
	macLen       = sha1.Size
	familyIPv4   = 0x01
	familyIPv6   = 0x02
	transportUDP = 17
)

// Methods (RFC 8489 section 18.1, RFC 8656 section 17): the message type of
// their requests, or of their indication.
const (
	methodAllocate         uint16 = 0x0003
	methodRefresh          uint16 = 0x0004
	methodCreatePermission uint16 = 0x0008
	methodChannelBind      uint16 = 0x0009
	sendIndication         uint16 = 0x0016
	dataIndication         uint16 = 0x0017

	classMask    uint16 = 0x0110
	classSuccess uint16 = 0x0100
	classError   uint16 = 0x0110
)

// Attribute types (RFC 8489 section 18.3, RFC 8656 section 18).
const (
	attrUsername           uint16 = 0x0006
	attrIntegrity          uint16 = 0x0008
	attrErrorCode          uint16 = 0x0009
	attrChannelNumber      uint16 = 0x000C
	attrLifetime           uint16 = 0x000D
	attrXORPeerAddress     uint16 = 0x0012
	attrData               uint16 = 0x0013
	attrRealm              uint16 = 0x0014
	attrNonce              uint16 = 0x0015
	attrXORRelayedAddress  uint16 = 0x0016
	attrAddressFamily      uint16 = 0x0017
	attrRequestedTransport uint16 = 0x0019
	attrXORMappedAddress   uint16 = 0x0020
	attrAlternateDomain    uint16 = 0x8003
	attrAlternateServer    uint16 = 0x8023
)

// maxText bounds REALM and NONCE (RFC 8489 sections 14.9 and 14.10): less than
// 128 characters of at most six bytes.
const maxText = 763

// txID is the transaction id of RFC 8489 section 5.
type txID [12]byte

// newTxID draws an id that nobody off the path can guess.
func newTxID() (id txID) {
	rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// message is a STUN message that checkMessage has passed, or one that this
// package writes; its methods rely on that.
type message []byte

// checkMessage says whether b is one STUN message whose attributes lie within
// it. What attributes hold is left to who reads them.
func checkMessage(b []byte) bool {
	if len(b) < headerLen || b[0]>>6 != 0 || binary.BigEndian.Uint32(b[4:]) != cookie ||
		int(binary.BigEndian.Uint16(b[2:])) != len(b)-headerLen {
		return false
	}
	rest := b[headerLen:]
	for len(rest) > 0 {
		if len(rest) < attrHeader {
			return false
		}
		next := attrHeader + padded(int(binary.BigEndian.Uint16(rest[2:])))
		if next > len(rest) {
			return false
		}
		rest = rest[next:]
	}
	return true
}

func (m message) kind() uint16      { return binary.BigEndian.Uint16(m) }
func (m message) transaction() txID { return txID(m[8:headerLen]) }

// find returns the first attribute of type t and its offset in m. Nothing is
// looked for behind MESSAGE-INTEGRITY: what is there is unsigned (RFC 8489 section 14.5).
func (m message) find(t uint16) (value []byte, at int, ok bool) {
	for at = headerLen; at < len(m); {
		kind, n := binary.BigEndian.Uint16(m[at:]), int(binary.BigEndian.Uint16(m[at+2:]))
		if kind == t {
			return m[at+attrHeader : at+attrHeader+n], at, true
		}
		if kind == attrIntegrity {
			break
		}
		at += attrHeader + padded(n)
	}
	return nil, 0, false
}

func (m message) get(t uint16) []byte {
	v, _, _ := m.find(t)
	return v
}

// number returns a 32-bit attribute.
func (m message) number(t uint16) (uint32, bool) {
	v := m.get(t)
	if len(v) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(v), true
}

// code returns the number in ERROR-CODE; 0 when there is none that makes sense.
func (m message) code() int {
	v := m.get(attrErrorCode)
	if len(v) < 4 || v[2]&7 < 3 || v[2]&7 > 6 || v[3] > 99 {
		return 0
	}
	return int(v[2]&7)*100 + int(v[3])
}

// address undoes the XOR of an address attribute (RFC 8489 section 14.2); the
// zero AddrPort when m has none of type t that is whole.
func (m message) address(t uint16) netip.AddrPort { return m.addressUnder(t, m[4:headerLen]) }

// plainAddress reads an address attribute without XOR (RFC 8489 section 14.1), likewise.
func (m message) plainAddress(t uint16) netip.AddrPort { return m.addressUnder(t, make([]byte, 16)) }

// addressUnder reads an address attribute under a mask of 16 bytes.
func (m message) addressUnder(t uint16, mask []byte) netip.AddrPort {
	v := m.get(t)
	var plain [16]byte
	switch {
	case len(v) == 8 && v[1] == familyIPv4, len(v) == 20 && v[1] == familyIPv6:
		for i := range v[4:] {
			plain[i] = v[4+i] ^ mask[i] // cookie, then transaction id
		}
	default:
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(v[2:]) ^ binary.BigEndian.Uint16(mask)
	if len(v) == 8 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(plain[:4])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(plain).Unmap(), port)
}

// signed says whether m has a MESSAGE-INTEGRITY, and whether it is that of key.
func (m message) signed(key []byte) (present, valid bool) {
	v, at, ok := m.find(attrIntegrity)
	if !ok {
		return false, false
	}
	return true, len(v) == macLen && hmac.Equal(v, m[:at].mac(key))
}

// mac is the HMAC for a MESSAGE-INTEGRITY that follows m: the length in the
// header counts the attribute that is yet to come (RFC 8489 section 14.5).
func (m message) mac(key []byte) []byte {
	header := [headerLen]byte(m)
	binary.BigEndian.PutUint16(header[2:], uint16(len(m)-headerLen+attrHeader+macLen))
	h := hmac.New(sha1.New, key)
	h.Write(header[:])
	h.Write(m[headerLen:])
	return h.Sum(nil)
}

// newMessage starts a message of the given kind; add completes its length.
func newMessage(kind uint16, id txID) message {
	m := make(message, headerLen, 256)
	binary.BigEndian.PutUint16(m, kind)
	binary.BigEndian.PutUint32(m[4:], cookie)
	copy(m[8:], id[:])
	return m
}

// add appends an attribute, with zeros for padding.
func (m message) add(t uint16, v []byte) message {
	m = binary.BigEndian.AppendUint16(m, t)
	m = binary.BigEndian.AppendUint16(m, uint16(len(v)))
	m = append(m, v...)
	m = append(m, make([]byte, padded(len(v))-len(v))...)
	binary.BigEndian.PutUint16(m[2:], uint16(len(m)-headerLen))
	return m
}

// addPeer appends an XOR-PEER-ADDRESS.
func (m message) addPeer(peer netip.AddrPort) message {
	var v [20]byte
	n := putAddress(v[:], peer, txID(m[8:headerLen]))
	return m.add(attrXORPeerAddress, v[:n])
}

// sign appends a MESSAGE-INTEGRITY.
func (m message) sign(key []byte) message { return m.add(attrIntegrity, m.mac(key)) }

// putAddress writes the value of an XOR address attribute into v, which has
// room for 20 bytes, and returns its length.
func putAddress(v []byte, a netip.AddrPort, id txID) int {
	var mask [16]byte
	binary.BigEndian.PutUint32(mask[:], cookie)
	copy(mask[4:], id[:])
	binary.BigEndian.PutUint16(v[2:], a.Port()^cookie>>16)
	v[0] = 0
	if a.Addr().Is4() {
		v[1] = familyIPv4
		plain := a.Addr().As4()
		for i, b := range plain {
			v[4+i] = b ^ mask[i]
		}
		return 8
	}
	v[1] = familyIPv6
	plain := a.Addr().As16()
	for i, b := range plain {
		v[4+i] = b ^ mask[i]
	}
	return 20
}

// sendHead is the room that the head of a Send indication takes.
const sendHead = headerLen + attrHeader + 20 + attrHeader

// putSendHead writes into h the part of a Send indication that comes before
// its n bytes of data, and returns its length. Padding of the data is up to the
// caller; the length in the header counts it.
func putSendHead(h *[sendHead]byte, to netip.AddrPort, id txID, n int) int {
	at := headerLen + attrHeader
	at += putAddress(h[at:], to, id)
	binary.BigEndian.PutUint16(h[headerLen:], attrXORPeerAddress)
	binary.BigEndian.PutUint16(h[headerLen+2:], uint16(at-headerLen-attrHeader))
	binary.BigEndian.PutUint16(h[at:], attrData)
	binary.BigEndian.PutUint16(h[at+2:], uint16(n))
	at += attrHeader
	binary.BigEndian.PutUint16(h[:], sendIndication)
	binary.BigEndian.PutUint16(h[2:], uint16(at-headerLen+padded(n)))
	binary.BigEndian.PutUint32(h[4:], cookie)
	copy(h[8:headerLen], id[:])
	return at
}

// channelHead is the length of what comes before ChannelData (RFC 8656 section 12.4).
const channelHead = 4

func putChannelHead(h []byte, channel uint16, n int) {
	binary.BigEndian.PutUint16(h, channel)
	binary.BigEndian.PutUint16(h[2:], uint16(n))
}

// checkChannelData returns channel and data of b. Padding of up to three bytes
// is what streams need, and fine in datagrams too.
func checkChannelData(b []byte) (channel uint16, data []byte, ok bool) {
	if len(b) < channelHead {
		return 0, nil, false
	}
	channel, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
	slack := len(b) - channelHead - n
	if channel < minChannel || channel > maxChannel || slack < 0 || slack > 3 {
		return 0, nil, false
	}
	return channel, b[channelHead : channelHead+n], true
}

// padded rounds n up to the four-byte boundary of attributes and of stream frames.
func padded(n int) int { return (n + 3) &^ 3 }

// text returns a copy of a REALM or NONCE that may be sent back; false when it
// is missing or too long to be one.
func (m message) text(t uint16) ([]byte, bool) {
	v := m.get(t)
	return bytes.Clone(v), 0 < len(v) && len(v) <= maxText
}
