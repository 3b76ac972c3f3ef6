// SPDX-License-Identifier: Apache-2.0

package core

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// accounts answers for accounts that a test makes up.
type accounts func(username string) (Account, bool)

func (a accounts) Authenticate(_ time.Time, username []byte) (Account, bool) {
	return a(string(username))
}

// TestAdmit_IsAskedOnlyAboutWhoHasTheKey checks what is said and counted of each
// kind of credential that is refused.
func TestAdmit_IsAskedOnlyAboutWhoHasTheKey(t *testing.T) {
	var asked []string
	awaited := true
	w := newWorld(t, func(cfg *Config) {
		cfg.Admit = func(user string) bool { asked = append(asked, user); return user != "banned" }
		cfg.Authenticator = accounts(func(name string) (Account, bool) {
			a := Account{User: name, Keys: []Key{NewKey(name, "meshgate", "x")}, Expires: start.Add(time.Hour)}
			switch name {
			case "nobody":
				return Account{}, false
			case "ended":
				a.Expires = start
			case "lasting":
				a.Expires = start.Add(maxAhead)
			case "endless":
				a.Expires = start.Add(maxAhead + time.Second)
			case "awaited":
				a.Awaited = awaited
			case "keyless":
				a.Keys, a.Awaited = nil, awaited
			}
			return a, true
		})
	})
	n := 0
	ask := func(name, password, want string) {
		t.Helper()
		n++
		if got := w.client(udp4, n).as(name, password).ask(methodRefresh); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	ask("good", "x", "437")
	ask("good", "y", "401 nonce algorithms")
	ask("ended", "x", "401 nonce algorithms")
	ask("ended", "y", "401 nonce algorithms")
	ask("nobody", "x", "401 nonce algorithms")
	ask("lasting", "x", "437")
	ask("endless", "x", "401 nonce algorithms")
	ask("endless", "y", "401 nonce algorithms")
	ask("banned", "x", "401 nonce algorithms")
	ask("awaited", "x", "437")
	ask("awaited", "y", "none")
	ask("keyless", "y", "none")
	if want := []string{"good", "lasting", "banned", "awaited"}; !slices.Equal(asked, want) {
		t.Errorf("asked about %q, want %q", asked, want)
	}
	if got, want := w.core.Stats().Failed, [NumFailures]uint64{3, 1, 1, 2, 1, 1, 0}; got != want {
		t.Errorf("counted %v, want %v", got, want)
	}
	awaited = false
	ask("awaited", "y", "401 nonce algorithms")
	ask("keyless", "y", "401 nonce algorithms")
}

// TestFleeting_IsAskedAboutEachPacket has a peer come and go without a word, and
// another one whose verdict is kept.
func TestFleeting_IsAskedAboutEachPacket(t *testing.T) {
	var there bool
	asked := map[bool]int{} // by Peer.Traffic
	c := newWorld(t, func(cfg *Config) {
		cfg.Permit = func(_ string, p Peer) bool { asked[p.Traffic]++; return !p.Traffic || there }
		cfg.Fleeting = func(a netip.AddrPort) bool { return a.Port() == 9999 }
		cfg.Offload = true
	}).client(udp4, 1)
	const steady = "198.51.100.78:1"
	c.allocate()
	c.must(methodChannelBind, channel(0x4000), peerAt("198.51.100.77:9999"))
	c.must(methodCreatePermission, peerAt(steady))
	for _, there = range []bool{false, true, true, false, true} {
		if got := c.emit(channelData(0x4000, "x")) != "none"; got != there {
			t.Errorf("a packet passes: %t, while the peer is there: %t", got, there)
		}
		if got := c.receive("198.51.100.77:9999", "x") != nil; got != there {
			t.Errorf("a packet comes: %t, while the peer is there: %t", got, there)
		}
		c.indication(peerAt(steady), data("x"))
	}
	if asked[false] != 2 || asked[true] != 10+1 {
		t.Errorf("asked %v", asked)
	}
	there = true
	for b := range c.core.Bindings(c.now, c.flow) {
		t.Errorf("%v may be served past the core", b)
	}
}

// TestHint_TellsWhoHasNoAllocation checks to whom the server says so unasked.
func TestHint_TellsWhoHasNoAllocation(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Hint = true })
	large := channelData(0x4000, "0123456789012345678901234")
	indication := func(c *client) []byte {
		return c.unsigned(methodSend, classIndication, peerAt(peer4), data("x"))
	}
	for name, tt := range map[string]struct {
		listener uint16
		packet   func(*client) []byte
		silent   bool
		want     string
	}{
		"channel data":            {udp4, func(*client) []byte { return large }, false, "437"},
		"an indication":           {udp4, indication, false, "437"},
		"less than would be said": {udp4, func(*client) []byte { return channelData(0x4000, "x") }, false, "none"},
		"over TCP":                {tcp4, indication, false, "none"},
		"beyond the rate":         {udp4, indication, true, "none"},
	} {
		w.silent = tt.silent
		c := w.client(tt.listener, 1)
		got := c.exchange(tt.packet(c))
		if got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		if n := len(w.toClient); got == "437" && string(w.toClient[n-1].data[:20]) != "\x01\x14\x00\x08\x21\x12\xa4\x42"+string(make([]byte, 12)) {
			t.Errorf("%s: answered by %x", name, w.toClient[n-1].data)
		}
	}
	w.silent = false
	held := w.client(udp4, 2)
	held.allocate()
	if got := held.exchange(large); got != "none" {
		t.Errorf("a client that has an allocation: %s", got)
	}
}

func TestInfo_NamesEachAllocation(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Shard = 7 })
	w.client(udp4, 1).allocate()
	w.now = w.now.Add(time.Minute)
	w.client(udp4, 2).allocate()
	seen := map[uint64]time.Time{}
	for i := range w.core.Allocations() {
		seen[i.ID] = i.Since
		if i.ID>>56 != 7 {
			t.Errorf("id %x", i.ID)
		}
		if want := start.Add(time.Duration(i.Flow.Client.Port()-1001) * time.Minute); !i.Since.Equal(want) {
			t.Errorf("since %v, want %v", i.Since, want)
		}
	}
	if len(seen) != 2 {
		t.Errorf("ids %v", seen)
	}
	if got := w.ledger.Users(); !slices.Equal(got, []string{"alice"}) || w.ledger.Total(Relays) != 2 {
		t.Errorf("%q hold %d relays", got, w.ledger.Total(Relays))
	}
}

// TestRate_HoldsForAllAllocationsOfAUser has two allocations of a user share a
// rate, and one of another user that is not bounded.
func TestRate_HoldsForAllAllocationsOfAUser(t *testing.T) {
	shared := NewRate(100_000)
	shared.start = start
	w := newWorld(t, func(cfg *Config) {
		cfg.Rate = func(user string, _ int64) *Rate {
			if user == "alice" {
				return shared
			}
			return nil
		}
		cfg.Offload = true
	})
	a, b, free := w.client(udp4, 1), w.client(udp4, 2), w.client(udp4, 3).as("bob", "builder")
	var passed [3]int
	load := func() {
		passed = [3]int{}
		for range 15 {
			for i, c := range []*client{a, b, free} {
				if c.emit(channelData(0x4000, string(make([]byte, 5000)))) != "none" {
					passed[i]++
				}
			}
		}
	}
	for _, c := range []*client{a, b, free} {
		c.bound()
	}
	load()
	if passed[0]+passed[1] != 20 || passed[2] != 15 {
		t.Errorf("%v packets passed, want 20 of the first two", passed)
	}
	w.pass(time.Second / 2)
	load()
	if passed[0]+passed[1] != 10 {
		t.Errorf("%v packets passed in the next half second, want 10 of the first two", passed)
	}
	shared.Set(1 << 30)
	w.pass(time.Second)
	if load(); passed != [3]int{15, 15, 15} {
		t.Errorf("%v packets passed at a higher rate", passed)
	}
	for b := range w.core.Bindings(w.now, a.flow) {
		if b.Rate != shared || b.BytesPerSecond != 1<<30 {
			t.Errorf("another path is told of %d bytes a second", b.BytesPerSecond)
		}
	}
	shared.Set(0)
	w.core.Credit(w.now, a.flow, Usage{ReceivedBytes: 2 << 40})
	for b := range w.core.Bindings(w.now, a.flow) {
		if b.Rate != nil || b.BytesPerSecond != 0 {
			t.Errorf("another path is told of %d bytes a second without a bound", b.BytesPerSecond)
		}
	}
	if load(); passed != [3]int{15, 15, 15} {
		t.Errorf("%v packets passed without a bound", passed)
	}
	shared.Set(1 << 30)
	w.core.Credit(w.now, a.flow, Usage{ReceivedBytes: 2 << 30})
	if load(); passed != [3]int{0, 0, 15} {
		t.Errorf("%v packets passed beside what another path has relayed", passed)
	}
	if n := len(slices.Collect(w.core.Bindings(w.now, free.flow))); n != 1 {
		t.Errorf("%d channels of who has no rate", n)
	}
}

// TestRate_FollowsTheCredential has a user come with a credential of another bound, when
// it makes an allocation and when it refreshes one.
func TestRate_FollowsTheCredential(t *testing.T) {
	var asked []int64
	shared := newRate(start, 1000)
	for name, hook := range map[string]func(string, int64) *Rate{
		"shared": func(user string, perSecond int64) *Rate {
			asked = append(asked, perSecond)
			shared.Set(perSecond)
			return shared
		},
		"its own": nil,
	} {
		c := newWorld(t, func(cfg *Config) {
			cfg.Rate, cfg.Offload = hook, true
			people := cfg.Authenticator
			cfg.Authenticator = authenticate(func(now time.Time, username []byte) (Account, bool) {
				a, ok := people.Authenticate(now, username)
				a.BytesPerSecond = map[string]int64{"1:carol": 1000, "2:carol": 3000}[string(username)]
				return a, ok
			})
		}).client(udp4, 1).as("1:carol", "old")
		c.bound()
		told := func() (perSecond int64) {
			for b := range c.core.Bindings(c.now, c.flow) {
				perSecond = b.BytesPerSecond
			}
			return perSecond
		}
		first := told()
		c.username = "2:carol"
		c.must(methodCreatePermission, peerAt(peer4))
		second := told()
		c.must(methodRefresh)
		if third := told(); first != 1000 || second != 1000 || third != 3000 {
			t.Errorf("%s: bounds of %d, %d and %d bytes a second", name, first, second, third)
		}
	}
	if !slices.Equal(asked, []int64{1000, 3000}) {
		t.Errorf("asked about %d", asked)
	}
}

// authenticate is an Authenticator.
type authenticate func(now time.Time, username []byte) (Account, bool)

func (f authenticate) Authenticate(now time.Time, username []byte) (Account, bool) {
	return f(now, username)
}

// TestEnded_HasTheRelayedAddress tells of allocations that their clients gave back and
// that were taken from them, whose relay was it.
func TestEnded_HasTheRelayedAddress(t *testing.T) {
	var ended []Info
	w := newWorld(t, func(cfg *Config) { cfg.Ended = func(i Info) { ended = append(ended, i) } })
	for n, end := range []func(c *client){
		func(c *client) { c.must(methodRefresh, lifetime(0)) },
		func(c *client) { w.core.Evict(func(Info) bool { return true }, &Output{}) },
	} {
		c := w.client(udp4, n+1)
		c.allocate()
		var had Info
		for i := range w.core.Allocations() {
			had = i
		}
		end(c)
		if len(ended) != n+1 || !had.Relayed[0].IsValid() || ended[n].Relayed != had.Relayed || ended[n].ID != had.ID {
			t.Errorf("told %+v, want %+v", ended, had)
		}
	}
}
