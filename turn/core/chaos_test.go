// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"maps"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// chaos is a world whose driver answers late, in any order, wrongly or never.
type chaos struct {
	*world
	clients []*client
	asked   []Action // OpenRelay and Connect without an answer
	sockets map[RelayID]bool
	peers   map[ConnectionID]bool // connections that the driver has
	closed  map[Flow]bool         // streams that have ended
}

func newChaos(t *testing.T) *chaos {
	w := newWorld(t, func(cfg *Config) {
		cfg.Limits.Relays = 12
		seed := mathrand.NewChaCha8([32]byte{})
		cfg.Random = func(b []byte) { seed.Read(b) } // the same sequence must do the same again
	})
	w.ledger.SetLimits(Counts{Relays: 5, Permissions: 10, Channels: 5}, Counts{Relays: 9, Permissions: 14, Channels: 8})
	w.async = true
	c := &chaos{world: w, sockets: map[RelayID]bool{}, peers: map[ConnectionID]bool{}, closed: map[Flow]bool{}}
	for n := range 8 {
		v := w.client(uint16(n%(tcp6+1)), n+1)
		if n%3 == 1 {
			v.as("bob", "builder")
		}
		c.clients = append(c.clients, v)
	}
	return c
}

// settle takes in what the core has asked for since, and holds it to account.
func (c *chaos) settle(t *rapid.T) {
	c.drive()
	for _, a := range c.actions {
		switch a.Kind {
		case OpenRelay:
			c.open(t, a.Relay)
			if a.Second != 0 {
				c.open(t, a.Second)
			}
			c.asked = append(c.asked, a)
		case CloseRelay:
			if !c.sockets[a.Relay] {
				t.Fatalf("relay %#x is closed, which is not open", a.Relay)
			}
			delete(c.sockets, a.Relay)
		case Connect:
			if !c.sockets[a.Relay] || c.peers[a.Connection] {
				t.Fatalf("connection %d from relay %#x", a.Connection, a.Relay)
			}
			c.peers[a.Connection] = true
			c.asked = append(c.asked, a)
		case Splice:
			if !c.peers[a.Connection] || c.closed[a.Flow] {
				t.Fatalf("connection %d is spliced to %v", a.Connection, a.Flow)
			}
		case Disconnect:
			if !c.peers[a.Connection] {
				t.Fatalf("connection %d is closed, which is not there", a.Connection)
			}
			delete(c.peers, a.Connection)
		default:
			t.Fatalf("action %+v", a)
		}
	}
	for _, s := range c.toPeer {
		if !c.sockets[s.relay] {
			t.Fatalf("a packet to %v leaves from relay %#x, which is not open", s.peer, s.relay)
		}
	}
	for _, s := range c.toClient {
		if c.closed[s.flow] {
			t.Fatalf("%x goes to %v, a stream that has ended", s.data, s.flow)
		}
	}
	c.actions, c.toPeer, c.toClient = nil, nil, nil
}

func (c *chaos) open(t *rapid.T, id RelayID) {
	if c.sockets[id] {
		t.Fatalf("relay %#x is to be opened twice", id)
	}
	c.sockets[id] = true
}

func (c *chaos) pick(t *rapid.T) *client {
	return rapid.SampledFrom(c.clients).Draw(t, "client")
}

// request sends any request with any attributes.
func (c *chaos) request(t *rapid.T) {
	v := c.pick(t)
	m := rapid.SampledFrom([]method{
		methodAllocate, methodAllocate, methodAllocate, methodRefresh, methodCreatePermission, methodChannelBind, methodConnect, methodConnect,
		methodConnectionBind, methodConnectionBind,
	}).Draw(t, "method")
	peer := rapid.SampledFrom([]string{peer4, peer6, "198.51.100.78:1", "[2001:db8:78::1]:1"})
	all := []attr{
		udp(), tcp(), lifetime(0), lifetime(900), family(IPv4), family(IPv6), additional(IPv6), flag(attrEvenPort, 0x80),
		peerAt(peer.Draw(t, "peer")), peerAt(peer.Draw(t, "peer")), channel(rapid.Uint16Range(0x4000, 0x4006).Draw(t, "channel")),
	}
	for _, id := range slices.Sorted(maps.Keys(c.core.connections)) {
		all = append(all, u32(attrConnectionID, uint32(id)))
	}
	tokens := slices.SortedFunc(maps.Keys(c.core.reservations), func(a, b token) int { return bytes.Compare(a[:], b[:]) })
	kinds := [][]attr{all[:1], all[:1], {all[0], all[6]}, {all[0], all[7]}}
	if v.flow.Conn != 0 {
		kinds = append(kinds, all[1:2], all[1:2], all[1:2])
	}
	for _, token := range tokens {
		kinds = append(kinds, []attr{all[0], {attrReservationToken, slices.Clone(token[:])}})
	}
	needed := map[method][]attr{
		methodAllocate: rapid.SampledFrom(kinds).Draw(t, "kind"), methodCreatePermission: all[8:9], methodConnect: all[8:9],
		methodChannelBind: all[9:11], methodConnectionBind: all[11:],
	}[m]
	extra := rapid.SliceOfN(rapid.SampledFrom(all), 0, 1).Draw(t, "extra")
	v.exchange(v.signed(m, append(slices.Clone(needed), extra...)...))
	c.settle(t)
}

// answer gives one of the answers that the driver owes, right or wrong.
func (c *chaos) answer(t *rapid.T) {
	if len(c.asked) == 0 {
		return
	}
	i := rapid.IntRange(0, len(c.asked)-1).Draw(t, "question")
	a := c.asked[i]
	c.asked = slices.Delete(c.asked, i, i+1)
	good := rapid.IntRange(0, 5).Draw(t, "good") > 0
	switch a.Kind {
	case OpenRelay:
		c.answerOpen(a, good)
	case Connect:
		if good {
			c.core.Connected(c.now, a.Connection, &c.out)
		} else {
			delete(c.peers, a.Connection)
			c.core.ConnectFailed(a.Connection, &c.out)
		}
	}
	c.settle(t)
}

func (c *chaos) answerOpen(a Action, good bool) {
	if !c.sockets[a.Relay] {
		good = true // closed meanwhile: the driver has not noticed yet
	}
	if !good {
		delete(c.sockets, a.Relay)
		delete(c.sockets, a.Second)
		c.core.RelayFailed(c.now, a.Relay, &c.out)
		return
	}
	c.port += 2
	addr := map[Family]string{IPv4: "198.51.100.1", IPv6: "2001:db8:1::1"}[a.Family]
	c.core.RelayOpened(c.now, a.Relay, netip.AddrPortFrom(netip.MustParseAddr(addr), c.port&^1), &c.out)
}

// packet has a client and a peer send something.
func (c *chaos) packet(t *rapid.T) {
	v := c.pick(t)
	v.core.FromClient(c.now, v.flow, channelData(rapid.Uint16Range(0x4000, 0x4006).Draw(t, "channel"), "x"), &c.out)
	for _, id := range slices.Sorted(maps.Keys(c.sockets)) {
		from := netip.MustParseAddrPort(rapid.SampledFrom([]string{peer4, peer6}).Draw(t, "from"))
		c.core.FromPeer(c.now, id, from, []byte("x"), 0, &c.out)
		if conn, ok := c.core.PeerConnected(c.now, id, from, &c.out); ok {
			c.peers[conn] = true
		}
	}
	c.settle(t)
}

// fault breaks a socket, a connection or a stream, or is an operator.
func (c *chaos) fault(t *rapid.T) {
	switch rapid.IntRange(0, 20).Draw(t, "fault") {
	case 0:
		for _, id := range slices.Sorted(maps.Keys(c.sockets)) {
			if r := c.core.relay(id); r.open {
				delete(c.sockets, id)
				c.core.RelayFailed(c.now, id, &c.out)
				break
			}
		}
	case 1:
		for _, id := range slices.Sorted(maps.Keys(c.peers)) {
			delete(c.peers, id)
			c.core.ConnectionClosed(id, &c.out)
			break
		}
	case 2:
		if v := c.pick(t); v.flow.Conn != 0 {
			c.core.StreamClosed(v.flow, &c.out)
			c.closed[v.flow] = true
			c.conns++
			v.flow.Conn = c.conns
		}
	case 3:
		flow := c.pick(t).flow
		c.core.Evict(func(i Info) bool { return i.Flow == flow || i.Flow == Flow{} }, &c.out)
	case 4:
		c.forbid(rapid.SampledFrom([]string{"10.0.0.0/8", "198.51.100.0/24", "10.0.0.0/8", "2001:db8:77::/64"}).Draw(t, "forbidden"))
		c.core.PolicyChanged(&c.out)
	case 5:
		c.core.Drain(rapid.IntRange(0, 4).Draw(t, "drain") == 0, nil, &c.out)
	}
	c.settle(t)
}

func (c *chaos) pass(t *rapid.T) {
	c.now = c.now.Add(rapid.SampledFrom([]time.Duration{time.Second, 9 * time.Second, 31 * time.Second, 5 * time.Minute}).Draw(t, "time"))
	if rapid.Bool().Draw(t, "timer") {
		c.core.Expire(c.now, &c.out)
	}
	c.settle(t)
}

// check compares the tables of the core with each other and with the driver's.
func (c *chaos) check(t *rapid.T) {
	relays, connections, permissions, channels, idle := 0, 0, 0, 0, 0
	for _, a := range c.core.flows {
		for _, r := range a.relays {
			if r != nil {
				relays++
			}
		}
		if a.opening != nil && a.opening.second != nil {
			relays++
		}
		connections += len(a.connections)
		permissions += len(a.permissions)
		channels += len(a.channels)
	}
	relays += len(c.core.reservations)
	for _, v := range c.core.connections {
		if v.state == spliced {
			idle++
		}
	}
	held := c.ledger.held
	switch timers := len(c.core.flows) + len(c.core.reservations) + len(c.core.connections) - idle; {
	case relays != c.core.relays.held || relays != held[Relays] || relays != len(c.sockets):
		t.Fatalf("%d relays, held %d, in the ledger %d, at the driver %d", relays, c.core.relays.held, held[Relays], len(c.sockets))
	case permissions != held[Permissions] || channels != held[Channels]:
		t.Fatalf("%d permissions and %d channels, in the ledger %v", permissions, channels, held)
	case connections != len(c.core.connections) || connections != len(c.peers):
		t.Fatalf("%d connections, known %d, at the driver %d", connections, len(c.core.connections), len(c.peers))
	case timers != len(c.core.timers):
		t.Fatalf("%d timers, want %d", len(c.core.timers), timers)
	}
}

// TestCore_KeepsItsBooksWhateverHappens draws sequences of requests, answers of
// a bad driver, and faults. After each, nothing is counted twice or lost; at
// the end of all lifetimes, nothing is left. "make soak" draws more (its name has Model).
func TestCore_KeepsItsBooksWhateverHappens_Model(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newChaos(t)
		rt.Repeat(map[string]func(*rapid.T){
			"request": c.request, "request again": c.request, "another request": c.request, "answer": c.answer, "answer again": c.answer,
			"packet": c.packet, "fault": c.fault, "time": c.pass, "": c.check,
		})
		c.now = c.now.Add(2 * time.Hour)
		c.core.Expire(c.now, &c.out)
		c.settle(rt)
		c.idle()
		if len(c.sockets)+len(c.peers) != 0 {
			rt.Fatalf("the driver still has %v and %v", c.sockets, c.peers)
		}
	})
}
