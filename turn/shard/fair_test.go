// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// flood sends datagrams to an address as fast as it can until the test ends.
func flood(t *testing.T, to netip.AddrPort, data []byte) {
	t.Helper()
	c, _ := socket(t, to.Addr())
	stop := make(chan struct{})
	var flooding sync.WaitGroup
	flooding.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				c.WriteToUDPAddrPort(data, to)
			}
		}
	})
	t.Cleanup(func() { close(stop); flooding.Wait() })
}

// Floods take their share and no more: of a listener, relays lose nothing to them,
// nor do calls and timers; of a relay, the others and the listeners lose nothing.
func TestShard_FloodsStarveNobody(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine, func(cfg *Config) { cfg.Core.Limits.DefaultLifetime = 2 * time.Second })
		c, short := w.client(loopback4, "ann"), w.client(loopback6, "bob")
		relay := c.allocate(attr(stun.AttrLifetime, 0, 0, 0, 60))
		peer, at := socket(t, loopback4)
		c.bind(0x4000, at)
		shortAt := short.allocate()
		works := func(who string) {
			t.Helper()
			for range 30 {
				peer.WriteToUDPAddrPort([]byte("ping"), relay)
				if got := c.packet(); string(got) != "\x40\x00\x00\x04ping" {
					t.Fatalf("%s: got %q", who, got)
				}
				called := make(chan struct{})
				w.Do(func(time.Time, *core.Core, *core.Output) { close(called) })
				await(t, called, "a call")
			}
		}
		flood(t, w.udp[loopback4], channelData(0x4000, make([]byte, 100)))
		works("flooded listener")
		flood(t, shortAt, make([]byte, 100))
		works("flooded relay")
		for range 30 {
			short.do(stun.MustBuild(stun.TransactionID, stun.BindingRequest)) // the other listener
		}
		eventually(t, "the relay that nobody refreshed ends", func() bool { return w.relays.count() == 1 })
	})
}
