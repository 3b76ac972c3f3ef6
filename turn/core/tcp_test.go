// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// lastOf returns the last action of a kind, the zero Action if there was none.
func (w *world) lastOf(k Kind) Action {
	for i := len(w.actions) - 1; i >= 0; i-- {
		if w.actions[i].Kind == k {
			return w.actions[i]
		}
	}
	return Action{}
}

// said renders what the client was sent last.
func (c *client) said() string {
	c.Helper()
	c.drive()
	return c.render(c.toClient[len(c.toClient)-1].data)
}

// dialled makes a TCP allocation that connects to peer4, and returns the connection.
func (c *client) dialled() ConnectionID {
	c.Helper()
	c.allocate(tcp())
	if got := c.ask(methodConnect, peerAt(peer4)); got != "none" {
		c.Fatalf("connect was answered at once: %s", got)
	}
	return c.lastOf(Connect).Connection
}

// connected is dialled, and the peer has answered.
func (c *client) connected() ConnectionID {
	c.Helper()
	id := c.dialled()
	c.core.Connected(c.now, id, &c.out)
	if got := c.said(); got != "ok id" {
		c.Fatalf("connect: %s", got)
	}
	return id
}

// bindTo asks for a connection on a new stream.
func (c *client) bindTo(id ConnectionID) string {
	return c.client(c.flow.Listener, 9).as(c.username, c.password).ask(methodConnectionBind, u32(attrConnectionID, uint32(id)))
}

// incoming has a peer connect to the client's relay.
func (c *client) incoming(from string) (ConnectionID, bool) {
	for id := range c.relays {
		v, ok := c.core.PeerConnected(c.now, id, netip.MustParseAddrPort(from), &c.out)
		c.drive()
		return v, ok
	}
	return 0, false
}

func TestConformance_TCP(t *testing.T) {
	permitted := func(c *client) *client {
		c.allocate(tcp())
		c.must(methodCreatePermission, peerAt(peer4))
		return c
	}
	run(t, []row{
		{"6062-5.1", "over a datagram", datagrams(first(tcp())), "400"},
		{"6062-5.1", "over a stream", streams(first(tcp())), "ok relayed=198.51.100.1:49152 lifetime=600 mapped=client"},
		{"6062-5.1", "not offered", func(c *client) string { c.core.cfg.Offers.TCP = false; return c.ask(methodAllocate, tcp()) }, "442"},
		{"6062-5.1", "EVEN-PORT", first(tcp(), flag(attrEvenPort, 0)), "400"},
		{"6062-5.1", "DONT-FRAGMENT", first(tcp(), flag(attrDontFragment)), "400"},
		{"6062-5.1", "RESERVATION-TOKEN", first(tcp(), text(attrReservationToken, "12345678")), "400"},
		{"6062-5.2", "no allocation", func(c *client) string { return c.ask(methodConnect, peerAt(peer4)) }, "437"},
		{"6062-5.2", "allocation of UDP", after(methodConnect, peerAt(peer4)), "437"},
		{"6062-5.2", "another user", streams(func(c *client) string {
			c.allocate(tcp())
			return c.as("bob", "builder").ask(methodConnect, peerAt(peer4))
		}), "441"},
		{"6062-5.2", "no peer", streams(func(c *client) string { c.allocate(tcp()); return c.ask(methodConnect) }), "400"},
		{"6062-5.2", "forbidden peer", streams(func(c *client) string {
			c.forbid("127.0.0.0/8")
			c.allocate(tcp())
			return c.ask(methodConnect, peerAt("127.0.0.1:22"))
		}), "403"},
		{"6062-5.2", "another family", streams(func(c *client) string { c.allocate(tcp()); return c.ask(methodConnect, peerAt(peer6)) }), "443"},
		{"6062-5.2", "same peer while connecting", streams(func(c *client) string { c.dialled(); return c.ask(methodConnect, peerAt(peer4)) }), "446"},
		{"6062-5.2", "same peer when connected", streams(func(c *client) string { c.connected(); return c.ask(methodConnect, peerAt(peer4)) }), "446"},
		{"6062-5.2", "more than there is room for", streams(func(c *client) string {
			c.dialled()
			c.ask(methodConnect, peerAt("198.51.100.77:1"))
			return c.ask(methodConnect, peerAt("198.51.100.77:2"))
		}), "508"},
		{"6062-5.2", "refused by the peer", streams(func(c *client) string { c.core.ConnectFailed(c.dialled(), &c.out); return c.said() }), "447"},
		{"6062-5.2", "no answer of the peer", streams(func(c *client) string { c.dialled(); c.pass(30 * time.Second); return c.said() }), "447"},
		{"6062-5.2", "forbidden while connecting", streams(func(c *client) string {
			c.dialled()
			c.forbid("198.51.100.0/24")
			c.core.PolicyChanged(&c.out)
			return c.said()
		}), "403"},
		{"6062-5.2", "again after a failure", streams(func(c *client) string {
			c.core.ConnectFailed(c.dialled(), &c.out)
			c.said()
			return c.ask(methodConnect, peerAt(peer4))
		}), "none"},
		{"6062-5.3", "peer with permission", streams(func(c *client) string { permitted(c).incoming(peer4); return c.said() }), "attempt id peer=" + peer4},
		{"6062-5.3", "peer without permission", streams(func(c *client) string {
			_, ok := permitted(c).incoming("198.51.100.78:1")
			return map[bool]string{true: "accepted", false: "refused"}[ok]
		}), "refused"},
		{"6062-5.3", "peer whose permission has ended", streams(func(c *client) string {
			permitted(c).now = c.now.Add(5 * time.Minute)
			_, ok := c.incoming(peer4)
			return map[bool]string{true: "accepted", false: "refused"}[ok]
		}), "refused"},
		{"6062-5.3", "peer that is forbidden now", streams(func(c *client) string {
			permitted(c).forbid("198.51.100.0/24")
			_, ok := c.incoming(peer4)
			return map[bool]string{true: "accepted", false: "refused"}[ok]
		}), "refused"},
		{"6062-5.3", "more peers than there is room for", streams(func(c *client) string {
			permitted(c)
			_, one := c.incoming("198.51.100.77:1")
			_, two := c.incoming("198.51.100.77:2")
			_, three := c.incoming("198.51.100.77:3")
			return fmt.Sprint(one, two, three)
		}), "true true false"},
		{"6062-5.3", "peer of a relay of UDP", func(c *client) string {
			c.permitted()
			_, ok := c.incoming(peer4)
			return map[bool]string{true: "accepted", false: "refused"}[ok]
		}, "refused"},
		{"6062-5.4", "connection of a peer", streams(func(c *client) string { id, _ := permitted(c).incoming(peer4); return c.bindTo(id) }), "ok"},
		{"6062-5.4", "connection to a peer", streams(func(c *client) string { return c.bindTo(c.connected()) }), "ok"},
		{"6062-5.4", "before it is connected", streams(func(c *client) string { return c.bindTo(c.dialled()) }), "400"},
		{"6062-5.4", "twice", streams(func(c *client) string { id := c.connected(); c.bindTo(id); return c.bindTo(id) }), "400"},
		{"6062-5.4", "after 30 seconds", streams(func(c *client) string { id := c.connected(); c.pass(30 * time.Second); return c.bindTo(id) }), "400"},
		{"6062-5.4", "no CONNECTION-ID", streams(func(c *client) string { return c.ask(methodConnectionBind) }), "400"},
		{"6062-5.4", "CONNECTION-ID of 3 bytes", streams(func(c *client) string { return c.ask(methodConnectionBind, flag(attrConnectionID, 1, 2, 3)) }), "400"},
		{"6062-5.4", "another user", streams(func(c *client) string {
			id := c.connected()
			return c.client(c.flow.Listener, 9).as("bob", "builder").ask(methodConnectionBind, u32(attrConnectionID, uint32(id)))
		}), "441"},
		{"6062-5.4", "on the stream of the allocation", streams(func(c *client) string {
			return c.ask(methodConnectionBind, u32(attrConnectionID, uint32(c.connected())))
		}), "400"},
		{"6062-5.4", "over a datagram", datagrams(func(c *client) string {
			stream := c.client(tcp4, 3)
			return c.ask(methodConnectionBind, u32(attrConnectionID, uint32(stream.connected())))
		}), "400"},
		{"6062-5.5", "Send indication", streams(func(c *client) string { return permitted(c).indication(peerAt(peer4), data("x")) }), "none"},
		{"6062-5.5", "ChannelBind", streams(func(c *client) string {
			return permitted(c).ask(methodChannelBind, channel(0x4000), peerAt(peer4))
		}), "400"},
	})
}

func TestTCP_BoundStreamIsSplicedAfterTheAnswer(t *testing.T) {
	c := newWorld(t).client(tcp4, 1)
	id := c.connected()
	data := c.client(tcp4, 2)
	b := data.signed(methodConnectionBind, u32(attrConnectionID, uint32(id)))
	c.core.FromClient(c.now, data.flow, b, &c.out)
	if len(c.out.Actions) != 2 || c.out.Actions[0].Kind != SendClient || c.out.Actions[1].Kind != Splice {
		t.Fatalf("%+v", c.out.Actions)
	}
	if v := c.out.Actions[1]; v.Flow != data.flow || v.Connection != id {
		t.Errorf("%v is spliced to %d, want %v to %d", v.Flow, v.Connection, data.flow, id)
	}
}

// TestTCP_ConnectionsEndWith checks each end of what a connection depends on.
func TestTCP_ConnectionsEndWith(t *testing.T) {
	for name, end := range map[string]func(*client, ConnectionID){
		"the allocation": func(c *client, _ ConnectionID) { c.must(methodRefresh, lifetime(0)) },
		"its lifetime":   func(c *client, _ ConnectionID) { c.pass(600 * time.Second) },
		"the stream":     func(c *client, _ ConnectionID) { c.core.StreamClosed(c.flow, &c.out); c.drive() },
		"the relay": func(c *client, _ ConnectionID) {
			for id := range c.relays {
				c.core.RelayFailed(c.now, id, &c.out)
			}
			c.drive()
		},
		"the policy": func(c *client, _ ConnectionID) {
			c.forbid("198.51.100.0/24")
			c.core.PolicyChanged(&c.out)
			c.drive()
		},
		"an operator": func(c *client, _ ConnectionID) {
			c.core.Evict(func(i Info) bool { return i.User == "alice" }, &c.out)
			c.drive()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newWorld(t).client(tcp4, 1)
			id := c.connected()
			if got := c.bindTo(id); got != "ok" {
				t.Fatal(got)
			}
			end(c, id)
			if got := c.lastOf(Disconnect).Connection; got != id {
				t.Errorf("connection %d was closed, want %d", got, id)
			}
			if n := c.core.Stats().Connections; n != 0 {
				t.Errorf("%d connections are left", n)
			}
		})
	}
}

func TestTCP_ClosedConnectionMakesRoom(t *testing.T) {
	c := newWorld(t).client(tcp4, 1)
	id := c.connected()
	c.core.ConnectionClosed(id, &c.out)
	if got := c.ask(methodConnect, peerAt(peer4)); got != "none" {
		t.Errorf("connect to the same peer: %s", got)
	}
	if next := c.lastOf(Connect).Connection; next == id || next == 0 {
		t.Errorf("the next connection is %d after %d", next, id)
	}
}

func TestConformance_Discovery(t *testing.T) {
	const primary, q, b, bq = "203.0.113.1:3478", "203.0.113.1:3479", "203.0.113.2:3478", "203.0.113.2:3479"
	change := func(flags byte) attr { return flag(attrChangeRequest, 0, 0, 0, flags) }
	on := func(cfg *Config) { cfg.Discovery = []uint16{udp4, udp4Q, udp4B, udp4BQ} }
	for _, v := range []struct {
		name     string
		listener uint16
		change   func(*Config)
		attrs    []attr
		want     string
		from     uint16
	}{
		{"5780-6.1 plain", udp4, on, []attr{text(0x8022, "test")}, "ok mapped=client other=" + bq + " origin=" + primary, udp4},
		{"5780-6.1 short of room", udp4, on, nil, "ok mapped=client other=" + bq, udp4},
		{"5780-6.1 change nothing", udp4, on, []attr{change(0)}, "ok mapped=client other=" + bq + " origin=" + primary, udp4},
		{"5780-6.1 change port", udp4, on, []attr{change(2)}, "ok mapped=client other=" + bq + " origin=" + q, udp4Q},
		{"5780-6.1 change address", udp4, on, []attr{change(4)}, "ok mapped=client other=" + bq + " origin=" + b, udp4B},
		{"5780-6.1 change both", udp4, on, []attr{change(6)}, "ok mapped=client other=" + bq + " origin=" + bq, udp4BQ},
		{"5780-6.1 at another corner", udp4BQ, on, []attr{change(2)}, "ok mapped=client other=" + primary + " origin=" + b, udp4B},
		{"5780-7.2 CHANGE-REQUEST of 3 bytes", udp4, on, []attr{flag(attrChangeRequest, 0, 0, 0)}, "400", udp4},
		{"5780-7.2 elsewhere", udp6, on, []attr{change(2)}, "420 unknown=0003", udp6},
		{"5780-7.2 by stream", tcp4, on, []attr{change(2)}, "420 unknown=0003", tcp4},
		{"5780-7.2 turned off", udp4, func(*Config) {}, []attr{change(2)}, "420 unknown=0003", udp4},
		{"5780-7.5 RESPONSE-PORT is not served", udp4, on, []attr{u32(0x0027, 1<<16)}, "420 unknown=0027", udp4},
	} {
		t.Run(strings.ReplaceAll(v.name, " ", "_"), func(t *testing.T) {
			c := newWorld(t, v.change).client(v.listener, 1)
			got := c.exchange(c.unsigned(methodBinding, classRequest, v.attrs...))
			if from := c.toClient[len(c.toClient)-1].flow.Listener; got != v.want || from != v.from {
				t.Errorf("got  %s from %d\nwant %s from %d", got, from, v.want, v.from)
			}
		})
	}
}

// What a connection carries counts for its allocation, and with the rate of the
// account all connections of an allocation share what may pass.
func TestTCP_CarriedBytesCountAndAreBounded(t *testing.T) {
	c := newWorld(t).client(tcp4, 1)
	id := c.connected()
	if wait, bounded := c.core.Carried(c.now, id, Usage{SentBytes: 1 << 30, ReceivedBytes: 7}); wait != 0 || bounded {
		t.Errorf("an account without a rate waits %v (bounded %v)", wait, bounded)
	}
	for i := range c.core.Allocations() {
		if i.Usage.SentBytes != 1<<30 || i.Usage.ReceivedBytes != 7 {
			t.Errorf("counted %+v", i.Usage)
		}
	}
	slow := newWorld(t).client(tcp4, 2).as("slow", "x")
	id = slow.connected()
	// A thousand bytes a second, and at most 65536 at once.
	for _, v := range []struct {
		bytes uint64
		pass  time.Duration
		want  time.Duration
	}{{1 << 16, 0, 64536 * time.Millisecond}, {500, 64536 * time.Millisecond, 500 * time.Millisecond}, {0, time.Second, 0}} {
		slow.now = slow.now.Add(v.pass)
		if wait, bounded := slow.core.Carried(slow.now, id, Usage{SentBytes: v.bytes / 2, ReceivedBytes: v.bytes - v.bytes/2}); wait != v.want || !bounded {
			t.Errorf("after %d bytes: wait %v (bounded %v), want %v", v.bytes, wait, bounded, v.want)
		}
	}
	if wait, bounded := slow.core.Carried(slow.now, id+1, Usage{SentBytes: 1 << 30}); wait != 0 || bounded {
		t.Errorf("a connection that is not there waits %v", wait)
	}
}

// All connections and allocations of a user share the rate of the user.
func TestTCP_CarriedBytesCountForTheUser(t *testing.T) {
	shared := NewRate(1 << 16)
	shared.start = start
	w := newWorld(t, func(cfg *Config) { cfg.Rate = func(string, int64) *Rate { return shared } })
	one, two := w.client(tcp4, 1).connected(), w.client(tcp4, 2).connected()
	for i, v := range []struct {
		id    ConnectionID
		bytes uint64
		want  time.Duration
	}{{one, 1 << 16, 0}, {two, 1 << 15, time.Second / 2}} {
		if wait, bounded := w.core.Carried(w.now, v.id, Usage{SentBytes: v.bytes}); wait != v.want || !bounded {
			t.Errorf("connection %d: wait %v (bounded %v), want %v", i, wait, bounded, v.want)
		}
	}
	if got := w.core.Stats().Relayed.SentBytes; got != 1<<16+1<<15 {
		t.Errorf("counted %d bytes", got)
	}
	shared.Set(0)
	if wait, bounded := w.core.Carried(w.now, two, Usage{SentBytes: 1 << 40}); wait != 0 || bounded {
		t.Errorf("without a bound: wait %v (bounded %v)", wait, bounded)
	}
}
