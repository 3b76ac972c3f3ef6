// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/stun"
)

// The codec of pion/stun, which is not ours, reads what we write.
func TestMessage_OthersReadIt(t *testing.T) {
	key := longTermKey("u", "r", "p")
	for _, peer := range []string{"192.0.2.1:1", "[2001:db8::1]:65535"} {
		want := netip.MustParseAddrPort(peer)
		m := newMessage(methodCreatePermission, newTxID()).addPeer(want).
			add(attrUsername, []byte("user")).add(attrRealm, []byte("r")).add(attrNonce, []byte("12345")).sign(key)
		got := stun.Message{Raw: m}
		if err := got.Decode(); err != nil {
			t.Fatal(err)
		}
		var address stun.XORMappedAddress
		var nonce stun.Nonce
		if err := address.GetFromAs(&got, stun.AttrXORPeerAddress); err != nil || address.String() != peer {
			t.Errorf("peer is %s, %v", address, err)
		}
		if err := nonce.GetFrom(&got); err != nil || nonce.String() != "12345" {
			t.Errorf("nonce is %q, %v", nonce, err)
		}
		if err := stun.NewLongTermIntegrity("u", "r", "p").Check(&got); err != nil {
			t.Error(err)
		}
		if got.Type != stun.NewType(stun.MethodCreatePermission, stun.ClassRequest) {
			t.Errorf("type is %s", got.Type)
		}
	}
}

func TestMessage_ReadsOthers(t *testing.T) {
	long := stun.NewLongTermIntegrity("u", "r", "p")
	m := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse),
		&stun.ErrorCodeAttribute{Code: 486, Reason: []byte("too many")}, stun.NewRealm("r"), stun.NewNonce("n"),
		&stun.XORMappedAddress{IP: netip.MustParseAddr("2001:db8::1").AsSlice(), Port: 7}, long, stun.Fingerprint)
	if !checkMessage(m.Raw) {
		t.Fatal("a good message does not pass")
	}
	got := message(m.Raw)
	present, valid := got.signed(longTermKey("u", "r", "p"))
	if !present || !valid || got.code() != 486 || got.kind() != methodAllocate|classError || got.transaction() != m.TransactionID {
		t.Errorf("signed %t %t, code %d, kind %x", present, valid, got.code(), got.kind())
	}
	if a := got.address(attrXORMappedAddress); a != netip.MustParseAddrPort("[2001:db8::1]:7") {
		t.Errorf("address is %s", a)
	}
	if _, valid := got.signed(longTermKey("u", "r", "q")); valid {
		t.Error("signed with any key")
	}
}

// What stands behind MESSAGE-INTEGRITY is nobody's word.
func TestMessage_IgnoresWhatFollowsTheSignature(t *testing.T) {
	m := newMessage(methodAllocate|classError, newTxID()).sign([]byte("key")).add(attrErrorCode, []byte{0, 0, 4, 86})
	if m.code() != 0 {
		t.Errorf("code is %d", m.code())
	}
	if _, valid := m.signed([]byte("key")); !valid {
		t.Error("the signature does not hold")
	}
}

func TestPutSendHead_IsAnIndication(t *testing.T) {
	for _, to := range []string{"192.0.2.1:1", "[2001:db8::1]:9"} {
		for n := range 5 {
			var h [sendHead]byte
			data := bytes.Repeat([]byte("x"), n)
			head := h[:putSendHead(&h, netip.MustParseAddrPort(to), newTxID(), n)]
			m := append(append(bytes.Clone(head), data...), make([]byte, padded(n)-n)...)
			if !checkMessage(m) {
				t.Fatalf("%x is no message", m)
			}
			got := message(m)
			if got.kind() != sendIndication || !bytes.Equal(got.get(attrData), data) || got.address(attrXORPeerAddress).String() != to {
				t.Errorf("%x: data %q to %s", m, got.get(attrData), got.address(attrXORPeerAddress))
			}
		}
	}
}

func TestParseServer(t *testing.T) {
	good := map[string]server{
		"turn:example.org":                      {host: "example.org", port: "3478", transport: UDP},
		"TURN:example.org:80":                   {host: "example.org", port: "80", transport: UDP},
		"turn:192.0.2.1?transport=udp":          {host: "192.0.2.1", port: "3478", transport: UDP},
		"turn:192.0.2.1:1?transport=tcp":        {host: "192.0.2.1", port: "1", transport: TCP},
		"turns:example.org":                     {host: "example.org", port: "5349", transport: TLS},
		"turns:[2001:db8::1]:443?transport=tcp": {host: "2001:db8::1", port: "443", transport: TLS},
		"turn:[::1]":                            {host: "::1", port: "3478", transport: UDP},
	}
	for uri, want := range good {
		want.uri = uri
		if got, err := parseServer(uri); err != nil || got != want {
			t.Errorf("%s: %+v, %v", uri, got, err)
		}
	}
	bad := map[string]string{
		"":                                "the scheme",
		"example.org:3478":                "the scheme",
		"stun:example.org":                "the scheme",
		"https://example.org":             "the scheme",
		"turn:":                           "the host",
		"turn://example.org":              "the host",
		"turn:user@example.org":           "the host",
		"turn:example.org:0":              "the host",
		"turn:example.org:65536":          "the host",
		"turn:example.org:":               "the host",
		"turn:::1":                        "the host",
		"turn:2001:db8::1":                "the host",
		"turn:[example.org]":              "the host",
		"turn:[::1":                       "the host",
		"turn:[192.0.2.1]:1":              "the host",
		"turn:a b":                        "the host",
		"turn:example.org?transport=":     "only ?transport=",
		"turn:example.org?transport=sctp": "only ?transport=",
		"turn:example.org?x":              "only ?transport=",
		"turns:example.org?transport=udp": "DTLS",
	}
	for uri, want := range bad {
		if got, err := parseServer(uri); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "turn:HOST:PORT") {
			t.Errorf("%q: %+v, %v, want an error with %q", uri, got, err, want)
		}
	}
	if _, err := Allocate(t.Context(), Config{Server: "turn:x", Username: strings.Repeat("u", 509)}); err == nil || !strings.Contains(err.Error(), "508") {
		t.Errorf("long username: %v", err)
	}
	if _, err := Allocate(t.Context(), Config{Server: "turn:x", Family: 7}); err == nil || !strings.Contains(err.Error(), "AnyFamily") {
		t.Errorf("family 7: %v", err)
	}
}
