// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"
)

// seeds are messages of all kinds, signed and not.
func seeds(c *client) [][]byte {
	c.allocate(udp(), additional(IPv6))
	all := [][]byte{
		c.unsigned(methodBinding, classRequest), c.fingerprinted(0), c.fingerprinted(1),
		c.unsigned(methodSend, classIndication, peerAt(peer4), data("hello")),
		c.unsigned(methodAllocate, classRequest, udp(), flag(attrEvenPort, 0x80), lifetime(1)),
		c.signed(methodRefresh), c.signed(methodCreatePermission, peerAt(peer4), peerAt(peer6)),
		c.signed(methodChannelBind, channel(0x4000), peerAt(peer4)), c.signed(methodConnect, peerAt(peer4)),
		c.signed(methodConnectionBind, u32(attrConnectionID, 1)),
		channelData(0x4000, "hello"), {0x40}, nil, make([]byte, headerLen),
	}
	c.sha256 = true
	return append(all, c.signed(methodRefresh, family(IPv6), text(attrReservationToken, "12345678")))
}

// FuzzMessage decodes hostile bytes, and holds those that decode against
// another decoder where that one does not panic.
func FuzzMessage(f *testing.F) {
	for _, b := range seeds(newWorld(f).client(udp4, 1)) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		before := bytes.Clone(b)
		if !m.decode(b) {
			return
		}
		if !bytes.Equal(b, before) {
			t.Fatal("decode changed the packet")
		}
		n := 0
		for range m.peers {
			n++
		}
		if !m.malformed && (n > 0) != (m.has&hasPeer != 0) {
			t.Errorf("%d peers, and the first is %v", n, m.peer)
		}
		other := &stun.Message{Raw: bytes.Clone(b)}
		if err := other.Decode(); err != nil {
			t.Fatalf("another decoder says %v", err)
		}
		if other.TransactionID != m.transaction || uint16(other.Type.Value()) != binary.BigEndian.Uint16(b) ||
			uint16(other.Type.Method) != uint16(m.method) || uint8(other.Type.Class) != uint8(m.class) {
			t.Errorf("%+v is %v to another decoder", m, other)
		}
	})
}

// FuzzClient feeds a core, which has an allocation, a permission and a channel,
// with what a client may send: nothing may panic, or go to a peer that was not
// permitted, and the core must still serve.
func FuzzClient(f *testing.F) {
	for _, b := range seeds(newWorld(f).client(udp4, 1)) {
		f.Add(b, uint8(udp4))
		f.Add(b, uint8(tcp6))
	}
	f.Fuzz(func(t *testing.T, b []byte, listener uint8) {
		c := newWorld(t).client(uint16(listener)%(udp4BQ+1), 1)
		c.bound()
		c.core.FromClient(c.now, c.flow, b, &c.out)
		c.drive()
		for _, s := range c.toPeer {
			if s.peer.Addr() != netip.MustParseAddrPort(peer4).Addr() {
				t.Errorf("%x went to %v", s.data, s.peer)
			}
		}
		if got := c.emit(channelData(0x4000, "x")); got != `"x" to `+peer4 {
			t.Errorf("afterwards: %s", got)
		}
		c.pass(2 * time.Hour)
		if s := c.core.Stats(); s.Allocations+s.Reservations+s.Connections != 0 || len(c.relays) != 0 {
			t.Errorf("left over: %+v, %v", s, c.relays)
		}
	})
}

// FuzzFrame cuts hostile bytes as a stream that comes in pieces: the answer must
// not depend on how much is there, and whole frames must be ones that FromClient takes.
func FuzzFrame(f *testing.F) {
	for _, b := range seeds(newWorld(f).client(udp4, 1)) {
		f.Add(b)
		f.Add(append(b, b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Frame(b)
		for short := range min(len(b), headerLen) {
			m, shortErr := Frame(b[:short])
			if m != 0 && (m != n || err != nil) || shortErr != nil && !errors.Is(err, ErrNotTURN) {
				t.Fatalf("Frame of %x is %d, %v, and of %x %d, %v", b, n, err, b[:short], m, shortErr)
			}
		}
		switch {
		case err != nil:
			if n != 0 {
				t.Errorf("Frame is %d with %v", n, err)
			}
		case n == 0:
			if len(b) >= 8 {
				t.Errorf("Frame of %x does not know", b)
			}
		case n < channelHeader || n > MaxFrame || n%4 != 0:
			t.Errorf("Frame of %x is %d", b, n)
		case n <= len(b) && b[0] < 0x40 && !isMessage(b[:n]):
			t.Errorf("%x is a frame and no message", b[:n])
		}
	})
}

// FuzzPeer has a peer send anything, with any room around it.
func FuzzPeer(f *testing.F) {
	f.Add([]byte("hello"), uint8(Headroom), uint8(Tailroom), true, uint8(tcp4))
	f.Add([]byte(""), uint8(0), uint8(0), false, uint8(udp6))
	f.Fuzz(func(t *testing.T, payload []byte, head, tail uint8, bind bool, listener uint8) {
		if len(payload) > 2000 {
			return
		}
		c := newWorld(t).client(uint16(listener)%(udp4BQ+1), 1)
		if c.permitted(); bind {
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
		}
		buf := append(bytes.Repeat([]byte{0xEE}, int(head)), payload...)
		buf = append(buf, bytes.Repeat([]byte{0xEE}, int(tail))...)[:int(head)+len(payload)]
		for id := range c.relays {
			c.core.FromPeer(c.now, id, netip.MustParseAddrPort(peer4), buf, int(head), &c.out)
		}
		if len(c.out.Actions) != 1 {
			t.Fatalf("%d actions", len(c.out.Actions))
		}
		got := c.out.Actions[0].Data
		if bind {
			n := int(binary.BigEndian.Uint16(got[2:]))
			if !bytes.Equal(got[4:4+n], payload) || bytes.ContainsFunc(got[4+n:], func(r rune) bool { return r != 0 }) {
				t.Errorf("%x became %x", payload, got)
			}
			return
		}
		var m message
		if !m.decode(got) || !bytes.Equal(m.data, payload) || m.peer.String() != peer4 {
			t.Errorf("%x became %x", payload, got)
		}
	})
}
