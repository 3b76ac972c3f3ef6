// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/node/path"
)

// samples are messages of each kind.
func samples() []path.Message {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:32853"), netip.MustParseAddrPort("[2001:db8:1234:5678:11:2233:4455:6677]:32853")
	id := path.Transaction{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	return []path.Message{
		{Type: path.BindingRequest, ID: id},
		{Type: path.BindingRequest, ID: id, Username: []byte("abcdefgh:ijklmnop"), Priority: 1 << 30, Fingerprint: true,
			Note: &path.Note{Sequence: 1 << 40, Leg: path.TLS, Uses: true, Round: true, Veils: true}},
		{Type: path.BindingRequest, ID: id, ChangeIP: true, ChangePort: true},
		{Type: path.BindingSuccess, ID: id, Mapped: v4, Fingerprint: true},
		{Type: path.BindingSuccess, ID: id, Mapped: v6, Other: v4, Origin: v6},
		{Type: path.BindingError, ID: id, ErrorCode: 420},
	}
}

func TestMessage_ComesBackAsItWas(t *testing.T) {
	for _, want := range samples() {
		for _, password := range []string{"", "VOkJxbRl1RmTxUk/WvJxBt"} {
			got, err := path.ParseMessage(want.Marshal(password))
			if err != nil {
				t.Fatal(err)
			}
			if got.Holds(password) != (password != "") || got.Holds("another") {
				t.Errorf("the seal of %+v", want)
			}
			if again := got.Marshal(password); !bytes.Equal(again, want.Marshal(password)) {
				t.Errorf("%+v became %+v", want, got)
			}
			if got.Mapped != want.Mapped || !reflect.DeepEqual(got.Note, want.Note) || got.ID != want.ID || got.ErrorCode != want.ErrorCode {
				t.Errorf("%+v became %+v", want, got)
			}
		}
	}
}

// What another implementation makes and reads of the same.
func TestMessage_IsWhatOthersUnderstand(t *testing.T) {
	const password = "VOkJxbRl1RmTxUk/WvJxBt"
	for _, m := range samples() {
		var other stun.Message
		if err := stun.Decode(m.Marshal(password), &other); err != nil {
			t.Fatal(err)
		}
		if err := stun.NewShortTermIntegrity(password).Check(&other); err != nil {
			t.Errorf("%+v: %v", m, err)
		}
		if m.Fingerprint {
			if err := stun.Fingerprint.Check(&other); err != nil {
				t.Errorf("%+v: %v", m, err)
			}
		}
		var mapped stun.XORMappedAddress
		if err := mapped.GetFrom(&other); m.Mapped.IsValid() && (err != nil || mapped.Port != int(m.Mapped.Port()) || !mapped.IP.Equal(net.IP(m.Mapped.Addr().AsSlice()))) {
			t.Errorf("%v became %v: %v", m.Mapped, mapped, err)
		}
	}
	theirs, err := stun.Build(stun.BindingSuccess, stun.TransactionID, stun.NewSoftware("another"),
		&stun.XORMappedAddress{IP: net.ParseIP("2001:db8::7"), Port: 7}, &stun.OtherAddress{IP: net.IPv4(192, 0, 2, 9), Port: 9},
		stun.NewShortTermIntegrity(password), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	got, err := path.ParseMessage(theirs.Raw)
	if err != nil || !got.Holds(password) || !got.Fingerprint || got.Mapped.String() != "[2001:db8::7]:7" || got.Other.String() != "192.0.2.9:9" {
		t.Errorf("%+v, %v", got, err)
	}
	old, err := stun.Build(stun.BindingSuccess, stun.TransactionID, &stun.MappedAddress{IP: net.IPv4(192, 0, 2, 9), Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := path.ParseMessage(old.Raw); err != nil || got.Mapped.String() != "192.0.2.9:9" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseMessage_RefusesWhatIsMalformed(t *testing.T) {
	// with has attributes as bytes, whatever they are.
	with := func(attributes ...byte) []byte {
		m := path.Message{Type: path.BindingRequest}
		b := append(m.Marshal(""), attributes...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(attributes)))
		return b
	}
	sealed := (&path.Message{Type: path.BindingRequest, Fingerprint: true}).Marshal("password")
	twist := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":                    nil,
		"short":                      with()[:19],
		"no cookie":                  twist(with(), 7),
		"another method":             twist(with(), 1)[:20],
		"an indication":              append([]byte{0, 0x11}, with()[2:]...),
		"a longer length":            twist(with(), 3),
		"something after it":         append(with(), 0, 0, 0, 0),
		"half a header":              with(0x80, 0x22, 0)[:22],
		"an attribute past the end":  with(0x80, 0x22, 0, 1),
		"a long attribute":           with(0x80, 0x22, 0xFF, 0xFF),
		"an address of nothing":      with(0, 0x20, 0, 0),
		"an address of 4":            with(0, 0x20, 0, 4, 0, 1, 0, 0),
		"IPv4 that says IPv6":        with(0, 0x20, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0),
		"an address of a third kind": with(0, 0x20, 0, 8, 0, 3, 0, 0, 0, 0, 0, 0),
		"IPv6 that says IPv4":        with(append([]byte{0, 0x20, 0, 20, 0, 1}, make([]byte, 18)...)...),
		"other address of nothing":   with(0x80, 0x2C, 0, 0),
		"a short priority":           with(0, 0x24, 0, 2, 0, 0, 0, 0),
		"a long priority":            with(0, 0x24, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0),
		"a short seal":               with(0, 8, 0, 4, 0, 0, 0, 0),
		"a short fingerprint":        with(0x80, 0x28, 0, 0),
		"a wrong fingerprint":        twist(sealed, len(sealed)-1),
		"a fingerprint of other":     twist(sealed, 9),
		"something after the fingerprint": func() []byte {
			m := path.Message{Type: path.BindingRequest, Fingerprint: true}
			b := append(m.Marshal(""), 0x80, 0x22, 0, 0)
			b[3] += 4 // of which the fingerprint knows
			binary.BigEndian.PutUint32(b[24:], crc32.ChecksumIEEE(b[:20])^0x5354554E)
			return b
		}(),
		"a short note":                with(0xFF, 0x4D, 0, 4, 0, 0, 0, 0),
		"a note of a fifth transport": with(0xFF, 0x4D, 0, 12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0),
		"no user name":                with(0, 6, 0, 0),
		"an error without a code":     with(0, 9, 0, 4, 0, 0, 0, 0),
		"long":                        with(append([]byte{0x80, 0x22, 8, 0}, make([]byte, 2048)...)...),
	} {
		if m, err := path.ParseMessage(b); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
		if _, ok := path.Owner(b); ok {
			t.Errorf("%s has an owner", name)
		}
	}
	for name, b := range map[string][]byte{"nothing": with(), "an unknown attribute": with(0xFF, 1, 0, 1, 0, 0, 0, 0), "sealed": sealed} {
		if _, err := path.ParseMessage(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What comes after the seal was added by somebody else.
func TestParseMessage_IgnoresWhatFollowsTheSeal(t *testing.T) {
	m := path.Message{Type: path.BindingRequest}
	b := m.Marshal("password")
	extra := path.Message{Type: path.BindingRequest, Username: []byte("evil"), Note: &path.Note{Sequence: 9}}
	b = append(b, extra.Marshal("")[20:]...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-20))
	got, err := path.ParseMessage(b)
	if err != nil || got.Username != nil || got.Note != nil || !got.Holds("password") {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestIsMessage_TellsSTUNFromWireGuard(t *testing.T) {
	for kind := byte(1); kind <= 4; kind++ {
		// The worst index that a receiver can have drawn.
		b := binary.BigEndian.AppendUint32([]byte{kind, 0, 0, 0}, 0x2112A442)
		if path.IsMessage(append(b, make([]byte, 140)...)) {
			t.Errorf("message %d of WireGuard", kind)
		}
	}
	for _, m := range samples() {
		if !path.IsMessage(m.Marshal("")) {
			t.Errorf("%+v is not STUN", m)
		}
	}
}
