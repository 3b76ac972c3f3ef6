// SPDX-License-Identifier: Apache-2.0

package core

import (
	"net/netip"
	"strings"
	"testing"
)

// paths are the ways of a packet, for a client on datagrams and one on a stream.
func paths(t testing.TB) map[string]func() {
	all := map[string]func(){}
	payload := strings.Repeat("x", 1199)
	for name, listener := range map[string]uint16{"datagram": udp4, "stream": tcp4} {
		c := newWorld(t).client(listener, 1)
		c.bound()
		c.must(methodCreatePermission, peerAt("198.51.100.78:1"))
		var id RelayID
		for id = range c.relays {
		}
		var out Output
		toPeer, send := channelData(0x4000, payload), c.unsigned(methodSend, classIndication, peerAt("198.51.100.78:1"), data(payload))
		buf := make([]byte, Headroom+len(payload), Headroom+len(payload)+Tailroom)
		bound, permitted := netip.MustParseAddrPort(peer4), netip.MustParseAddrPort("198.51.100.78:1")
		one := func(f func()) func() {
			return func() {
				out.Reset()
				if f(); len(out.Actions) != 1 {
					t.Fatalf("%d actions for a packet", len(out.Actions))
				}
			}
		}
		all[name+"/channel to peer"] = one(func() { c.core.FromClient(c.now, c.flow, toPeer, &out) })
		all[name+"/send to peer"] = one(func() { c.core.FromClient(c.now, c.flow, send, &out) })
		all[name+"/peer to channel"] = one(func() { c.core.FromPeer(c.now, id, bound, buf, Headroom, &out) })
		all[name+"/peer to data"] = one(func() { c.core.FromPeer(c.now, id, permitted, buf, Headroom, &out) })
		all[name+"/peer to data, copied"] = one(func() { c.core.FromPeer(c.now, id, permitted, buf, 0, &out) })
	}
	return all
}

func TestDataPath_DoesNotAllocate(t *testing.T) {
	for name, f := range paths(t) {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations for each packet", name, n)
		}
	}
	c := newWorld(t).client(udp4, 1)
	var out Output
	for name, b := range map[string][]byte{
		"junk":              []byte("GET / HTTP/1.1\r\n\r\n"),
		"channel of nobody": channelData(0x4000, "x"),
		"binding":           c.unsigned(methodBinding, classRequest),
		"challenge":         c.unsigned(methodAllocate, classRequest, udp()),
	} {
		run := func() { out.Reset(); c.core.FromClient(c.now, c.flow, b, &out) }
		if n := testing.AllocsPerRun(1000, run); n != 0 {
			t.Errorf("%s: %v allocations for each packet", name, n)
		}
	}
}

func BenchmarkDataPath(b *testing.B) {
	for name, f := range paths(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

// BenchmarkSetup is all that a client does to get a channel, and to end it.
func BenchmarkSetup(b *testing.B) {
	w := newWorld(b)
	c := w.client(udp4, 1)
	b.ReportAllocs()
	for b.Loop() {
		c.nonce = ""
		c.bound()
		c.must(methodRefresh, lifetime(0))
		w.toClient, w.actions = nil, nil
	}
}
