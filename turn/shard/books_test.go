// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// choosy is a transmitter that takes no relay with a certain id over.
type choosy struct{ not core.RelayID }

func (c choosy) adopt(p *port) error {
	if p.relay == c.not {
		return unix.ENOSPC
	}
	return nil
}
func (choosy) abandon(*port)                            {}
func (choosy) send(*port, netip.AddrPort, bool, []byte) {}

// Of a pair of relays one alone is of no use: when either cannot be taken over, both
// are closed and given back.
func TestBooks_TakePairsOfRelaysOverOrNone(t *testing.T) {
	one, two := core.RelayID(1<<32|1), core.RelayID(1<<32|2)
	for name, test := range map[string]struct {
		second, not core.RelayID
		held        int
	}{
		"one relay": {0, 0, 1}, "one that breaks": {0, one, 0},
		"a pair": {two, 0, 2}, "the first breaks": {two, one, 0}, "the second breaks": {two, two, 0},
	} {
		relays := &testRelays{open: map[netip.AddrPort]bool{}}
		b := &books{cfg: Config{Relays: relays}, tx: choosy{not: test.not}, relays: make([]*port, 1)}
		a := core.Action{Relay: one, Second: test.second, Family: core.IPv4, Even: test.second != 0}
		first, second, err := relays.Open(a)
		if err != nil {
			t.Fatal(err)
		}
		err = b.adoptRelays(a, first, second)
		open := 0
		for _, o := range []Opened{first, second} {
			if o.Socket != nil && !o.Socket.closed.Load() {
				open++
			}
		}
		if (err == nil) != (test.held > 0) || open != test.held || relays.count() != test.held || b.stats.Relays != test.held {
			t.Errorf("%s: %v; %d sockets are open, %d relays held, %d counted; want %d", name, err, open, relays.count(), b.stats.Relays, test.held)
		}
		if (b.relay(one) != nil) != (test.held > 0) || (b.relay(two) != nil) != (test.held > 1) {
			t.Errorf("%s: the books have %v", name, b.relays)
		}
		b.close()
		if relays.count() != 0 || b.stats.Relays != 0 {
			t.Errorf("%s: %d relays are held in the end", name, relays.count())
		}
	}
}

// The log tells of relays that fail once a minute, not each time.
func TestBooks_ComplainOnceAMinute(t *testing.T) {
	var log bytes.Buffer
	now := time.Now()
	c := plainCore(t, now)
	b := &books{core: c, log: slog.New(slog.NewTextHandler(&log, nil))}
	var out core.Output
	for i, want := range []int{1, 1, 1, 2, 2} { // every 25 seconds
		b.relayFailed(now.Add(time.Duration(i)*25*time.Second), 1, unix.EMFILE, &out)
		if got := strings.Count(log.String(), "turn relay failed"); got != want || b.stats.RelaysFailed != uint64(i+1) {
			t.Errorf("after %d have failed the log tells of it %d times, want %d", i+1, got, want)
		}
	}
}

// A shard without streams, and without another path, does nothing for them; relays of
// TCP fail there.
func TestShard_WithoutStreams(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine, func(cfg *Config) {
			cfg.Core.Listeners = append(cfg.Core.Listeners, core.Listener{Addr: cfg.Core.Listeners[0].Addr, Stream: true})
		})
		flow := core.Flow{Client: netip.MustParseAddrPort("127.0.0.1:9"), Conn: 7, Listener: 2}
		w.Do(func(_ time.Time, _ *core.Core, out *core.Output) {
			for _, kind := range []core.Kind{core.SendClient, core.CloseRelay, core.Connect, core.Splice, core.Disconnect, core.ChannelsChanged} {
				out.Actions = append(out.Actions, core.Action{Kind: kind, Flow: flow, Relay: 1<<32 | 9, Data: []byte("x")})
			}
			out.Actions = append(out.Actions, core.Action{Kind: core.SendPeer, Relay: 1<<32 | 9, Peer: flow.Client, Data: []byte("x")},
				core.Action{Kind: core.OpenRelay, Relay: 1<<32 | 9, Transport: core.TCP, Family: core.IPv4})
		})
		if s := w.Stats(); s.RelaysFailed != 1 || s.Relays != 0 || s.ToPeers != (Traffic{}) || w.relays.count() != 0 {
			t.Errorf("counted %+v", s)
		}
		w.client(loopback4, "ann").allocate()
	})
}

// A relay is known by all of its number: the place of one that has ended is the next
// one's.
func TestBooks_KnowRelaysThatHaveEnded(t *testing.T) {
	p := &port{relay: 2<<32 | 1}
	b := &books{relays: []*port{nil, p}}
	for id, want := range map[core.RelayID]*port{2<<32 | 1: p, 1<<32 | 1: nil, 3<<32 | 1: nil, 0: nil, 2 << 32: nil, 2<<32 | 2: nil} {
		if got := b.relay(id); got != want {
			t.Errorf("relay %x is %v, want %v", id, got, want)
		}
	}
}

// plainCore is one that nobody has asked for anything.
func plainCore(t testing.TB, now time.Time) *core.Core {
	t.Helper()
	c, err := core.New(now, core.Config{
		Realm: "meshgate", Offers: core.Offers{IPv4: true}, Authenticator: users{},
		Listeners: []core.Listener{{Addr: netip.MustParseAddrPort("127.0.0.1:9")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
