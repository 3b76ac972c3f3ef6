// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v2"
)

// attr is an attribute on the wire; the length field says what it likes.
func attr(t uint16, length int, v ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, t)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, v...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// packet is a STUN message of attributes, with a length that fits.
func packet(kind uint16, attrs ...[]byte) []byte {
	m := newMessage(nil, kind, make([]byte, 12))
	for _, a := range attrs {
		m = append(m, a...)
	}
	binary.BigEndian.PutUint16(m[2:], uint16(len(m)-headerLen))
	return m
}

func TestCheck(t *testing.T) {
	mac := make([]byte, macLen)
	v4, v6 := make([]byte, 8), make([]byte, 20)
	v4[1], v6[1] = familyIPv4, familyIPv6
	withByte := func(b []byte, i int, v byte) []byte {
		b = bytes.Clone(b)
		b[i] = v
		return b
	}
	bare := packet(bindingRequest)
	tests := []struct {
		name string
		b    []byte
		want bool
	}{
		{"nothing", nil, false},
		{"one byte", []byte{0}, false},
		{"bare header", bare, true},
		{"short header", bare[:19], false},
		{"trailing bytes", append(bytes.Clone(bare), 0, 0, 0, 0), false},
		{"wrong cookie", withByte(bare, 4, 0), false},
		{"length beyond the datagram", withByte(bare, 3, 4), false},
		{"length not a multiple of four", append(withByte(bare, 3, 1), 0), false},
		{"dtls", append([]byte{22, 254, 255}, make([]byte, 40)...), false},
		{"rtp", append([]byte{0x80}, make([]byte, 40)...), false},
		{"half an attribute header", packet(sendIndication, []byte{0, 1}), false},
		{"attribute beyond the message", packet(sendIndication, attr(attrData, 5, 1)), false},
		{"attribute of 64 KiB", packet(sendIndication, attr(attrData, 65535, 1)), false},
		{"unpadded last attribute", packet(sendIndication, attr(attrData, 3, 1, 2, 3)[:7]), false},
		{"attribute inside an attribute", packet(sendIndication, attr(attrData, 8, attr(attrXORPeerAddress, 0)...)), false},
		{"data", packet(sendIndication, attr(attrData, 3, 1, 2, 3)), true},
		{"empty data", packet(sendIndication, attr(attrData, 0)), true},
		{"unknown", packet(allocateRequest, attr(0x7fff, 1, 1)), true},
		{"peer v4", packet(sendIndication, attr(attrXORPeerAddress, 8, v4...)), true},
		{"peer v6", packet(sendIndication, attr(attrXORPeerAddress, 20, v6...)), true},
		{"peer of length 0", packet(sendIndication, attr(attrXORPeerAddress, 0)), false},
		{"peer of length 1", packet(sendIndication, attr(attrXORPeerAddress, 1, 0)), false},
		{"peer of length 4", packet(sendIndication, attr(attrXORPeerAddress, 4, v4[:4]...)), false},
		{"peer of family 0", packet(sendIndication, attr(attrXORPeerAddress, 8, make([]byte, 8)...)), false},
		{"peer v4 of v6's length", packet(sendIndication, attr(attrXORPeerAddress, 20, withByte(v6, 1, 1)...)), false},
		{"peer v6 of v4's length", packet(sendIndication, attr(attrXORPeerAddress, 8, withByte(v4, 1, 2)...)), false},
		{"peer with a first byte", packet(sendIndication, attr(attrXORPeerAddress, 8, withByte(v4, 0, 1)...)), false},
		{"old mapped address of length 0", packet(sendIndication, attr(attrOldXORMapped, 0)), false},
		{"error code of length 3", packet(bindingRequest, attr(attrErrorCode, 3, 0, 0, 4)), false},
		{"error code", packet(bindingRequest, attr(attrErrorCode, 4, 0, 0, 4, 1)), true},
		{"unknown attributes of length 3", packet(bindingRequest, attr(attrUnknownAttributes, 3, 0, 0, 4)), false},
		{"channel", packet(channelBindRequest, attr(attrChannelNumber, 4, 0x40, 0, 0, 0)), true},
		{"channel of length 2", packet(channelBindRequest, attr(attrChannelNumber, 2, 0x40, 0)), false},
		{"empty username", packet(allocateRequest, attr(attrUsername, 0)), false},
		{"longest username", packet(allocateRequest, attr(attrUsername, 508, make([]byte, 508)...)), true},
		{"username of 509", packet(allocateRequest, attr(attrUsername, 509, make([]byte, 509)...)), false},
		{"empty nonce", packet(allocateRequest, attr(attrNonce, 0)), false},
		{"empty realm", packet(allocateRequest, attr(attrRealm, 0)), false},
		{"integrity of length 19", packet(allocateRequest, attr(attrIntegrity, 19, mac[:19]...)), false},
		{"integrity", packet(allocateRequest, attr(attrIntegrity, 20, mac...)), true},
		{"integrity and fingerprint", packet(allocateRequest, attr(attrIntegrity, 20, mac...), attr(attrFingerprint, 4, 0, 0, 0, 0)), true},
		{"two integrities", packet(allocateRequest, attr(attrIntegrity, 20, mac...), attr(attrIntegrity, 20, mac...)), false},
		{"unsigned lifetime", packet(allocateRequest, attr(attrIntegrity, 20, mac...), attr(attrLifetime, 4, 0, 0, 0, 0)), false},
		{"fingerprint first", packet(allocateRequest, attr(attrFingerprint, 4, 0, 0, 0, 0), attr(attrData, 0)), false},
		{"48 attributes", packet(sendIndication, bytes.Repeat(attr(attrData, 0), 48)), true},
		{"49 attributes", packet(sendIndication, bytes.Repeat(attr(attrData, 0), 49)), false},
		{"channel data", []byte{0x40, 0, 0, 3, 1, 2, 3}, true},
		{"padded channel data", []byte{0x40, 0, 0, 3, 1, 2, 3, 0}, true},
		{"empty channel data", []byte{0x4f, 0xff, 0, 0}, true},
		{"channel data of 3 bytes", []byte{0x40, 0, 0}, false},
		{"channel data beyond the datagram", []byte{0x40, 0, 0, 4, 1, 2, 3}, false},
		{"channel data with a tail", []byte{0x40, 0, 0, 0, 1, 2, 3, 4}, false},
		{"channel data of a reserved number", []byte{0x50, 0, 0, 0}, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if got := check(tc.b); got != tc.want {
				t.Errorf("check(%x) = %t", tc.b, got)
			}
		})
	}
}

// RFC 5769 section 2.4: a request with long-term authentication.
const rfc5769LongTerm = `
	000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b90000
	0015001c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e
	6f72670000080014f67024656dd64a3e02b8e0712e85c9a28ca89666`

func TestMessage_RFC5769(t *testing.T) {
	b, err := hex.DecodeString(strings.Join(strings.Fields(rfc5769LongTerm), ""))
	if err != nil || !check(b) {
		t.Fatalf("%v, check %t", err, check(b))
	}
	m := message(b)
	signed, mac := m.split()
	key := stun.NewLongTermIntegrity("マトリックス", "example.org", "TheMatrIX")
	if got := signed.mac(key); !bytes.Equal(got, mac) {
		t.Errorf("mac %x, want %x", got, mac)
	}
	if rebuilt := message(bytes.Clone(signed)).sign(key); !bytes.Equal(rebuilt, m) {
		t.Errorf("signed anew: %x, want %x", rebuilt, m)
	}
}

func TestMessage_PeerAddress(t *testing.T) {
	for _, want := range []string{"1.2.3.4:5", "[2001:db8::1]:65535", "[::ffff:1.2.3.4]:80"} {
		var m stun.Message
		m.TransactionID = [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
		m.WriteHeader()
		m.Add(stun.AttrXORPeerAddress, xored(netip.MustParseAddrPort(want), m.TransactionID[:]))
		if got := message(m.Raw).peers(); len(got) != 1 || got[0].String() != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
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

// FuzzCheck says that what the guard passes does no harm: neither to our own
// reader nor to any getter of the engine's parser, which in the version at hand
// panics on attributes shorter than it expects.
func FuzzCheck(f *testing.F) {
	s, _ := NewSecrets(nil, nil)
	f.Add([]byte(signedBy(f, s.Mint("u", time.Minute), "r")))
	f.Add(packet(sendIndication, attr(attrData, 3, 1, 2, 3), attr(attrXORPeerAddress, 0)))
	f.Add(packet(sendIndication, attr(attrXORPeerAddress, 8, 0, 1, 0, 0, 1, 2, 3, 4)))
	f.Add(packet(allocateRequest, attr(attrErrorCode, 4, 0, 0, 4, 1), attr(attrUnknownAttributes, 2, 0, 1)))
	f.Add([]byte{0x40, 0, 0, 3, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		if !check(b) {
			return
		}
		if b[0]>>6 == 1 {
			if n := int(binary.BigEndian.Uint16(b[2:])); n > len(b)-4 {
				t.Fatalf("channel data of %d in %d bytes", n, len(b))
			}
			return
		}
		readAll(message(b))
		if !bytes.Equal(b, before) {
			t.Fatal("reading changed the packet")
		}
		parseAll(t, b)
		if rebuilt := message(bytes.Clone(b)).sign([]byte("k")); !fingerprinted(b) && !signed(b) && !check(rebuilt) {
			t.Fatalf("%x signed is %x", b, rebuilt)
		}
	})
}

func readAll(m message) {
	for range m.attributes() {
	}
	m.split()
	m.peers()
	m.unknown()
	m.errorCode()
}

func signed(b []byte) bool        { _, ok := message(b).get(attrIntegrity); return ok }
func fingerprinted(b []byte) bool { _, ok := message(b).get(attrFingerprint); return ok }

// parseAll runs every getter of the engine's parser over b.
func parseAll(t *testing.T, b []byte) {
	m := &stun.Message{Raw: bytes.Clone(b)}
	if err := m.Decode(); err != nil {
		t.Fatalf("the engine does not read what the guard passed: %v", err)
	}
	count := 0
	for range message(b).attributes() {
		count++
	}
	if count != len(m.Attributes) {
		t.Fatalf("we see %d attributes, the engine %d", count, len(m.Attributes))
	}
	for _, t := range []stun.AttrType{stun.AttrXORPeerAddress, stun.AttrXORRelayedAddress, stun.AttrXORMappedAddress} {
		_ = m.ForEach(t, func(m *stun.Message) error { return new(stun.XORMappedAddress).GetFromAs(m, t) })
	}
	for _, g := range []stun.Getter{
		new(stun.XORMappedAddress), new(stun.MappedAddress), new(stun.AlternateServer), new(stun.OtherAddress),
		new(stun.ResponseOrigin), new(stun.ErrorCodeAttribute), new(stun.UnknownAttributes), new(stun.Username),
		new(stun.Realm), new(stun.Nonce), new(stun.Software),
	} {
		_ = g.GetFrom(m)
	}
	_ = stun.Fingerprint.Check(m)
	_ = stun.NewShortTermIntegrity("k").Check(m)
	_ = m.String()
}

func BenchmarkCheck(b *testing.B) {
	s, _ := NewSecrets(nil, nil)
	for name, p := range map[string][]byte{
		"allocate":    signedBy(b, s.Mint("u", time.Minute), "r"),
		"channelData": append([]byte{0x40, 0, 4, 0}, make([]byte, 1024)...),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !check(p) {
					b.Fatal("refused")
				}
			}
		})
	}
}
