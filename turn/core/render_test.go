// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// render writes a message in short: "ok", the code, "data" or "attempt", then
// the attributes that say something. It checks length, padding, FINGERPRINT and
// integrity, and takes realm and nonce over.
func (c *client) render(b []byte) string {
	c.Helper()
	var m message
	if !m.decode(b) {
		c.Fatalf("no STUN message: %x", b)
	}
	words := []string{map[class]string{classSuccess: "ok", classError: "?", classIndication: "data"}[m.class]}
	if m.method == methodConnectionAttempt {
		words[0] = "attempt"
	}
	for at := headerLen; at < len(b); {
		kind, n := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		v := b[at+attrHeader : at+attrHeader+n]
		if pad := b[at+attrHeader+n : at+attrHeader+padded(n)]; strings.Trim(string(pad), "\x00") != "" {
			c.Errorf("padding of %#x is %x", kind, pad)
		}
		if kind == attrErrorCode {
			words[0] = fmt.Sprint(int(v[2])*100 + int(v[3]))
		} else if s := c.renderAttr(&m, kind, v); s != "" {
			words = append(words, s)
		}
		at += attrHeader + padded(n)
	}
	return strings.Join(words, " ")
}

func (c *client) renderAttr(m *message, kind uint16, v []byte) string {
	address := func(name string, header []byte) string {
		addr, ok := xorAddress(v, header)
		if !ok {
			c.Fatalf("%s is %x", name, v)
		}
		if addr == c.flow.Client {
			return name + "=client"
		}
		return name + "=" + addr.String()
	}
	plain := make([]byte, headerLen)
	switch kind {
	case attrXORRelayedAddress:
		return address("relayed", m.raw)
	case attrXORMappedAddress:
		return address("mapped", m.raw)
	case attrXORPeerAddress:
		return address("peer", m.raw)
	case attrAlternateServer, attrOtherAddress, attrResponseOrigin:
		addr, _ := xorAddress(v, plain) // no XOR: with zeros the port alone is mixed with the cookie
		addr = netip.AddrPortFrom(addr.Addr(), binary.BigEndian.Uint16(v[2:]))
		return map[uint16]string{attrAlternateServer: "alternate=", attrOtherAddress: "other=", attrResponseOrigin: "origin="}[kind] + addr.String()
	case attrAlternateDomain:
		return "domain=" + string(v)
	case attrLifetime:
		return fmt.Sprint("lifetime=", binary.BigEndian.Uint32(v))
	case attrReservationToken:
		return "token"
	case attrUnknownAttributes:
		return fmt.Sprintf("unknown=%x", v)
	case attrAddressErrorCode:
		return fmt.Sprintf("refused=%d:%d", v[0], int(v[2])*100+int(v[3]))
	case attrData:
		return fmt.Sprintf("%q", v)
	case attrICMP:
		return fmt.Sprintf("icmp=%x", v)
	case attrConnectionID:
		return "id"
	case attrNonce:
		c.nonce = string(v)
		return "nonce"
	case attrPasswordAlgorithms:
		return "algorithms"
	case attrIntegrity:
		return c.renderIntegrity(m, hasIntegrity, "")
	case attrIntegritySHA256:
		return c.renderIntegrity(m, hasIntegritySHA256, "sha256")
	default:
		return ""
	}
}

func (c *client) renderIntegrity(m *message, kind has, name string) string {
	s := signer{kind: kind, algorithm: algorithmMD5, key: NewKey(c.username, "meshgate", c.password)}
	if c.sha256 {
		s.algorithm = algorithmSHA256
	}
	if !s.verifies(m) {
		c.Errorf("the answer is not signed with the client's key: %x", m.raw)
	}
	return name
}
