// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/turn/shard"
)

// unsentEach is how often the log is told of datagrams that were not sent.
const unsentEach = time.Minute

// unsent tells the log of datagrams that the system did not take for sending. It is
// safe for concurrent use, and quick: threads that carry packets call it.
type unsent struct {
	log  *slog.Logger
	n    atomic.Int64 // since the log was told
	told atomic.Int64 // when it was, Unix nanoseconds
}

// tell counts one. Those that had to stay whole are no trouble of the host's: their
// clients find out how large they may be.
func (u *unsent) tell(why shard.Loss, err error) {
	if why == shard.TooLarge {
		return
	}
	n, now := u.n.Add(1), time.Now().UnixNano()
	if last := u.told.Load(); now-last >= int64(unsentEach) && u.told.CompareAndSwap(last, now) {
		u.n.Add(-n)
		u.log.Warn("the host does not send packets that turn relays or answers with", "err", err, "reason", why.String(), "n", n)
	}
}
