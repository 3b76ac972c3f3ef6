// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"net/netip"
)

// builder writes one STUN message at the end of the arena of an Output. The
// values of padding bytes are zero (CVE-2020-4067 was bytes of the heap).
type builder struct {
	out   *Output
	start int
}

// build begins a message.
func (o *Output) build(m method, c class, transaction [12]byte) builder {
	w := builder{out: o, start: len(o.arena)}
	o.arena = binary.BigEndian.AppendUint16(o.arena, messageType(m, c))
	o.arena = append(o.arena, 0, 0)
	o.arena = binary.BigEndian.AppendUint32(o.arena, magicCookie)
	o.arena = append(o.arena, transaction[:]...)
	return w
}

// len is the size of the message so far.
func (w builder) len() int { return len(w.out.arena) - w.start }

// begin writes the header of an attribute with n bytes; the caller appends them.
func (w builder) begin(kind uint16, n int) {
	w.out.arena = binary.BigEndian.AppendUint16(w.out.arena, kind)
	w.out.arena = binary.BigEndian.AppendUint16(w.out.arena, uint16(n))
}

// pad ends an attribute of n bytes.
func (w builder) pad(n int) {
	var zero [3]byte
	w.out.arena = append(w.out.arena, zero[:padded(n)-n]...)
}

func (w builder) bytes(kind uint16, v []byte) {
	w.begin(kind, len(v))
	w.out.arena = append(w.out.arena, v...)
	w.pad(len(v))
}

func (w builder) text(kind uint16, v string) {
	w.begin(kind, len(v))
	w.out.arena = append(w.out.arena, v...)
	w.pad(len(v))
}

func (w builder) uint32(kind uint16, v uint32) {
	w.begin(kind, 4)
	w.out.arena = binary.BigEndian.AppendUint32(w.out.arena, v)
}

// address writes an address attribute with XOR (RFC 8489 section 14.2).
func (w builder) address(kind uint16, addr netip.AddrPort) {
	header := [headerLen]byte(w.out.arena[w.start:])
	w.begin(kind, addressLen(addr.Addr()))
	w.out.arena = appendXORAddress(w.out.arena, addr, header)
}

// plain writes an address attribute without XOR (RFC 8489 section 14.1), as
// ALTERNATE-SERVER and those of RFC 5780 are.
func (w builder) plain(kind uint16, addr netip.AddrPort) {
	w.begin(kind, addressLen(addr.Addr()))
	w.out.arena = appendXORAddress(w.out.arena, addr, [headerLen]byte{})
}

// alternate names another server (RFC 8489 sections 14.15 and 14.16).
func (w builder) alternate(v Alternate) {
	w.plain(attrAlternateServer, v.Addr)
	if v.Domain != "" {
		w.text(attrAlternateDomain, v.Domain)
	}
}

// errorCode writes ERROR-CODE (RFC 8489 section 14.8).
func (w builder) errorCode(code int, phrase string) {
	w.begin(attrErrorCode, 4+len(phrase))
	w.out.arena = append(w.out.arena, 0, 0, byte(code/100), byte(code%100))
	w.out.arena = append(w.out.arena, phrase...)
	w.pad(4 + len(phrase))
}

// addressError writes ADDRESS-ERROR-CODE (RFC 8656 section 18.12).
func (w builder) addressError(f Family, code int) {
	phrase := reason(code)
	w.begin(attrAddressErrorCode, 4+len(phrase))
	w.out.arena = append(w.out.arena, byte(f), 0, byte(code/100), byte(code%100))
	w.out.arena = append(w.out.arena, phrase...)
	w.pad(4 + len(phrase))
}

// finish signs the message, adds FINGERPRINT if asked for, and returns it.
func (w builder) finish(s signer, withFingerprint bool) []byte {
	switch s.kind {
	case hasIntegrity:
		w.setLength(attrHeader + sha1Len)
		mac := s.mac(w.message()[:headerLen], w.message()[headerLen:])
		w.bytes(attrIntegrity, mac)
	case hasIntegritySHA256:
		w.setLength(attrHeader + sha256Len)
		mac := s.mac(w.message()[:headerLen], w.message()[headerLen:])
		w.bytes(attrIntegritySHA256, mac)
	}
	if withFingerprint {
		w.setLength(attrHeader + 4)
		w.uint32(attrFingerprint, fingerprint(w.message()))
	}
	w.setLength(0)
	b := w.message()
	return b[:len(b):len(b)]
}

// setLength puts the length right for a message that has more bytes to come.
func (w builder) setLength(more int) {
	binary.BigEndian.PutUint16(w.out.arena[w.start+2:], uint16(w.len()-headerLen+more))
}

func (w builder) message() []byte { return w.out.arena[w.start:] }

// drop takes the message back.
func (w builder) drop() { w.out.arena = w.out.arena[:w.start] }

// addressLen is the size of an address attribute's value.
func addressLen(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 20
}

// appendXORAddress appends the value of an address attribute, with XOR of the
// cookie and the transaction id in header.
func appendXORAddress(b []byte, addr netip.AddrPort, header [headerLen]byte) []byte {
	port := addr.Port() ^ binary.BigEndian.Uint16(header[4:])
	if addr.Addr().Is4() {
		b = append(b, 0, byte(IPv4))
		b = binary.BigEndian.AppendUint16(b, port)
		for i, v := range addr.Addr().As4() {
			b = append(b, v^header[4+i])
		}
		return b
	}
	b = append(b, 0, byte(IPv6))
	b = binary.BigEndian.AppendUint16(b, port)
	for i, v := range addr.Addr().As16() {
		b = append(b, v^header[4+i])
	}
	return b
}
