// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"log/slog"
	"sync"
	"time"
)

// fullEach is how often the log is told that there is no room for more relays.
const fullEach = time.Minute

// fullness tells the log of clients that are refused because all relays, or all
// connections to peers, are in use. Without a word of it nodes are carried by gateways, and nobody knows why.
// It is safe for concurrent use.
type fullness struct {
	log *slog.Logger
	use func() (in, limit int)

	mu      sync.Mutex // guards the fields below
	refused int        // since the log was told
	told    time.Time
}

// Why there is no relay for a client, and what to do about it.
const (
	noRoom = "all relays are in use, and a client is refused: widen --turn.relay-ports, each node takes one port and may take more"
	noPort = "no relay port could be opened, and a client is refused: see what else uses these ports, or widen --turn.relay-ports"
)

// noConnection is why a relay of TCP does not connect.
const noConnection = "relays of TCP have all connections to peers that they may have, and a client is refused: see who holds them with meshgate turn list"

// refuse counts a client that got none now.
func (f *fullness) refuse(now time.Time, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused++
	if !f.told.IsZero() && now.Sub(f.told) < fullEach {
		return
	}
	in, limit := f.use()
	f.log.Warn(why, "used", in, "limit", limit, "n", f.refused)
	f.refused, f.told = 0, now
}
