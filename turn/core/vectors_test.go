// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/stun"
)

// vector decodes the hexadecimal notation of the RFCs.
func vector(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Credentials of the samples in RFC 5769 and of RFC 8489's appendix B.
const (
	samplePassword = "VOkJxbRl1RmTxUk/WvJxBt"
	matrixUser     = "\u30DE\u30C8\u30EA\u30C3\u30AF\u30B9"
	matrixRealm    = "example.org"
	matrixPassword = "TheMatrIX"
)

func sampleRequest(t *testing.T) []byte {
	return vector(t, `00010058 2112a442 b7e7a701bc34d686fa87dfae
		80220010 5354554e207465737420636c69656e74 00240004 6e0001ff 80290008 932ff9b151263b36
		00060009 6576746a3a68367659202020 00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2 80280004 e57a3bcf`)
}

func TestRFC5769_Request(t *testing.T) {
	var m message
	if !m.decode(sampleRequest(t)) {
		t.Fatal("the request does not decode")
	}
	if m.method != methodBinding || m.class != classRequest || string(m.username) != "evtj:h6vY" || m.has&hasFingerprint == 0 {
		t.Errorf("%+v", m)
	}
	if m.unknowns != 1 || m.unknown[0] != 0x0024 {
		t.Errorf("%d attributes are unknown, want PRIORITY alone", m.unknowns)
	}
	// Short-term credentials: the key is the password, which no Key holds.
	mac := signerMAC(samplePassword, m.raw[:m.integrityAt])
	if mac != string(m.integrity) {
		t.Errorf("MESSAGE-INTEGRITY is %x, want %x", m.integrity, mac)
	}
}

// signerMAC computes MESSAGE-INTEGRITY with a key of any length.
func signerMAC(key string, b []byte) string {
	h := signer{kind: hasIntegrity}.hash([]byte(key))
	header := [headerLen]byte(b)
	header[2], header[3] = byte((len(b)-headerLen+24)>>8), byte(len(b)-headerLen+24)
	h.Write(header[:])
	h.Write(b[headerLen:])
	return string(h.Sum(nil))
}

func TestRFC5769_Responses(t *testing.T) {
	for name, v := range map[string]struct{ b, addr string }{
		"IPv4": {`0101003c 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220
			00200008 0001a147e112a643 00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004 c07d4c96`, "192.0.2.1:32853"},
		"IPv6": {`01010048 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220
			00200014 0002a147 0113a9faa5d3f179bc25f4b5bed2b9d9
			00080014 a382954e4be67bf11784c97c8292c275bfe3ed41 80280004 c8fb0b4c`, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"},
	} {
		b := vector(t, v.b)
		var m message
		if !m.decode(b) || m.class != classSuccess {
			t.Fatalf("%s: the response does not decode", name)
		}
		if mac := signerMAC(samplePassword, b[:m.integrityAt]); mac != string(m.integrity) {
			t.Errorf("%s: MESSAGE-INTEGRITY is %x, want %x", name, m.integrity, mac)
		}
		at := headerLen + attrHeader + 12
		size := map[string]int{"IPv4": 8, "IPv6": 20}[name]
		got, ok := xorAddress(b[at+attrHeader:at+attrHeader+size], b)
		if !ok || got != netip.MustParseAddrPort(v.addr) {
			t.Errorf("%s: the address is %v, want %s", name, got, v.addr)
		}
		if enc := appendXORAddress(nil, got, [headerLen]byte(b)); string(enc) != string(b[at+attrHeader:at+attrHeader+size]) {
			t.Errorf("%s: %v is encoded as %x", name, got, enc)
		}
	}
}

func longTermRequest(t *testing.T) []byte {
	return vector(t, `00010060 2112a442 78ad3433c6ad72c029da412e 00060012 e3839ee38388e383aae38383e382afe382b90000
		0015001c 662f2f3439396b393534643 64f4c33346f4c39465354767936347341 0014000b 6578616d706c652e6f726700
		00080014 f67024656dd64a3e02b8e0712e85c9a28ca89666`)
}

func TestRFC5769_LongTermRequest(t *testing.T) {
	var m message
	if !m.decode(longTermRequest(t)) {
		t.Fatal("the request does not decode")
	}
	s := signer{kind: hasIntegrity, algorithm: algorithmMD5, key: NewKey(matrixUser, matrixRealm, matrixPassword)}
	if string(m.username) != matrixUser || string(m.realm) != matrixRealm || !s.verifies(&m) {
		t.Errorf("%q of %q is not verified", m.username, m.realm)
	}
	if s.key = NewKey(matrixUser, matrixRealm, "theMatrIX"); s.verifies(&m) {
		t.Error("another password is verified")
	}
}

// What the core writes of the same attributes is the sample, byte for byte.
func TestRFC5769_LongTermRequestIsWrittenAlike(t *testing.T) {
	want := longTermRequest(t)
	var out Output
	w := out.build(methodBinding, classRequest, [12]byte(want[8:headerLen]))
	w.text(attrUsername, matrixUser)
	w.text(attrNonce, "f//499k954d6OL34oL9FSTvy64sA")
	w.text(attrRealm, matrixRealm)
	s := signer{kind: hasIntegrity, algorithm: algorithmMD5, key: NewKey(matrixUser, matrixRealm, matrixPassword)}
	if got := w.finish(s, false); string(got) != string(want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

// The sample of RFC 8489, as erratum 6268 corrects it.
func TestRFC8489_RequestWithSHA256(t *testing.T) {
	var m message
	if !m.decode(vector(t, `00010090 2112a442 78ad3433c6ad72c029da412e
		001e0020 4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704
		00150029 6f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c3946535476793634734100 0000
		0014000b 6578616d706c652e6f726700 001d0004 00020000
		001c0020 b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65`)) {
		t.Fatal("the request does not decode")
	}
	if m.malformed || m.unknowns != 0 || m.has&hasUserhash == 0 || isFeatured(m.nonce) {
		t.Errorf("%+v", m)
	}
	s := signer{kind: hasIntegritySHA256, algorithm: algorithmSHA256, key: NewKey(matrixUser, matrixRealm, matrixPassword)}
	if !s.verifies(&m) {
		t.Error("the request is not verified")
	}
	if s.algorithm = algorithmMD5; s.verifies(&m) {
		t.Error("the request is verified by another algorithm")
	}
}

func TestRFC5769_EveryChangedByteIsSeen(t *testing.T) {
	for at := range len(sampleRequest(t)) - attrHeader - 4 { // without FINGERPRINT nothing can be seen
		b := sampleRequest(t)
		b[at] ^= 0x01
		var m message
		if m.decode(b) {
			t.Errorf("with another byte %d it decodes", at)
		}
	}
}

// TestAnswers_SatisfyAnotherCodec has another implementation read what the core
// writes.
func TestAnswers_SatisfyAnotherCodec(t *testing.T) {
	c := newWorld(t).client(udp6, 1)
	b := c.signed(methodAllocate, udp(), additional(IPv6), flag(attrEvenPort, 0))
	// FINGERPRINT behind MESSAGE-INTEGRITY: the answer has it too.
	var out Output
	w := builder{out: &out}
	out.arena = append(out.arena, b...)
	c.exchange(w.finish(signer{}, true))
	m := &stun.Message{Raw: c.toClient[len(c.toClient)-1].data}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	if err := stun.NewLongTermIntegrity("alice", "meshgate", "wonder").Check(m); err != nil {
		t.Errorf("integrity: %v", err)
	}
	if err := stun.Fingerprint.Check(m); err != nil {
		t.Errorf("fingerprint: %v", err)
	}
	var mapped stun.XORMappedAddress
	if err := mapped.GetFrom(m); err != nil || mapped.IP.String() != c.flow.Client.Addr().String() || mapped.Port != int(c.flow.Client.Port()) {
		t.Errorf("mapped address %v, %v", mapped, err)
	}
	var relayed stun.XORMappedAddress
	if err := relayed.GetFromAs(m, stun.AttrXORRelayedAddress); err != nil || relayed.String() != "198.51.100.1:49152" {
		t.Errorf("relayed address %v, %v", relayed, err)
	}
}
