// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

func FuzzParseMessage(f *testing.F) {
	for _, m := range samples() {
		f.Add(m.Marshal(""), "")
		f.Add(m.Marshal("password"), "password")
	}
	f.Fuzz(func(t *testing.T, b []byte, password string) {
		m, err := path.ParseMessage(b)
		if _, owned := path.Owner(b); err != nil && owned {
			t.Error("a malformed message has an owner")
		}
		if err != nil {
			return
		}
		if !path.IsMessage(b) {
			t.Error("what is parsed is no message")
		}
		m.Holds(password)
		// What is understood can be said again, and is then understood the same.
		if m.Note != nil && len(b) > 500 || len(m.Username) > 500 {
			return // attributes that we make shorter
		}
		again, err := path.ParseMessage(m.Marshal(""))
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if again.Mapped != m.Mapped || again.Other != m.Other || again.Origin != m.Origin || !bytes.Equal(again.Username, m.Username) ||
			again.Priority != m.Priority || again.ErrorCode != m.ErrorCode || (again.Note == nil) != (m.Note == nil) || again.ChangeIP != m.ChangeIP {
			t.Errorf("%+v became %+v", m, again)
		}
	})
}

// Whatever is done to a message, it is the one that the peer made or it is
// nothing.
func FuzzAgent_Packet(f *testing.F) {
	f.Add([]byte{}, uint16(0), byte(0), uint16(0), false)
	f.Add([]byte{0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42}, uint16(3), byte(7), uint16(9), true)
	f.Add([]byte("garbage"), uint16(50), byte(0x80), uint16(100), false)
	f.Fuzz(func(t *testing.T, garbage []byte, at uint16, flip byte, cut uint16, response bool) {
		v := newVictim(t)
		var valid []byte
		if response {
			asked := v.tick(time.Millisecond)
			answer := v.answer(asked[0])
			valid = answer.Marshal(v.sealed(v.peer.Password))
		} else {
			v.stand()
			m := v.request()
			valid = m.Marshal(v.sealed(v.own.Password))
		}
		mutated := bytes.Clone(valid)
		mutated[int(at)%len(mutated)] ^= flip
		if int(cut) < len(mutated) {
			mutated = append(mutated[:cut], garbage...)
		}
		from := netip.MustParseAddrPort("198.51.100.66:6")
		v.unchanged(func() {
			for _, b := range [][]byte{garbage, mutated} {
				if bytes.Equal(b, valid) {
					continue
				}
				for _, source := range []netip.AddrPort{from, peerAddr} {
					if out := v.packet(source, b); len(out) > 0 {
						t.Errorf("%x is answered", b)
					}
				}
			}
		})
	})
}

func FuzzAnswer(f *testing.F) {
	for _, m := range samples() {
		f.Add(m.Marshal(""), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		from := netip.MustParseAddrPort("192.0.2.1:1")
		if v6 {
			from = netip.MustParseAddrPort("[2001:db8::1]:1")
		}
		answer, ok := path.Answer(b, from)
		if !ok {
			return
		}
		m, err := path.ParseMessage(answer)
		if err != nil || m.Type != path.BindingSuccess || m.Mapped != from || len(answer) > len(b) {
			t.Errorf("%x for %x", answer, b)
		}
		if _, again := path.Answer(answer, from); again {
			t.Error("an answer is answered")
		}
		p, l := path.NewProbe(), path.NewLookup()
		if p.Packet(time.Unix(1, 0), 0, from, b) {
			t.Error("a probe takes what it did not ask for")
		}
		if _, ok := l.Packet(time.Unix(1, 0), 0, from, b); ok {
			t.Error("a lookup takes what it did not ask for")
		}
	})
}
