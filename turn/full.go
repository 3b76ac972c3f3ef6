// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"log/slog"
	"sync"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// fullEach is how often the log is told that there is no room for more relays.
const fullEach = time.Minute

// fullness tells the log of clients that are refused because all there is of something
// is in use. Without a word of it nodes are carried by gateways, and nobody knows why.
// It is safe for concurrent use.
type fullness struct {
	log *slog.Logger
	use func() (in, limit int)

	mu      sync.Mutex // guards the fields below
	refused int        // since the log was told
	told    time.Time
}

// noPort is why there is no relay for a client although there is room for one.
const noPort = "no relay port could be opened, and a client is refused: see what else uses these ports, or widen --turn.relay-ports"

// noRoom is why there is no more of something, and what to do about it.
func noRoom(what core.Resource) string {
	return [core.NumResources]string{
		core.Relays:      "all relays are in use, and a client is refused: widen --turn.relay-ports or raise --turn.relays, each node takes one port and may take more",
		core.Permissions: "all permissions are in use, and a client is refused: see who holds them with meshgate turn list, or raise --turn.permissions",
		core.Channels:    "all channels are in use, and a client is refused: see who holds them with meshgate turn list, or raise --turn.channels",
		core.Connections: "relays of TCP have all connections to peers that they may have, and a client is refused: see who holds them with meshgate turn list",
	}[what]
}

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
