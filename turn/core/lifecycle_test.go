// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// idle fails the test unless the core holds nothing and has given all back.
func (w *world) idle() {
	w.Helper()
	s := w.core.Stats()
	if s.Allocations+s.Reservations+s.Connections != 0 || len(w.relays) != 0 || len(w.core.relays.byAddr) != 0 || w.core.relays.held != 0 {
		w.Errorf("left over: %+v, sockets %v, %d addresses, %d held", s, w.relays, len(w.core.relays.byAddr), w.core.relays.held)
	}
	if len(w.ledger.users) != 0 || w.ledger.held != [NumResources]int{} {
		w.Errorf("the ledger still has %v", w.ledger.users)
	}
	if next, ok := w.core.Next(); ok {
		w.Errorf("a timer is set for %v", next)
	}
}

// TestAllocation_EndsGiveAllBack ends an allocation that has everything, in
// each way.
func TestAllocation_EndsGiveAllBack(t *testing.T) {
	for name, end := range map[string]func(*client){
		"refresh":  func(c *client) { c.must(methodRefresh, lifetime(0)) },
		"time":     func(c *client) { c.pass(time.Hour) },
		"stream":   func(c *client) { c.core.StreamClosed(c.flow, &c.out); c.drive() },
		"operator": func(c *client) { c.core.Evict(func(Info) bool { return true }, &c.out); c.drive() },
		"sockets": func(c *client) {
			for id := range c.relays {
				c.core.RelayFailed(c.now, id, &c.out)
				delete(c.relays, id)
			}
			c.drive()
		},
		"one family after the other": func(c *client) {
			c.must(methodRefresh, lifetime(0), family(IPv6))
			c.must(methodRefresh, lifetime(0), family(IPv4))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newWorld(t).client(tcp4, 1)
			c.allocate(udp(), additional(IPv6))
			c.must(methodCreatePermission, peerAt(peer4), peerAt(peer6), peerAt("198.51.100.78:1"))
			c.must(methodChannelBind, channel(0x4000), peerAt(peer4))
			c.must(methodChannelBind, channel(0x4001), peerAt(peer6))
			c.indication(peerAt("198.51.100.78:9"), data("x"))
			end(c)
			c.idle()
			if got := c.ask(methodRefresh); got != "437" {
				t.Errorf("refresh afterwards: %s", got)
			}
		})
	}
}

func TestReservation_EndsGiveAllBack(t *testing.T) {
	for name, end := range map[string]func(*client){
		"time":     func(c *client) { c.pass(30 * time.Second) },
		"operator": func(c *client) { c.core.Evict(func(i Info) bool { return i.User == "alice" }, &c.out); c.drive() },
		"socket": func(c *client) {
			id, _ := c.core.RelayAt(netip.MustParseAddrPort("198.51.100.1:49153"))
			c.core.RelayFailed(c.now, id, &c.out)
			delete(c.relays, id)
			if got := c.client(udp4, 3).ask(methodAllocate, udp(), c.token()); got != "508" {
				c.Errorf("the token of a broken relay: %s", got)
			}
		},
		"use": func(c *client) {
			other := c.client(udp4, 2)
			other.allocate(udp(), c.token())
			other.must(methodRefresh, lifetime(0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newWorld(t).client(udp4, 1)
			c.allocate(udp(), flag(attrEvenPort, 0x80))
			if got := c.ledger.Held("alice", Relays); got != 2 {
				t.Errorf("the user holds %d relays, want 2", got)
			}
			end(c)
			if s := c.core.Stats(); s.Reservations != 0 {
				t.Errorf("%d reservations are left", s.Reservations)
			}
			c.core.StreamClosed(c.flow, &c.out)
			c.drive()
			c.idle()
		})
	}
}

// TestRefresh_DoesNotRaiseTheDead refreshes both families when one has ended.
func TestRefresh_DoesNotRaiseTheDead(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.allocate(udp(), additional(IPv6))
	c.must(methodRefresh, family(IPv6), lifetime(1200))
	c.now = c.now.Add(601 * time.Second) // without a timer
	c.must(methodRefresh, lifetime(1200))
	if got := c.ask(methodCreatePermission, peerAt(peer4)); got != "443" {
		t.Errorf("a peer of the family that has ended: %s", got)
	}
	if len(c.relays) != 1 || !c.core.Holds(c.flow) || c.core.Holds(c.client(udp4, 2).flow) {
		t.Errorf("%d relays are open", len(c.relays))
	}
}

// TestAllocation_DriverThatDoesNotAnswer opens no relay: the core gives up.
func TestAllocation_DriverThatDoesNotAnswer(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	b := c.signed(methodAllocate, udp(), flag(attrEvenPort, 0x80))
	c.core.FromClient(c.now, c.flow, b, &c.out)
	opened := c.out.Actions[0]
	c.out.Reset()
	for range 2 { // repeated while it waits
		c.core.FromClient(c.now, c.flow, b, &c.out)
	}
	c.core.FromClient(c.now, c.flow, channelData(0x4000, "x"), &c.out)
	if len(c.out.Actions) != 0 {
		t.Fatalf("%+v", c.out.Actions)
	}
	if got := c.ask(methodRefresh); got != "437" {
		t.Errorf("refresh of what is not there yet: %s", got)
	}
	c.core.Expire(c.now.Add(openPatience), &c.out)
	var closed []RelayID
	for _, a := range c.out.Actions {
		if a.Kind == CloseRelay {
			closed = append(closed, a.Relay)
		}
	}
	if !slices.Equal(closed, []RelayID{opened.Relay, opened.Second}) {
		t.Errorf("closed are %v, opened were %d and %d", closed, opened.Relay, opened.Second)
	}
	c.drive()
	// An answer that comes too late counts for nothing.
	c.core.RelayOpened(c.now, opened.Relay, netip.MustParseAddrPort("198.51.100.1:4"), &c.out)
	c.core.RelayFailed(c.now, opened.Relay, &c.out)
	if len(c.out.Actions) != 0 {
		t.Errorf("%+v", c.out.Actions)
	}
	c.idle()
}

// TestAllocation_OneRelayOfTwoFailsLater breaks an open relay while the other
// is still being opened.
func TestAllocation_OneRelayOfTwoFailsLater(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	b := c.signed(methodAllocate, udp(), additional(IPv6))
	c.core.FromClient(c.now, c.flow, b, &c.out)
	four, six := c.out.Actions[0].Relay, c.out.Actions[1].Relay
	c.out.Reset()
	c.core.RelayOpened(c.now, four, netip.MustParseAddrPort("198.51.100.1:4"), &c.out)
	c.core.RelayFailed(c.now, four, &c.out)
	if len(c.out.Actions) != 0 {
		t.Fatalf("answered before the other relay: %+v", c.out.Actions)
	}
	c.core.RelayOpened(c.now, six, netip.MustParseAddrPort("[2001:db8:1::1]:6"), &c.out)
	if got, want := c.said(), "ok relayed=[2001:db8:1::1]:6 lifetime=600 mapped=client refused=1:508"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestRelayID_OfAClosedRelayIsNeverAnother has an index used again.
func TestRelayID_OfAClosedRelayIsNeverAnother(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	seen := map[RelayID]bool{}
	for range 5 {
		c.permitted()
		for id := range c.relays {
			if seen[id] || uint32(id) != 1 {
				t.Errorf("relay %#x, after %v", id, seen)
			}
			for old := range seen {
				c.core.FromPeer(c.now, old, netip.MustParseAddrPort(peer4), []byte("x"), 0, &c.out)
				c.core.RelayFailed(c.now, old, &c.out)
			}
			if len(c.out.Actions) != 0 {
				t.Errorf("an old relay did %+v", c.out.Actions)
			}
			if addr, ok := c.core.RelayAt(c.relays[id]); !ok || addr != id {
				t.Errorf("%v is relay %#x, want %#x", c.relays[id], addr, id)
			}
			seen[id] = true
		}
		c.must(methodRefresh, lifetime(0))
	}
}

func TestRate_IsBoundedByTheAccount(t *testing.T) {
	c := newWorld(t).client(udp4, 1).as("slow", "x")
	c.bound()
	passed := 0
	for range 20 {
		c.pass(time.Second)
		for range 4 {
			if c.emit(channelData(0x4000, strings.Repeat("x", 500))) != "none" {
				passed += 500
			}
			if c.receive(peer4, strings.Repeat("x", 500)) != nil {
				passed += 500
			}
		}
	}
	if passed < 20_000 || passed > 22_000 {
		t.Errorf("%d bytes passed in 20 seconds at 1000 bytes a second", passed)
	}
	if c.core.Stats().Dropped[DropRate] == 0 {
		t.Error("nothing was counted")
	}
}

func TestAllocations_AreListed(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.bound()
	c.emit(channelData(0x4000, "hello"))
	c.receive(peer4, "four")
	for i := range c.core.Allocations() {
		want := Info{
			ID: i.ID, Since: start, Flow: c.flow, User: "alice", Transport: UDP, Relayed: [2]netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:49152")},
			Expires: start.Add(10 * time.Minute), Permissions: 1, Channels: 1,
			Usage: Usage{SentPackets: 1, SentBytes: 5, ReceivedPackets: 1, ReceivedBytes: 4},
		}
		if i != want {
			t.Errorf("got  %+v\nwant %+v", i, want)
		}
		return
	}
	t.Error("nothing is listed")
}

func TestShardOf_FindsTokensAndConnections(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Shard = 7 })
	c := w.client(tcp4, 1)
	id := c.connected()
	even := w.client(udp4, 2).as("bob", "builder")
	even.allocate(udp(), flag(attrEvenPort, 0x80))
	for name, v := range map[string]struct {
		b     []byte
		shard uint8
		ok    bool
	}{
		"connection": {c.signed(methodConnectionBind, u32(attrConnectionID, uint32(id))), 7, true},
		"token":      {c.signed(methodAllocate, udp(), even.token()), 7, true},
		"allocate":   {c.signed(methodAllocate, udp()), 0, false},
		"junk":       {[]byte("GET / HTTP/1.1"), 0, false},
	} {
		if shard, ok := ShardOf(v.b); shard != v.shard || ok != v.ok {
			t.Errorf("%s: shard %d, %v", name, shard, ok)
		}
	}
}

func TestNew_SaysWhatIsWrong(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"Realm: \"rrr":          func(c *Config) { c.Realm = strings.Repeat("r", 21) },
		"Realm: \"\"":           func(c *Config) { c.Realm = "" },
		"Software: 128":         func(c *Config) { c.Software = strings.Repeat("s", 128) },
		"Authenticator:":        func(c *Config) { c.Authenticator = nil },
		"Offers:":               func(c *Config) { c.Offers = Offers{} },
		"NonceKey:":             func(c *Config) { c.NonceKey = []byte("short") },
		"Listeners:":            func(c *Config) { c.Listeners = nil },
		"Listeners[0].Addr:":    func(c *Config) { c.Listeners[0].Addr = netip.MustParseAddrPort("0.0.0.0:1") },
		"Limits.MaxLifetime:":   func(c *Config) { c.Limits.MaxLifetime = time.Minute },
		"Limits.NonceLifetime:": func(c *Config) { c.Limits.NonceLifetime = 13 * time.Hour },
		"Limits:":               func(c *Config) { c.Limits.Channels = -1 },
		"Discovery: 3":          func(c *Config) { c.Discovery = []uint16{udp4, udp4Q, udp4B} },
		"Discovery[1]:":         func(c *Config) { c.Discovery = []uint16{udp4, tcp4, udp4B, udp4BQ} },
		"Discovery: [":          func(c *Config) { c.Discovery = []uint16{udp4, udp4B, udp4Q, udp4BQ} },
	} {
		cfg := newWorld(t).core.cfg
		cfg.Listeners = slices.Clone(cfg.Listeners)
		change(&cfg)
		if _, err := New(start, cfg); err == nil || !strings.HasPrefix(err.Error(), "turn core: "+field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestDropReasons_AreLabels(t *testing.T) {
	seen := map[string]bool{}
	for d := range NumDropReasons {
		seen[d.String()] = true
	}
	if len(seen) != int(NumDropReasons) || len(ErrorCodes()) != len(Stats{}.Errors) || !slices.IsSorted(ErrorCodes()) {
		t.Errorf("%v, %v", seen, ErrorCodes())
	}
}

func TestErrors_AreCounted(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.ask(methodRefresh)
	s := c.core.Stats()
	if got := fmt.Sprint(s.Errors[slices.Index(ErrorCodes(), 401)], s.Errors[slices.Index(ErrorCodes(), 437)]); got != "1 1" {
		t.Errorf("401 and 437 were counted %s times", got)
	}
}

// A driver can choose the port of a relay by who asks: usernames change, users stay.
func TestAllocate_NamesTheUserOfTheRelay(t *testing.T) {
	w := newWorld(t)
	w.async = true
	w.client(udp4, 1).as("1:carol", "new").ask(methodAllocate, udp())
	if a := w.lastOf(OpenRelay); a.User != "carol" {
		t.Errorf("the relay is for %q, want carol", a.User)
	}
}
