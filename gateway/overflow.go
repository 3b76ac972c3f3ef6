// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"log/slog"
	"sync"
	"time"
)

// floodEvery is how often the log tells of a flood that goes on.
const floodEvery = time.Minute

// overflow tells the log of connections that are closed because there are too many:
// at once when that begins, then every floodEvery how many they were since, until
// a time without any. It is safe for concurrent use.
type overflow struct {
	log *slog.Logger
	msg string

	mu    sync.Mutex // guards the fields below
	n     int        // connections that were not told yet
	limit string     // what the last one met
	from  string     // and the network that it came from
	tick  *time.Timer
	ended bool
}

// closed counts a connection from a network that was closed because of a limit,
// one of few.
func (f *overflow) closed(limit, from string) {
	f.mu.Lock()
	if f.ended {
		f.mu.Unlock()
		return
	}
	f.n++
	f.limit, f.from = limit, from
	if f.tick != nil {
		f.mu.Unlock()
		return
	}
	f.tick = time.AfterFunc(floodEvery, f.again)
	tell := f.takeLocked()
	f.mu.Unlock()
	tell()
}

// again tells of what came since the last time.
func (f *overflow) again() {
	f.mu.Lock()
	if f.n == 0 || f.ended {
		f.tick = nil
		f.mu.Unlock()
		return
	}
	f.tick.Reset(floodEvery)
	tell := f.takeLocked()
	f.mu.Unlock()
	tell()
}

// takeLocked returns what writes the record, without the lock, and counts anew.
func (f *overflow) takeLocked() (tell func()) {
	n, limit, from := f.n, f.limit, f.from
	f.n = 0
	return func() { f.log.Warn(f.msg, "limit", limit, "addr", from, "n", n) }
}

// end tells nothing any more.
func (f *overflow) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	if f.tick != nil {
		f.tick.Stop()
	}
}
