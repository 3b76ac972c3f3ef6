// SPDX-License-Identifier: Apache-2.0

package stream

import "sync/atomic"

// Reason is why a connection of a client was ended by the server, or something
// for it was dropped.
type Reason uint8

// The reasons.
const (
	Crowded   Reason = iota // refused: too many connections, in total or of its source
	Displaced               // made room for another one: it had no allocation
	Garbage                 // sent neither STUN nor ChannelData
	Oversize                // sent a large frame without an allocation
	Silent                  // sent no request in time, or too little of one
	Stuck                   // did not take its answers
	Lagging                 // a frame of data was dropped: the client reads too slowly
	Forged                  // came from a proxy without a PROXY header
	Guessing                // tried too many credentials
	NumReasons
)

// String is the reason as a label.
func (r Reason) String() string {
	return [...]string{"crowded", "displaced", "garbage", "oversize", "silent", "stuck", "lagging", "forged", "guessing"}[r]
}

// Stats are counters since New, and what is open now.
type Stats struct {
	// Accepted counts connections of clients that were served.
	Accepted uint64
	// Ended counts connections that the server ended, and, for Lagging, frames.
	Ended [NumReasons]uint64
	// Connections of clients, of peers, and relays of TCP are open now.
	Connections, Peers, Relays int
	// Queued is how many bytes wait for all clients.
	Queued int
}

// counters are Stats as they are counted.
type counters struct {
	accepted      atomic.Uint64
	ended         [NumReasons]atomic.Uint64
	peers, relays atomic.Int64
}

func (c *counters) count(r Reason) { c.ended[r].Add(1) }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	v := Stats{
		Accepted: s.stats.accepted.Load(), Connections: s.places.used(), Queued: int(s.queued.Load()),
		Peers: int(s.stats.peers.Load()), Relays: int(s.stats.relays.Load()),
	}
	for i := range v.Ended {
		v.Ended[i] = s.stats.ended[i].Load()
	}
	return v
}
