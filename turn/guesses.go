// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/turn/core"
	"github.com/meshgate/meshgate/turn/limiter"
)

// How many credentials of a network are refused until no more are tried: so many a
// second, after a burst. One that works is tried once by each device.
const (
	guessesPerSecond = 1
	guessBurst       = 64
)

// guesses bounds how many passwords a network tries over all transports, connections
// and threads, and tells the log of who does. It is safe for concurrent use.
type guesses struct {
	*limiter.Guesses
	log  *slog.Logger
	told atomic.Int64 // when the log was, Unix nanoseconds
}

var _ core.Guesses = (*guesses)(nil)

func newGuesses(log *slog.Logger) *guesses {
	return &guesses{Guesses: limiter.NewGuesses(guessesPerSecond, guessBurst), log: log}
}

// Refused implements core.Guesses.
func (g *guesses) Refused(from netip.Addr, proven bool) {
	g.Guesses.Refused(from, proven)
	if !g.Spent(from, proven) {
		return
	}
	now := time.Now().UnixNano()
	if last := g.told.Load(); now-last >= int64(time.Minute) && g.told.CompareAndSwap(last, now) {
		g.log.Warn("a network tries one credential after the other; static users of it have to wait", "addr", from, "proven", proven)
	}
}
