// SPDX-License-Identifier: Apache-2.0

// Package stream serves TURN over connections: it cuts TCP and TLS streams into
// frames for a core.Core that a shard owns, sends its answers, and executes what
// RFC 6062 needs, relays of TCP and the connections of their peers.
//
// A Server takes connections from any number of listeners. Each has one goroutine
// that reads, and belongs to one shard, chosen by the address of its client. All
// frames of a read go to the shard in one call, and the reader goes on when they
// are consumed: a client that sends more than its shard can take is slowed down
// by TCP. What goes out is queued in memory and written in batches by a goroutine
// that lives while there is something to write. A queue that is full drops data,
// as UDP would, and ends a connection that does not even take its answers. Of a
// client without an allocation no more is read before it has taken them.
//
// A connection that waits for bytes holds no buffer. Together with its allocation
// in the core it costs less than 2 KB of heap and a stack of 4 KB over TCP, and
// about 5 KB and 8 KB over TLS (BenchmarkIdleConnection).
//
//	accept ─> reader ──Do──> core ─> Streams ─┬─ Send ─> queue ─> writer
//	                                          ├─ OpenRelay ─> accept ─> PeerConnected
//	                                          ├─ Connect ─> dial ─> Connected
//	                                          └─ Splice ─> reader copies from here on
package stream

import (
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// Config says what a Server serves. Shards is required.
type Config struct {
	// Shards is how many shards there are: 1 to 256, the number of core.Config.Shard
	// being an index. Attach names them.
	Shards int
	// Limits bounds what clients can take.
	Limits Limits
	// OpenTCP opens what an OpenRelay action with Transport TCP asks for, by
	// ListenRelay; addr is the relay's address as peers see it. It is called on
	// the shard's thread and must not block. nil: there are no relays of TCP.
	OpenTCP func(a core.Action) (l net.Listener, addr netip.AddrPort, err error)
	// ClosedTCP tells that the port of a relay is free again; addr is as OpenTCP
	// gave it. nil: nobody wants to know.
	ClosedTCP func(addr netip.AddrPort)
	// Inside returns where to connect to in order to reach peer, and Outside undoes
	// that for the address of a peer that has connected. They are called from
	// several goroutines. nil: addresses are the same on both sides.
	Inside, Outside func(peer netip.AddrPort) netip.AddrPort
	// Logger gets changes of the server's state; nil discards them.
	Logger *slog.Logger
}

// Limits bounds what clients can take; the zero value of each field means its default.
type Limits struct {
	// Connections and ConnectionsPerSource bound open connections of clients, in
	// total and by address (IPv6: /64). Beyond the total a new one takes the place
	// of the oldest without an allocation. Defaults 4096 and 128.
	Connections, ConnectionsPerSource int
	// Peers bounds connections of relays to peers, those that are being made
	// included. Default 1024.
	Peers int
	// QueuedBytes bounds what waits to be written to one client, and QueuedTotal
	// what waits for all of them: a quarter of it is for answers, of which each of
	// Connections has a share, so that it is 2 KiB for each of them or more. Beyond
	// the rest data is dropped, and who has more than its share of answers waiting
	// does not read, and is ended. Defaults 192 KiB, and 256 MiB or 16 KiB for each.
	QueuedBytes, QueuedTotal int
}

func (l Limits) withDefaults() Limits {
	set := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	set(&l.Connections, 4096)
	set(&l.ConnectionsPerSource, 128)
	set(&l.Peers, 1024)
	set(&l.QueuedBytes, 192<<10)
	set(&l.QueuedTotal, max(256<<20, l.Connections*8*minQueued))
	return l
}

// minQueued is the least of QueuedTotal for each connection: a quarter of it is a
// few answers.
const minQueued = 2 << 10

func (l Limits) validate() error {
	switch {
	case min(l.Connections, l.ConnectionsPerSource, l.Peers, l.QueuedTotal) < 0:
		return errors.New("turn streams: a field of Limits is negative: give it 0 for its default, or more")
	case l.QueuedTotal/minQueued < l.Connections:
		return fmt.Errorf("turn streams: Limits.QueuedTotal is %d: give it %d, %d for each of Limits.Connections, or more",
			l.QueuedTotal, l.Connections*minQueued, minQueued)
	case l.QueuedBytes < 2*core.MaxFrame:
		return fmt.Errorf("turn streams: Limits.QueuedBytes is %d: give it %d, two of the largest frames, or more", l.QueuedBytes, 2*core.MaxFrame)
	}
	return nil
}

// Shard is the thread that owns a core: a shard.Shard.
type Shard interface {
	// Do has the shard call f soon, and execute what out holds before it calls
	// another function. Calls of one goroutine keep their order. Do is false, and
	// f is not called, when the shard has ended. It may wait for room in a queue,
	// but not on the shard's own thread.
	Do(f func(now time.Time, c *core.Core, out *core.Output)) bool
}

// Patience with clients. One that works sends its first request at once and
// whole; nobody may hold a connection by dripping bytes.
const (
	helloTimeout = 10 * time.Second // without an allocation: to get one, or another one, TLS handshake included
	frameTimeout = 10 * time.Second // from the first byte of a frame to its last
	writeTimeout = 10 * time.Second // for a client to take a piece of what is written
	askInterval  = 30 * time.Second // after which a silent client is looked up: has it still an allocation?
)

// Server serves TURN over streams. It is safe for concurrent use.
type Server struct {
	cfg     Config
	seed    maphash.Seed
	streams []*Streams
	buffers buffers
	places  places
	stats   counters
	log     *slog.Logger

	lastConn atomic.Uint64 // Flow.Conn of the newest connection
	queued   atomic.Int64  // bytes that wait for all clients
	told     atomic.Int64  // when the log was told of a client that guesses, Unix nanoseconds
	done     chan struct{} // closed by Close
	running  sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	closed bool
	open   map[ender]struct{}
}

// ender is what Close ends: listeners, connections, relays. end does not block
// and may be called again.
type ender interface{ end() }

// New returns a server that serves nothing yet: For gives what its shards need,
// Attach names them, Serve takes connections.
func New(cfg Config) (*Server, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Shards < 1 || cfg.Shards > 256 {
		return nil, fmt.Errorf("turn streams: Shards is %d: give it 1 to 256", cfg.Shards)
	}
	if err := cfg.Limits.validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	same := func(a netip.AddrPort) netip.AddrPort { return a }
	if cfg.Inside == nil {
		cfg.Inside = same
	}
	if cfg.Outside == nil {
		cfg.Outside = same
	}
	s := &Server{
		cfg: cfg, seed: maphash.MakeSeed(), log: cfg.Logger,
		done: make(chan struct{}), open: make(map[ender]struct{}),
		places: places{
			total: cfg.Limits.Connections, perSource: cfg.Limits.ConnectionsPerSource, bySource: make(map[netip.Addr]int),
		},
	}
	for i := range cfg.Shards {
		s.streams = append(s.streams, newStreams(s, i))
	}
	return s, nil
}

// For returns what executes the actions of a shard, by its number: its shard.Streams.
func (s *Server) For(shard int) *Streams { return s.streams[shard] }

// Attach names the shards, in the order of their numbers. It must come before
// Serve, and once.
func (s *Server) Attach(shards ...Shard) error {
	if len(shards) != len(s.streams) {
		return fmt.Errorf("turn streams: %d shards are attached, and Shards is %d", len(shards), len(s.streams))
	}
	for i, v := range shards {
		s.streams[i].shard = v
	}
	return nil
}

// homeOf chooses the shard of a client by its address, without the port: data
// connections of RFC 6062 meet their control connection there.
func (s *Server) homeOf(client netip.Addr) *Streams {
	return s.streams[maphash.Comparable(s.seed, client)%uint64(len(s.streams))]
}

// track counts e among what Close ends, until untrack. False: Close has begun.
func (s *Server) track(e ender) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.open[e] = struct{}{}
	}
	return !s.closed
}

func (s *Server) untrack(e ender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, e)
}

// start runs f in a goroutine that Close waits for. False: Close has begun.
func (s *Server) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.running.Go(f)
	}
	return !s.closed
}

// Close ends all connections, closes all listeners and relays, and waits for
// what ran. It must not be called on the thread of a shard; shards may be closed
// before or after. It may be called again.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	open := make([]ender, 0, len(s.open))
	for e := range s.open {
		open = append(open, e)
	}
	s.mu.Unlock()
	for _, e := range open {
		e.end()
	}
	s.running.Wait()
	return nil
}

// pause waits after the n-th failure in a row; false means that the server closes.
func (s *Server) pause(n int) bool {
	timer := time.NewTimer(min(5*time.Millisecond<<min(n, 10), maxPause))
	defer timer.Stop()
	select {
	case <-s.done:
		return false
	case <-timer.C:
		return true
	}
}

// maxPause is the longest wait after an error that may pass, such as a full file table.
const maxPause = time.Second
