// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net/netip"
	"testing"

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
