// SPDX-License-Identifier: Apache-2.0

package rtc

import (
	"net"
	"net/netip"
	"testing"

	"github.com/pion/stun"
)

func TestParseBinding(t *testing.T) {
	request := sealedRequest(t, "alpha", testPassword)
	b, ok := parseBinding(request)
	if !ok || b.kind != bindingRequest || string(b.receiver) != "alpha" || b.id != transaction(request[8:20]) {
		t.Fatalf("%+v, %v", b, ok)
	}
	if !newSeal(testPassword).holds(request, b.sealed) {
		t.Error("a proper seal does not hold")
	}
	// A name that follows the seal is not covered by it.
	m, err := stun.Build(stun.BindingRequest, stun.TransactionID, stun.NewShortTermIntegrity(testPassword), stun.NewUsername("alpha:them"))
	if err != nil {
		t.Fatal(err)
	}
	if b, ok := parseBinding(m.Raw); !ok || b.receiver != nil {
		t.Errorf("a name after the seal was read: %+v, %v", b, ok)
	}
	for name, p := range map[string][]byte{
		"empty": nil, "DTLS": {22, 254, 253, 0}, "header only, too long": stunMessage(0x0001)[:19],
		"length beyond the end": append(stunMessage(0x0001)[:2:2], append([]byte{0, 4}, stunMessage(0x0001)[4:]...)...),
		"short seal":            stunMessage(0x0001, attribute(attrIntegrity, 1, 2, 3, 4)),
	} {
		if b, ok := parseBinding(p); ok {
			t.Errorf("%s: read as %+v", name, b)
		}
	}
}

func TestSeal_EveryBitCounts(t *testing.T) {
	request := sealedRequest(t, "alpha", testPassword)
	b, _ := parseBinding(request)
	s := newSeal(testPassword)
	for i := range b.sealed + integritySize {
		if i == 2 || i == 3 || i == b.sealed || i == b.sealed+1 || i == b.sealed+2 || i == b.sealed+3 {
			continue // the length is computed, and the type was read
		}
		request[i] ^= 1
		if s.holds(request, b.sealed) {
			t.Fatalf("byte %d does not count", i)
		}
		request[i] ^= 1
	}
	if !s.holds(request, b.sealed) || s.holds(request, 0) || s.holds(request, len(request)-4) {
		t.Error("wrong offsets")
	}
}

func TestRelayedCheck(t *testing.T) {
	check := sealedRequest(t, "alpha", testPassword)
	to := netip.MustParseAddrPort("192.0.2.7:4711")
	six := netip.MustParseAddrPort("[2001:db8::7]:4711")
	send := func(payload []byte, to netip.AddrPort) []byte {
		m := stun.New()
		m.Type = stun.NewType(stun.MethodSend, stun.ClassIndication)
		m.WriteHeader()
		peer := &stun.XORMappedAddress{IP: net.IP(to.Addr().AsSlice()), Port: int(to.Port())}
		if err := peer.AddToAs(m, stun.AttrXORPeerAddress); err != nil {
			t.Fatal(err)
		}
		m.Add(stun.AttrData, payload)
		return m.Raw
	}
	channel := append([]byte{0x40, 9, byte(len(check) >> 8), byte(len(check))}, check...)
	server, err := stun.Build(stun.BindingRequest, stun.TransactionID)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		p    []byte
		to   netip.AddrPort
		ok   bool
	}{
		{"send", send(check, to), to, true},
		{"send, IPv6", send(check, six), six, true},
		{"send of data", send([]byte{23, 1, 2}, to), to, false},
		{"channel", channel, netip.AddrPortFrom(netip.Addr{}, 0x4009), true},
		{"cut channel", channel[:20], netip.AddrPortFrom(netip.Addr{}, 0x4009), false},
		{"a check itself", check, netip.AddrPort{}, false},
		{"request to a STUN server", server.Raw, netip.AddrPort{}, false},
	} {
		if got, ok := relayedCheck(tc.p); ok != tc.ok || ok && got != tc.to {
			t.Errorf("%s: %v, %v", tc.name, got, ok)
		}
	}
	if isCheck(server.Raw) || !isCheck(check) {
		t.Error("a request to a STUN server is no check")
	}
}

// What this package takes for sealed, ICE must too: nobody gets an address by
// a message that ICE then refuses.
func FuzzParseBinding(f *testing.F) {
	m, err := stun.Build(stun.BindingRequest, stun.TransactionID, stun.NewUsername("alpha:them"),
		stun.NewShortTermIntegrity(testPassword), stun.Fingerprint)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Raw)
	f.Add([]byte{0x40, 1, 0, 3, 'a', 'b', 'c', 0})
	s := newSeal(testPassword)
	f.Fuzz(func(t *testing.T, p []byte) {
		_, _ = relayedCheck(p)
		b, ok := parseBinding(p)
		if !ok || !sound(p) || !s.holds(p, b.sealed) {
			return
		}
		m := &stun.Message{Raw: append([]byte(nil), p...)}
		if err := m.Decode(); err != nil {
			t.Fatalf("decode: %v", err)
		}
		if err := stun.NewShortTermIntegrity(testPassword).Check(m); err != nil {
			t.Fatalf("a seal that ICE does not accept: %v", err)
		}
	})
}
