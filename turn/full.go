// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"log/slog"
	"sync"
	"time"
)

// fullEach is how often the log is told that there is no room for more relays.
const fullEach = time.Minute

// fullness tells the log of clients that are refused because all relays are in
// use. Without a word of it nodes are carried by gateways, and nobody knows why.
// It is safe for concurrent use.
type fullness struct {
	log    *slog.Logger
	relays *relays

	mu      sync.Mutex // guards the fields below
	refused int        // since the log was told
	told    time.Time
}

// refuse counts a client that got no relay now.
func (f *fullness) refuse(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused++
	if !f.told.IsZero() && now.Sub(f.told) < fullEach {
		return
	}
	in, limit := f.relays.use()
	text := "no relay port could be opened, and a client is refused: see what else uses these ports, or widen --turn.relay-ports"
	if in >= limit {
		text = "all relays are in use, and a client is refused: widen --turn.relay-ports, each node takes one port and may take more"
	}
	f.log.Warn(text, "used", in, "limit", limit, "n", f.refused)
	f.refused, f.told = 0, now
}

// use is how many relays there are, and how many there may be.
func (rs *relays) use() (in, limit int) {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return rs.count, rs.total
}
