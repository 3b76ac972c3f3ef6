// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// maxEnded bounds the allocations that have ended and wait for the log, which may be
// slow: the threads that carry packets do not wait for it.
const maxEnded = 1024

// record tells the log who had which relay, once that has ended: whoever gets a complaint
// about an address and a port looks there. It is safe for concurrent use.
type record struct {
	log  *slog.Logger
	left chan core.Info
	lost atomic.Uint64 // for which there was no room
}

func newRecord(log *slog.Logger) *record {
	return &record{log: log, left: make(chan core.Info, maxEnded)}
}

// leave is Ended of core.Config.
func (r *record) leave(i core.Info) {
	select {
	case r.left <- i:
	default:
		r.lost.Add(1)
	}
}

// run writes until done, and then what is left.
func (r *record) run(describe func(core.Info) Allocation, done <-chan struct{}) {
	for {
		select {
		case i := <-r.left:
			r.write(describe(i))
		case <-done:
			for range len(r.left) {
				r.write(describe(<-r.left))
			}
			return
		}
	}
}

func (r *record) write(a Allocation) {
	r.log.Info("relay ended", "user", a.User, "addr", a.Client, "relay", a.Relayed, "id", a.ID,
		"since", a.Since.UTC().Format(time.RFC3339), "sent", a.SentBytes, "received", a.ReceivedBytes)
	if n := r.lost.Swap(0); n > 0 {
		r.log.Warn("relays ended of which the log says nothing: it is too slow", "n", n)
	}
}
