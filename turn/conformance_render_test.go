// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/pion/stun"
)

// Attributes that only the table looks at.
const (
	attrMessageIntegrity   uint16 = 0x0008
	attrUnknownAttributes  uint16 = 0x000A
	attrRealm              uint16 = 0x0014
	attrNonce              uint16 = 0x0015
	attrIntegritySHA256           = stun.AttrType(0x001C)
	attrPasswordAlgorithm         = stun.AttrType(0x001D)
	attrUserhash                  = stun.AttrType(0x001E)
	attrXORMappedAddress   uint16 = 0x0020
	attrAddressErrorCode   uint16 = 0x8001
	attrPasswordAlgorithms        = stun.AttrType(0x8002)
	attrAlternateDomain    uint16 = 0x8003
	attrICMP               uint16 = 0x8004
	attrSoftware           uint16 = 0x8022
	attrFingerprint        uint16 = 0x8028
	attrResponseOrigin     uint16 = 0x802B
	attrOtherAddress       uint16 = 0x802C
)

// Answers that many rows want: a challenge, and what an allocation is answered by.
const (
	challenged = "401 realm nonce algorithms"
	stale      = "438 realm nonce algorithms"
	made4      = "ok relayed4 lifetime=600 mapped signed"
	made6      = "ok relayed6 lifetime=600 mapped signed"
	madeBoth   = "ok relayed4 relayed6 lifetime=600 mapped signed"
)

// phrases are the reason phrases of the RFCs.
var phrases = map[int]string{
	300: "Try Alternate", 400: "Bad Request", 403: "Forbidden", 420: "Unknown Attribute", 437: "Allocation Mismatch",
	440: "Address Family not Supported", 441: "Wrong Credentials", 442: "Unsupported Transport Protocol",
	443: "Peer Address Family Mismatch", 446: "Connection Already Exists", 447: "Connection Timeout or Failure",
	486: "Allocation Quota Reached", 508: "Insufficient Capacity",
}

// render writes all of what the server has sent in short: "ok", the error code or
// "data", then each attribute in its place, and what is wrong with them.
func (c *party) render(b []byte) string {
	c.Helper()
	if len(b) >= 4 && b[0]>>6 == 1 {
		return c.renderChannelData(b)
	}
	m := &stun.Message{Raw: b}
	if err := m.Decode(); err != nil { // by a codec that is not ours
		return fmt.Sprintf("%x: %v", b, err)
	}
	words := []string{map[stun.MessageClass]string{
		stun.ClassSuccessResponse: "ok", stun.ClassErrorResponse: "no code", stun.ClassIndication: "data", stun.ClassRequest: "request",
	}[m.Type.Class]}
	if m.Type.Class == stun.ClassIndication && m.Type.Method != stun.MethodData {
		words[0] = m.Type.Method.String()
	}
	if m.Contains(stun.AttrXORRelayedAddress) {
		c.relays, c.owner = nil, c.cred
	}
	for at := headerLen; at < len(b); {
		kind, n := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		v, pad := b[at+4:at+4+n], b[at+4+n:at+4+padded(n)]
		switch word := c.word(m, kind, v, b[:at]); {
		case kind == attrErrorCode:
			words[0] = word
		default:
			words = append(words, word)
		}
		if kind == attrSoftware {
			words = words[:len(words)-1] // if it is there where it should be
		}
		if len(bytes.Trim(pad, "\x00")) > 0 {
			words = append(words, fmt.Sprintf("padding=%x", pad))
		}
		at += 4 + padded(n)
	}
	// SOFTWARE is in answers about allocations to who has shown a credential, and nowhere else.
	name := stun.NewSoftware("")
	_ = name.GetFrom(m)
	about := m.Type.Method == stun.MethodAllocate || m.Type.Method == stun.MethodRefresh
	if want := about && isSigned(m); want != (name.String() == software) || want != m.Contains(stun.AttrSoftware) {
		words = append(words, fmt.Sprintf("software=%q", name))
	}
	return strings.Join(words, " ")
}

func isSigned(m *stun.Message) bool {
	return m.Contains(stun.AttrMessageIntegrity) || m.Contains(attrIntegritySHA256)
}

// word writes an attribute of m; before is what is in front of it.
func (c *party) word(m *stun.Message, kind uint16, v, before []byte) string {
	c.Helper()
	switch kind {
	case attrErrorCode:
		return errorWord(m, v)
	case attrXORMappedAddress, attrXORRelayedAddress, attrXORPeerAddress, attrAlternateServer, attrOtherAddress, attrResponseOrigin:
		return c.addressWord(kind, addressIn(kind, v, m.TransactionID[:]))
	case attrLifetime:
		return fmt.Sprint("lifetime=", binary.BigEndian.Uint32(v))
	case attrUnknownAttributes:
		return fmt.Sprintf("unknown=%x", v)
	case attrAddressErrorCode:
		return fmt.Sprintf("refused%d=%s", []int{0, 4, 6}[min(v[0], 2)], errorWord(nil, append([]byte{0, 0}, v[2:]...)))
	case attrAlternateDomain:
		return "domain=" + string(v)
	case attrData:
		return brief(v)
	case attrICMP:
		return fmt.Sprintf("icmp=%x", v)
	case attrReservationToken:
		c.token = v
		return keep("token", len(v) == 8)
	case attrConnectionID:
		c.id = v
		return keep("id", len(v) == 4)
	default:
		return c.proofWord(m, kind, v, before)
	}
}

// keep is a name, marked when what it names is wrong.
func keep(name string, ok bool) string {
	if ok {
		return name
	}
	return "wrong-" + name
}

// proofWord writes an attribute that has to do with credentials, which it checks.
func (c *party) proofWord(m *stun.Message, kind uint16, v, before []byte) string {
	switch kind {
	case attrRealm:
		c.realm = string(v)
		return keep("realm", c.realm == DefaultRealm)
	case attrNonce:
		c.nonce = string(v)
		// With the cookie of RFC 8489 the nonce must say what PASSWORD-ALGORITHMS says.
		featured := strings.HasPrefix(c.nonce, "obMatJos2")
		return keep("nonce", len(v) < 128 && featured == m.Contains(attrPasswordAlgorithms))
	case uint16(attrPasswordAlgorithms):
		return keep("algorithms", bytes.Equal(v, algorithms))
	case attrMessageIntegrity:
		return keep("signed", c.key().Check(m) == nil)
	case uint16(attrIntegritySHA256):
		h := hmac.New(sha256.New, c.negotiated())
		signed := bytes.Clone(before)
		binary.BigEndian.PutUint16(signed[2:], uint16(len(before)-headerLen+4+sha256.Size))
		h.Write(signed)
		return keep("signed256", hmac.Equal(v, h.Sum(nil)))
	case attrFingerprint:
		return keep("fingerprint", stun.Fingerprint.Check(m) == nil)
	default:
		return fmt.Sprintf("%04x=%x", kind, v)
	}
}

// errorWord is the code of an ERROR-CODE. With a signature it comes with the phrase of
// the RFC; without one it has none, so that the answer is small.
func errorWord(m *stun.Message, v []byte) string {
	if len(v) < 4 {
		return fmt.Sprintf("code=%x", v)
	}
	code, phrase := int(v[2])*100+int(v[3]), string(v[4:])
	want := phrases[code]
	if m != nil && !isSigned(m) {
		want = ""
	}
	if v[0] != 0 || v[1] != 0 || v[2] > 6 || v[3] > 99 || phrase != want {
		return fmt.Sprintf("%d %q of %x", code, phrase, v)
	}
	return fmt.Sprint(code)
}

// addressIn reads an address attribute: with XOR, but for those of plain STUN.
func addressIn(kind uint16, v, transaction []byte) netip.AddrPort {
	if len(v) != 8 && len(v) != 20 || v[0] != 0 || (len(v) == 8) != (v[1] == familyIPv4) || v[1] > familyIPv6 {
		return netip.AddrPort{}
	}
	mask := append(binary.BigEndian.AppendUint32(nil, cookie), transaction...)
	port, addr := binary.BigEndian.Uint16(v[2:]), bytes.Clone(v[4:])
	if kind < 0x8000 {
		port ^= cookie >> 16
		for i := range addr {
			addr[i] ^= mask[i]
		}
	}
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a, port)
}

// addressWord names an address by what it should be.
func (c *party) addressWord(kind uint16, at netip.AddrPort) string {
	switch kind {
	case attrXORMappedAddress:
		return named("mapped", at, c.LocalAddr().String())
	case attrXORPeerAddress:
		return named("peer", at, c.peerAt.String())
	case attrXORRelayedAddress:
		if c.relays = append(c.relays, at); at.Port() < 1024 {
			return "relayed=" + at.String()
		}
		switch at.Addr() {
		case loopback:
			return "relayed4"
		case public6:
			return "relayed6"
		}
		return "relayed=" + at.String()
	case attrAlternateServer:
		return "alternate=" + at.String()
	case attrOtherAddress:
		return "other=" + at.String()
	default:
		return "origin=" + at.String()
	}
}

func named(name string, at netip.AddrPort, want string) string {
	if at.String() == want {
		return name
	}
	return name + "=" + at.String()
}

// renderChannelData writes ChannelData: over streams it is padded, with zeros.
func (c *party) renderChannelData(b []byte) string {
	n := int(binary.BigEndian.Uint16(b[2:]))
	size := 4 + n
	if c.stream() {
		size = 4 + padded(n)
	}
	if len(b) != size || len(bytes.Trim(b[4+n:], "\x00")) > 0 {
		return fmt.Sprintf("%d bytes of channel data, %d without header: %x", len(b), n, b[:min(len(b), 40)])
	}
	return fmt.Sprintf("channel %x %s", b[:2], brief(b[4:4+n]))
}

// brief writes data, or how much there is of it.
func brief(v []byte) string {
	if len(v) > 40 {
		return fmt.Sprintf("%d bytes", len(v))
	}
	return fmt.Sprintf("%q", v)
}
