// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// ticks is an Offload that tells when it is asked for counters.
type ticks struct {
	recordOffload
	asked chan struct{}
}

func (o ticks) Counters(core.Flow) core.Usage {
	select {
	case o.asked <- struct{}{}:
	default:
	}
	return core.Usage{}
}

// A shard that has nothing else to do asks for the counters of another path, for as
// long as that serves something.
func TestShard_WakesForTheCountersOfAnotherPath(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		t.Parallel() // it waits
		path := ticks{recordOffload{&recorder{}}, make(chan struct{})}
		w := newWorld(t, engine, func(cfg *Config) { cfg.Offload = path })
		c := w.client(loopback4, "ann")
		c.allocate()
		c.bind(0x4000, netip.MustParseAddrPort("127.0.0.1:9"))
		for range 2 {
			await(t, path.asked, "the shard asks")
		}
		c.must(stun.MethodRefresh, lifetime(0))
		left := make(chan int, 1)
		w.Do(func(time.Time, *core.Core, *core.Output) { left <- len(w.books().offloaded) })
		if n := <-left; n != 0 {
			t.Errorf("%d clients are asked about that have ended", n)
		}
	})
}

// books are those of the shard: to be looked at in its calls.
func (w *world) books() *books {
	if e, ok := w.engine.(*portable); ok {
		return e.books
	}
	return w.engine.(*thread).books
}
