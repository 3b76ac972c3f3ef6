// SPDX-License-Identifier: Apache-2.0

package core

import (
	"strings"
	"testing"
)

// What could not be sent counts as relayed nowhere; other messages change nothing.
func TestUnsent_IsTakenBack(t *testing.T) {
	for name, peer := range map[string]string{"IPv4": "198.51.100.9:9", "IPv6": "[2001:db8:9::9]:9"} {
		w := newWorld(t)
		c := w.client(udp4, 1)
		if c.allocate(); name == "IPv6" {
			c = w.client(udp4, 2)
			c.allocate(udp(), family(IPv6))
		}
		used := func() (u Usage) {
			for i := range w.core.Allocations() {
				if i.Flow == c.flow {
					u = i.Usage
				}
			}
			if got := w.core.Stats().Relayed; got != u {
				t.Errorf("%s: the allocation has relayed %+v, all have %+v", name, u, got)
			}
			return u
		}
		c.must(methodCreatePermission, peerAt(peer))
		const text = "seven b"
		indication := c.receive(peer, text)
		c.must(methodChannelBind, channel(0x4000), peerAt(peer))
		data := c.receive(peer, text)
		c.emit(channelData(0x4000, text))
		if got, want := used(), (Usage{1, 7, 2, 14}); got != want {
			t.Errorf("%s: relayed %+v, want %+v", name, got, want)
		}
		var relay RelayID
		for id, at := range w.relays {
			if r := w.core.relay(id); r != nil && r.alloc.flow == c.flow && at.IsValid() {
				relay = id
			}
		}
		w.core.UnsentClient(c.flow, indication)
		if got, want := used(), (Usage{1, 7, 1, 7}); got != want {
			t.Errorf("%s: without the indication %+v, want %+v", name, got, want)
		}
		w.core.UnsentClient(c.flow, data)
		w.core.UnsentPeer(relay, len(text))
		if got := used(); got != (Usage{}) {
			t.Errorf("%s: in the end %+v", name, got)
		}
		c.receive(peer, text)
		answer := w.toClient[0].data
		kind := map[string]uint8{"IPv4": 3, "IPv6": 1}[name] // destination unreachable
		if got := c.icmp(peer, kind, 0); !strings.Contains(got, "icmp") {
			t.Errorf("%s: the client got %s", name, got)
		}
		for _, other := range [][]byte{answer, w.toClient[len(w.toClient)-1].data, indication[:headerLen+attrHeader+11], {0x40}, {}, {0, 0x17}} {
			w.core.UnsentClient(c.flow, other)
		}
		if got, want := used(), (Usage{0, 0, 1, 7}); got != want {
			t.Errorf("%s: other messages leave %+v, want %+v", name, got, want)
		}
		// Of an allocation that is not there any more, or is the next one.
		c.must(methodRefresh, lifetime(0))
		w.core.UnsentPeer(relay, len(text))
		w.core.UnsentClient(c.flow, data)
		c.allocate()
		w.core.UnsentClient(c.flow, data)
		if got := used(); got != (Usage{}) {
			t.Errorf("%s: the next allocation has relayed %+v", name, got)
		}
	}
}
