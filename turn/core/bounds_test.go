// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestBounds goes up to each bound of a request and beyond it.
func TestBounds(t *testing.T) {
	same := func(n int) (attrs []attr) {
		for range n {
			attrs = append(attrs, peerAt(peer4))
		}
		return attrs
	}
	run(t, []row{
		{"8656-12.2", "a peer of an ended channel on another number", func(c *client) string {
			c.allocate(udp(), lifetime(3600))
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			got := c.ask(methodChannelBind, channel(0x4001), peerAt(peer4))
			c.pass(channelLifetime)
			return got + "; " + c.ask(methodChannelBind, channel(0x4001), peerAt(peer4)) + "; " + c.ask(methodChannelBind, channel(0x4000), peerAt(peer4))
		}, "400; ok; 400"},
		{"8656-12.2", "an ended channel on another peer", func(c *client) string {
			c.allocate(udp(), lifetime(3600))
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			c.pass(channelLifetime)
			return c.ask(methodChannelBind, channel(0x4000), peerAt("198.51.100.78:1")) + "; " + c.ask(methodChannelBind, channel(0x4000), peerAt(peer4))
		}, "ok; 400"},
		{"8656-10.2", "as many names for a peer as are looked at", after(methodCreatePermission, same(4*8)...), "ok"},
		{"8656-10.2", "one name more", after(methodCreatePermission, same(4*8+1)...), "508"},
		{"8656-7.2", "the same transaction of another user", func(c *client) string {
			c.allocate()
			c.serial--
			c.username, c.password = "bob", "builder" // by the same nonce
			got := c.ask(methodAllocate, udp())
			if c.transaction != c.core.flows[c.flow.key()].transaction {
				c.Error("the transactions differ")
			}
			return got
		}, "437"},
		{"8656-7.2", "repeated after the reservation", func(c *client) string {
			b := c.signed(methodAllocate, udp(), flag(attrEvenPort, 0x80))
			got := c.exchange(b)
			c.now = c.now.Add(reservationLifetime - time.Second) // without a timer
			got += "; " + c.exchange(b)
			c.now = c.now.Add(time.Second)
			return got + "; " + c.exchange(b)
		}, "ok relayed=198.51.100.1:49152 lifetime=600 token mapped=client; ok relayed=198.51.100.1:49152 lifetime=571 token mapped=client; " +
			"ok relayed=198.51.100.1:49152 lifetime=570 mapped=client"},
		{"8489-9.2.4", "the last key that is tried", func(c *client) string { return c.keys(maxKeys) }, "437"},
		{"8489-9.2.4", "one key more", func(c *client) string { return c.keys(maxKeys + 1) }, "401 nonce algorithms"},
	})
}

// keys asks for a refresh with the last of n keys of an account.
func (c *client) keys(n int) string {
	p := people{"many": nil}
	for i := range n {
		p["many"] = append(p["many"], fmt.Sprint(i+1))
	}
	c.core.cfg.Authenticator = p
	return c.as("many", fmt.Sprint(n)).ask(methodRefresh)
}

// A client is sent to a server that it can reach.
func TestDrain_NamesAServerOfTheFamilyOfTheClient(t *testing.T) {
	for listener, want := range map[uint16]string{
		udp4: "300 alternate=203.0.113.9:3478 domain=b.example", udp6: "300 alternate=[2001:db8::9]:3478 domain=b.example",
		tcp4: "300 alternate=203.0.113.9:3478 domain=b.example", tcp6: "300 alternate=[2001:db8::9]:3478 domain=b.example",
	} {
		c := newWorld(t).client(listener, 1)
		c.drainTo()
		for range 8 { // it is drawn
			if got := c.ask(methodAllocate, udp()); got != want {
				t.Errorf("listener %d: %s, want %s", listener, got, want)
			}
		}
		c.core.Drain(true, []Alternate{{Addr: c.core.drain.alternates[4].Addr, Stream: c.flow.Conn != 0}}, &c.out)
		if got, here := c.ask(methodAllocate, udp()), c.flow.Client.Addr().Is4(); here != strings.HasPrefix(got, "300") || !here && got != "508" {
			t.Errorf("listener %d, with a server of IPv4 alone: %s", listener, got)
		}
	}
}

// Clients that have an allocation are told once that there is another server for
// them, and again when there is one again; others, and those for whom there is none, are not.
func TestDrain_HintsAtItOnce(t *testing.T) {
	const hint = "437"
	w := newWorld(t, func(cfg *Config) { cfg.Hint = true })
	v4, v6, stream, stranger := w.client(udp4, 1), w.client(udp6, 2), w.client(tcp4, 3), w.client(udp4, 4)
	for _, c := range []*client{v4, v6, stream} {
		c.allocate()
	}
	stranger.ask(methodRefresh)
	to := []Alternate{{Addr: netip.MustParseAddrPort("203.0.113.9:3478")}, {Addr: netip.MustParseAddrPort("203.0.113.9:3478"), Stream: true}}
	drains := func(on bool, to ...Alternate) func() { return func() { w.core.Drain(on, to, &w.out) } }
	for _, step := range []struct {
		what string
		do   func()
		told []*client
	}{
		{"with no other server", drains(true), nil},
		{"with one for IPv4", drains(true, to...), []*client{v4, stream}},
		{"with the same", drains(true, to...), nil},
		{"no more", drains(false), nil},
		{"again, over streams", drains(true, to[1]), []*client{stream}},
		{"and over UDP", drains(true, to...), []*client{v4}},
	} {
		w.toClient = nil
		step.do()
		w.drive()
		told := map[Flow]string{}
		for _, m := range w.toClient {
			told[m.flow] += stranger.render(m.data)
		}
		for _, c := range step.told {
			if !strings.HasPrefix(told[c.flow], hint) {
				t.Errorf("%s: %v gets %q", step.what, c.flow, told[c.flow])
			}
		}
		if len(w.toClient) != len(step.told) {
			t.Errorf("%s: %d are told, want %d", step.what, len(w.toClient), len(step.told))
		}
	}
}

// The largest datagram that a Data indication can hold goes to a client on a
// stream, and each larger one is dropped: the length of a message has 16 bits, and
// one that wraps would shift the frames behind it.
func TestData_OverStreamsNeverOverflowsTheLengthOfAMessage(t *testing.T) {
	for _, v := range []struct {
		peer string
		most int
	}{{peer4, maxBody - 2*attrHeader - 8}, {peer6, maxBody - 2*attrHeader - 20}} {
		c := newWorld(t).client(tcp4, 1)
		c.allocate(udp(), additional(IPv6))
		c.must(methodCreatePermission, peerAt(v.peer))
		for n, passes := range map[int]bool{v.most - 1: true, v.most: true, v.most + 1: false, 65507: v.most >= 65507, 65527: false, 1<<16 - 1: false} {
			dropped := c.core.Stats().Dropped[DropOversize]
			b := c.receive(v.peer, strings.Repeat("x", n))
			if passes != (b != nil) || passes != (c.core.Stats().Dropped[DropOversize] == dropped) {
				t.Errorf("%d bytes of %s: %d bytes came", n, v.peer, len(b))
			}
			if b == nil {
				continue
			}
			if size, err := Frame(b); err != nil || size != len(b) || !strings.Contains(c.render(b), strings.Repeat("x", n)+`"`) {
				t.Errorf("%d bytes of %s: the frame has %d bytes, and says %d (%v)", n, v.peer, len(b), size, err)
			}
		}
	}
}

// What does not fit an indication fits a channel on a stream, up to the largest datagram.
func TestChannelData_OverStreamsHasNoLessRoomThanADatagram(t *testing.T) {
	c := newWorld(t).client(tcp4, 1)
	c.allocate(udp(), family(IPv6))
	c.must(methodChannelBind, channel(0x4000), peerAt(peer6))
	for _, n := range []int{65527, 1<<16 - 1} {
		b := c.receive(peer6, strings.Repeat("x", n))
		if size, err := Frame(b); err != nil || size != len(b) || int(binary.BigEndian.Uint16(b[2:])) != n {
			t.Errorf("%d bytes: a frame of %d says %d (%v)", n, len(b), size, err)
		}
	}
	if b := c.receive(peer6, strings.Repeat("x", 1<<16)); b != nil {
		t.Errorf("65536 bytes came as a frame of %d", len(b))
	}
}

// A socket that gets a channel makes room for the verdict about another.
func TestVerdicts_AreGivenBackByChannels(t *testing.T) {
	asked := map[uint16]int{} // for packets, by port
	c := newWorld(t, func(cfg *Config) {
		cfg.Permit = func(_ string, p Peer) bool { asked[p.Canonical.Port()]++; return true }
	}).client(udp4, 1)
	at := func(port int) attr { return peerAt(fmt.Sprintf("198.51.100.77:%d", port)) }
	c.allocate(udp(), lifetime(3600))
	c.must(methodCreatePermission, at(1))
	for port := 1; port <= maxVerdicts; port++ {
		c.indication(at(port), data("x"))
	}
	askedFor := func(port int) int {
		clear(asked)
		for range 3 {
			c.indication(at(port), data("x"))
		}
		return asked[uint16(port)]
	}
	if got := [2]int{askedFor(maxVerdicts), askedFor(maxVerdicts + 1)}; got != [2]int{0, 3} {
		t.Errorf("asked %v times about a peer that is remembered, and one for which there is no room", got)
	}
	c.must(methodChannelBind, channel(0x4000), at(1))
	if got := askedFor(maxVerdicts + 1); got != 1 {
		t.Errorf("asked %d times about a peer for which a channel has made room", got)
	}
	if got := askedFor(maxVerdicts + 2); got != 3 {
		t.Errorf("asked %d times about the next, for which it has not", got)
	}
	c.pass(channelLifetime)
	if a := c.core.flows[c.flow.key()]; len(a.peers) != 0 || a.verdicts != 0 || len(a.permissions) != 0 {
		t.Errorf("%d peers, %d verdicts and %d permissions are left", len(a.peers), a.verdicts, len(a.permissions))
	}
}
