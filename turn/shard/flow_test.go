// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/pion/stun"
)

// families are the pairs of a client's family and a peer's.
func families() map[string][2]netip.Addr {
	return map[string][2]netip.Addr{
		"4-4": {loopback4, loopback4}, "4-6": {loopback4, loopback6}, "6-4": {loopback6, loopback4}, "6-6": {loopback6, loopback6},
	}
}

// allocateFor makes an allocation with a relay of the peer's family.
func (c *client) allocateFor(peer netip.Addr) netip.AddrPort {
	c.Helper()
	if peer.Is6() {
		return c.allocate(familyIPv6)
	}
	return c.allocate()
}

// Datagrams pass both ways as they are, on channels and in indications, from none
// to the largest that there is.
func TestShard_RelaysDatagramsOfEverySize(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		for name, family := range families() {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, engine)
				c := w.client(family[0], "ann")
				relay := c.allocateFor(family[1])
				bound, boundAt := socket(t, family[1])
				permitted, permittedAt := socket(t, family[1])
				c.bind(0x4000, boundAt)
				c.permit(permittedAt)
				for _, size := range []int{0, 1, 2, 3, 4, 5, 1199, 1500, 9000, 65503, 65500 - 40} {
					payload := bytes.Repeat([]byte{byte(size)}, size)
					if size <= 65503-20 || family[0].Is4() {
						c.send(channelData(0x4000, payload))
						if from := expect(t, bound, payload); from != relay {
							t.Fatalf("size %d: from %v, want %v", size, from, relay)
						}
						bound.WriteToUDPAddrPort(payload, relay)
						if got := c.packet(); !bytes.Equal(got, channelData(0x4000, payload)) {
							t.Fatalf("size %d: the client got %d bytes", size, len(got))
						}
					}
					if size <= 65000 {
						c.send(indication(permittedAt, payload))
						expect(t, permitted, payload)
						permitted.WriteToUDPAddrPort(payload, relay)
						m := c.message()
						if data, err := m.Get(stun.AttrData); err != nil || !bytes.Equal(data, payload) {
							t.Fatalf("size %d: the client got %v, %v", size, m, err)
						}
					}
				}
			})
		}
	})
}

// A datagram as large as there can be has no room for a header on its way to a
// client on UDP. It is dropped, never cut; what follows passes.
func TestShard_NeverCutsADatagram(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		c := w.client(loopback4, "ann")
		relay := c.allocate()
		peer, at := socket(t, loopback4)
		c.bind(0x4000, at)
		peer.WriteToUDPAddrPort(make([]byte, 65507), relay)
		peer.WriteToUDPAddrPort([]byte("next"), relay)
		if got := c.packet(); string(got) != "\x40\x00\x00\x04next" {
			t.Errorf("the client got %d bytes", len(got))
		}
	})
}

// The even port and the reserved one beside it belong to two clients of a user.
func TestShard_ReservesThePortBeside(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		a, b := w.client(loopback4, "ann"), w.client(loopback4, "ann")
		res := a.must(stun.MethodAllocate, transportUDP, attr(stun.AttrEvenPort, 0x80))
		token, err := res.Get(stun.AttrReservationToken)
		if err != nil {
			t.Fatal(err)
		}
		first, second := relayed(t, res), b.allocate(attr(stun.AttrReservationToken, token...))
		if first.Port()%2 != 0 || second.Port() != first.Port()+1 {
			t.Fatalf("relays at %v and %v", first, second)
		}
		peer, at := socket(t, loopback4)
		for c, relay := range map[*client]netip.AddrPort{a: first, b: second} {
			c.bind(0x4000, at)
			c.send(channelData(0x4000, []byte("ping")))
			if from := expect(t, peer, []byte("ping")); from != relay {
				t.Errorf("from %v, want %v", from, relay)
			}
		}
	})
}

// An allocation gives everything back when its client ends it.
func TestShard_GivesRelaysBack(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		c := w.client(loopback4, "ann")
		for range 50 {
			at := c.allocate()
			c.must(stun.MethodRefresh, lifetime(0))
			if n := w.Stats().Relays; n != 0 || w.relays.count() != 0 {
				t.Fatalf("%d relays are left", n)
			}
			s, err := Listen(at, false)
			if err != nil {
				t.Fatalf("the port of the relay is still taken: %v", err)
			}
			s.Close()
		}
	})
}
