// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLedger_CountsByUserAndInTotal(t *testing.T) {
	l := NewLedger(Counts{Relays: 2, Permissions: 3}, Counts{Relays: 3, Channels: 1})
	for i, step := range []struct {
		user string
		what Resource
		n    int
		want Grant
	}{
		{"alice", Relays, 2, Granted},
		{"alice", Relays, 1, UserFull},
		{"bob", Relays, 2, TotalFull}, // all or nothing
		{"bob", Relays, 1, Granted},
		{"carol", Relays, 1, TotalFull},
		{"alice", Permissions, 4, UserFull},
		{"alice", Permissions, 3, Granted},
		{"bob", Permissions, 3, Granted},
		{"alice", Channels, 1, Granted},
		{"bob", Channels, 1, TotalFull},
	} {
		if got := l.Take(step.user, step.what, step.n); got != step.want {
			t.Errorf("step %d: %s takes %d: %v, want %v", i, step.user, step.n, got, step.want)
		}
	}
	l.Give("alice", Relays, 2)
	if got := l.Take("carol", Relays, 2); got != Granted {
		t.Errorf("what was given back: %v", got)
	}
	l.SetLimits(Counts{Relays: 1}, Counts{})
	if got := l.Take("carol", Relays, 1); got != UserFull {
		t.Errorf("beyond a limit that was lowered: %v", got)
	}
	for _, v := range []struct {
		user string
		what Resource
		n    int
	}{{"alice", Permissions, 3}, {"alice", Channels, 1}, {"bob", Relays, 1}, {"bob", Permissions, 3}, {"carol", Relays, 2}} {
		l.Give(v.user, v.what, v.n)
	}
	if len(l.users) != 0 || l.held != [NumResources]int{} {
		t.Errorf("%d users are kept, who hold %v", len(l.users), l.held)
	}
}

func TestLedger_IsSharedByCores(t *testing.T) {
	l := NewLedger(Counts{}, Counts{Relays: 100})
	var wait sync.WaitGroup
	granted := make([]int, 4)
	for i := range granted {
		wait.Go(func() {
			user := fmt.Sprint(i % 2)
			for range 1000 {
				if l.Take(user, Relays, 1) == Granted {
					if granted[i]++; granted[i]%2 == 0 {
						l.Give(user, Relays, 1)
						granted[i]--
					}
				}
			}
		})
	}
	wait.Wait()
	if sum := granted[0] + granted[1] + granted[2] + granted[3]; sum != l.held[Relays] || l.Held("0", Relays)+l.Held("1", Relays) != sum {
		t.Errorf("%v were granted, and %d are held", granted, l.held[Relays])
	}
}

// TestQuota_OfPermissionsAndChannels gives users less than allocations may have.
func TestQuota_OfPermissionsAndChannels(t *testing.T) {
	w := newWorld(t)
	w.ledger.SetLimits(Counts{Permissions: 2, Channels: 1}, Counts{})
	one, two := w.client(udp4, 1), w.client(udp4, 2)
	one.allocate()
	two.allocate()
	for i, step := range []struct{ got, want string }{
		{one.ask(methodCreatePermission, peerAt(peer4)), "ok"},
		{two.ask(methodCreatePermission, peerAt("198.51.100.1:1"), peerAt("198.51.100.2:1")), "508"},
		{two.ask(methodChannelBind, channel(0x4000), peerAt("198.51.100.1:1")), "ok"},
		{one.ask(methodChannelBind, channel(0x4000), peerAt(peer4)), "508"},
		{two.ask(methodChannelBind, channel(0x4000), peerAt("198.51.100.1:1")), "ok"},
		{two.ask(methodCreatePermission, peerAt("198.51.100.1:1")), "ok"},
	} {
		if step.got != step.want {
			t.Errorf("step %d: %s, want %s", i, step.got, step.want)
		}
	}
	// A channel that gets no permission gives its place back.
	w.ledger.SetLimits(Counts{Permissions: 2, Channels: 2}, Counts{})
	if got := one.ask(methodChannelBind, channel(0x4001), peerAt("198.51.100.3:1")); got != "508" {
		t.Errorf("channel to an address beyond the quota: %s", got)
	}
	if got := w.ledger.Held("alice", Channels); got != 1 {
		t.Errorf("%d channels are counted, want 1", got)
	}
	w.pass(time.Hour)
	w.idle()
}

// TestQuota_IsGivenBack reaches each bound that a user has, and all have together, and
// has who holds what there is lose it in each way there is.
func TestQuota_IsGivenBack(t *testing.T) {
	ends := map[string]func(c *client){
		"expiry":        func(c *client) { c.pass(10 * time.Minute) },
		"refresh":       func(c *client) { c.must(methodRefresh, lifetime(0)) },
		"closed stream": func(c *client) { c.core.StreamClosed(c.flow, &c.out) },
		"eviction":      func(c *client) { c.core.Evict(func(i Info) bool { return i.Flow == c.flow }, &c.out) },
		"broken relay":  func(c *client) { c.core.RelayFailed(c.now, c.core.flows[c.flow.key()].relays[0].id, &c.out) },
	}
	for end, lose := range ends {
		for what, one := range map[Resource]Counts{Relays: {Relays: 1}, Permissions: {Permissions: 1}, Channels: {Channels: 1}} {
			for whose, limits := range [NumBounds][2]Counts{BoundUser: {one, {}}, BoundTotal: {{}, one}} {
				if Bound(whose) == BoundAllocation {
					continue
				}
				w := newWorld(t)
				w.ledger.SetLimits(limits[0], limits[1])
				holder, other := w.client(tcp4, 1), w.client(udp4, 2)
				if Bound(whose) == BoundTotal {
					other.as("bob", "builder")
				}
				holder.allocate()
				holder.must(methodChannelBind, channel(0x4000), peerAt(peer4))
				ask, want := func() string { return other.ask(methodAllocate, udp()) }, "508"
				if what != Relays {
					other.allocate(udp(), lifetime(3600))
					ask = func() string { return other.ask(methodChannelBind, channel(0x4000), peerAt(peer4)) }
				} else if Bound(whose) == BoundUser {
					want = "486"
				}
				if got := ask(); got != want {
					t.Errorf("%s beyond the bound of %s: %s, want %s", what, Bound(whose), got, want)
				}
				var full [NumResources][NumBounds]uint64
				if full[what][whose] = 1; w.core.Stats().Full != full {
					t.Errorf("%s beyond the bound of %s: counted %v", what, Bound(whose), w.core.Stats().Full)
				}
				if lose(holder); !strings.HasPrefix(ask(), "ok") {
					t.Errorf("%s are not given back by %s", what, end)
				}
			}
		}
	}
}

func TestSetLimits_HoldsForWhatComes(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.allocate()
	if err := c.core.SetLimits(Limits{NonceLifetime: 24 * time.Hour}); err == nil || !strings.Contains(err.Error(), "Limits.NonceLifetime") {
		t.Errorf("limits that cannot be: %v", err)
	}
	if err := c.core.SetLimits(Limits{Relays: 1, Permissions: 1, MaxLifetime: 20 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]struct{ got, want string }{
		"lifetime":    {c.ask(methodRefresh, lifetime(3600)), "ok lifetime=1200"},
		"permissions": {c.ask(methodCreatePermission, peerAt(peer4), peerAt("198.51.100.1:1")), "508"},
		"relays":      {c.client(udp4, 2).ask(methodAllocate, udp()), "508"},
	} {
		if v.got != v.want {
			t.Errorf("%s: %s, want %s", name, v.got, v.want)
		}
	}
}

// TestQuota_OfConnections gives users fewer connections to peers than their
// allocations may have, and all users together fewer than that.
func TestQuota_OfConnections(t *testing.T) {
	may := true
	w := newWorld(t, func(cfg *Config) { cfg.MayConnect = func(time.Time, string) bool { return may } })
	w.ledger.SetLimits(Counts{Connections: 2}, Counts{Connections: 3})
	alice, bob := w.client(tcp4, 1), w.client(tcp4, 2).as("bob", "builder")
	alice.allocate(tcp())
	bob.allocate(tcp())
	second := w.client(tcp4, 3)
	second.allocate(tcp())
	may = false
	if got := alice.ask(methodConnect, peerAt(peer4)); got != "486" {
		t.Errorf("more often than it may: %s, want 486", got)
	}
	may = true
	if got := alice.ask(methodConnect, peerAt(peer4)); got != "none" {
		t.Fatalf("connect: %s", got)
	}
	id := alice.lastOf(Connect).Connection
	second.must(methodCreatePermission, peerAt(peer4))
	relayOf := func(c *client) RelayID { return w.core.flows[c.flow.key()].relays[0].id }
	if _, ok := w.core.PeerConnected(w.now, relayOf(second), netip.MustParseAddrPort(peer4), &w.out); !ok {
		t.Fatal("a peer is refused")
	}
	w.drive()
	if _, ok := w.core.PeerConnected(w.now, relayOf(second), netip.MustParseAddrPort("198.51.100.77:9"), &w.out); ok {
		t.Error("a peer is one more than the user may have")
	}
	for i, step := range []struct{ got, want string }{
		{alice.ask(methodConnect, peerAt("198.51.100.77:2")), "486"},
		{bob.ask(methodConnect, peerAt(peer4)), "none"},
		{bob.ask(methodConnect, peerAt("198.51.100.77:2")), "508"},
	} {
		if step.got != step.want {
			t.Errorf("step %d: %s, want %s", i, step.got, step.want)
		}
	}
	w.core.ConnectFailed(id, &w.out)
	w.drive()
	if got := alice.ask(methodConnect, peerAt(peer4)); got != "none" {
		t.Errorf("in the place of one that failed: %s", got)
	}
	w.pass(time.Hour)
	if n := w.ledger.Total(Connections); n != 0 {
		t.Errorf("%d are still held", n)
	}
}
