// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // RFC 8489 section 14.5 knows no other that ICE speaks
	"encoding/binary"
	"hash"
	"net/netip"
)

// What this package reads of STUN itself (RFC 8489), before and beside pion.
const (
	bindingRequest = 0x0001
	bindingSuccess = 0x0101
	sendIndication = 0x0016 // TURN: a packet for a peer of the relay

	attrUsername  = 0x0006
	attrIntegrity = 0x0008

	attrPeerAddress = 0x0012
	attrData        = 0x0013

	integritySize = 4 + sha1.Size // with its header
)

// transaction is the id of a STUN request and of its response.
type transaction [12]byte

// binding is what is read of a STUN message of ICE. Its slices point into the
// packet.
type binding struct {
	kind uint16
	id   transaction
	// receiver is the ufrag of the one that a request is for; nil for none.
	receiver []byte
	// sealed is where MESSAGE-INTEGRITY begins; 0 for none.
	sealed int
}

// isSTUN says whether p is a STUN message rather than DTLS (RFC 7983).
func isSTUN(p []byte) bool {
	return len(p) >= stunHeader && p[0]&0xC0 == 0 && binary.BigEndian.Uint32(p[4:8]) == stunCookie
}

// parseBinding reads a STUN message. What follows MESSAGE-INTEGRITY is not
// covered by it and counts for nothing.
func parseBinding(p []byte) (b binding, ok bool) {
	if !isSTUN(p) {
		return b, false
	}
	end := stunHeader + int(binary.BigEndian.Uint16(p[2:4]))
	if end > len(p) {
		return b, false
	}
	b.kind = binary.BigEndian.Uint16(p)
	copy(b.id[:], p[8:stunHeader])
	for at := stunHeader; at < end; {
		if end-at < 4 {
			return b, false
		}
		kind, n := binary.BigEndian.Uint16(p[at:]), int(binary.BigEndian.Uint16(p[at+2:]))
		if n > end-at-4 {
			return b, false
		}
		switch kind {
		case attrUsername:
			if i := bytes.IndexByte(p[at+4:at+4+n], ':'); i >= 0 && b.receiver == nil {
				b.receiver = p[at+4 : at+4+i]
			}
		case attrIntegrity:
			if n != sha1.Size {
				return b, false
			}
			b.sealed = at
			return b, true
		}
		at += 4 + (n+3)&^3
	}
	return b, true
}

// seal checks MESSAGE-INTEGRITY under one password. It does not allocate, and
// is not safe for concurrent use.
type seal struct {
	mac  hash.Hash
	head [stunHeader]byte
	sum  [sha1.Size]byte
}

func newSeal(password string) *seal {
	s := &seal{mac: hmac.New(sha1.New, []byte(password))}
	s.mac.Reset() // which prepares the resets to come
	return s
}

// holds says whether the message p, whose MESSAGE-INTEGRITY begins at the
// offset sealed, was made by one who knows the password.
func (s *seal) holds(p []byte, sealed int) bool {
	if sealed < stunHeader || len(p) < sealed+integritySize {
		return false
	}
	s.mac.Reset()
	copy(s.head[:], p)
	// The length that is signed ends with this attribute (RFC 8489 section 14.5).
	binary.BigEndian.PutUint16(s.head[2:], uint16(sealed+integritySize-stunHeader))
	_, _ = s.mac.Write(s.head[:])
	_, _ = s.mac.Write(p[stunHeader:sealed])
	return hmac.Equal(s.mac.Sum(s.sum[:0]), p[sealed+4:sealed+integritySize])
}

// isCheck says whether p is a connectivity check of ICE. Requests to STUN
// servers have the same type, but no user name.
func isCheck(p []byte) bool {
	if len(p) < stunHeader || p[0] != bindingRequest>>8 || p[1] != bindingRequest&0xFF {
		return false
	}
	b, ok := parseBinding(p)
	return ok && b.receiver != nil
}

// relayedCheck says whether p hands a check to a TURN server that is to pass it
// on, and to whom. A channel of the server stands for an address: it has its
// number as port, and no IP address.
func relayedCheck(p []byte) (to netip.AddrPort, ok bool) {
	if len(p) >= 4 && p[0]&0xC0 == 0x40 {
		n := int(binary.BigEndian.Uint16(p[2:4]))
		channel := netip.AddrPortFrom(netip.Addr{}, binary.BigEndian.Uint16(p))
		return channel, n <= len(p)-4 && isCheck(p[4:4+n])
	}
	if !isSTUN(p) || binary.BigEndian.Uint16(p) != sendIndication {
		return to, false
	}
	for rest := p[stunHeader:]; len(rest) >= 4; {
		kind, n := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		rest = rest[4:]
		if n > len(rest) {
			return to, false
		}
		switch kind {
		case attrData:
			ok = isCheck(rest[:n])
		case attrPeerAddress:
			to = peerAddress(rest[:n], p[4:stunHeader])
		}
		rest = rest[min((n+3)&^3, len(rest)):]
	}
	return to, ok
}

// peerAddress reads the value of an XOR-PEER-ADDRESS; key is the cookie and the
// transaction id (RFC 8489 section 14.2). What it cannot read is the zero value.
func peerAddress(value, key []byte) netip.AddrPort {
	if len(value) != 8 && len(value) != 20 {
		return netip.AddrPort{}
	}
	var ip [16]byte
	for i, v := range value[4:] {
		ip[i] = v ^ key[i]
	}
	addr, _ := netip.AddrFromSlice(ip[:len(value)-4])
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(value[2:])^binary.BigEndian.Uint16(key))
}
