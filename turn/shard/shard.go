// SPDX-License-Identifier: Apache-2.0

// Package shard is one thread that owns a core.Core, a share of a server's UDP
// listeners and the sockets of its relays, and moves packets between them in
// batches. A server has one for each CPU.
//
// On Linux a shard is an OS thread with an epoll of its own, which receives and
// sends many datagrams with a system call, and segments of one flow as one large
// packet (UDP GSO and GRO) where the kernel can. While packets come it takes one of
// GOMAXPROCS, which it lends to other goroutines every 2 ms. Elsewhere, and with
// Config.Portable, it is a goroutine for each socket and a lock around the core.
// DESIGN.md beside this file tells how both work.
package shard

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/meshgate/meshgate/turn/core"
)

// Config says what a Shard owns and whom it asks. Core and Relays are required.
//
// All hooks, those of Core included, are called on the shard's thread, or with
// its lock held: they must not block, and must not call Close or Stats of the
// shard. They may call Do.
type Config struct {
	// Core is the configuration of the shard's core; Core.Shard is the number of
	// the shard. Core.Offload is set by the shard, and Core.Offers.DontFragment
	// taken back where the system cannot do it.
	Core core.Config
	// Listeners are the shard's sockets by their index in Core.Listeners. Those of
	// streams have none. The shard owns and closes them, also when New fails.
	Listeners map[uint16]*Socket
	// Relays opens the sockets of relays.
	Relays Relays
	// Streams executes what the core asks for on streams. nil: there are none.
	Streams Streams
	// Offload is told what a path past the core may serve. nil: there is none.
	Offload Offload
	// Other returns the shard with a number, to which go datagrams that ask for
	// what it has (core.ShardOf), and what their clients send from then on. nil, as
	// a result too: there is no such shard.
	Other func(number uint8) *Shard
	// Portable uses one goroutine for each socket also where there is more to use.
	Portable bool
	// Unsent is told of each datagram that the system did not take for sending, and
	// its error. nil: nobody wants to know.
	Unsent func(why Loss, err error)
	// Logger gets changes of the shard's state; nil discards them.
	Logger *slog.Logger

	carriedFor time.Duration // of tests; 0: carriedFor
}

// Traffic counts datagrams, without their headers.
type Traffic struct{ Packets, Bytes uint64 }

func (t *Traffic) add(packets, bytes uint64) {
	t.Packets += packets
	t.Bytes += bytes
}

// take is the reverse of add.
func (t *Traffic) take(packets, bytes uint64) {
	t.Packets -= packets
	t.Bytes -= bytes
}

// Stats are counters since New.
type Stats struct {
	// ToPeers and ToClients is what was relayed, by the kernel (Offload) too, without
	// what could not be sent.
	ToPeers, ToClients Traffic
	// Received and Sent count datagrams, segments one by one; Receives and Sends
	// the system calls that moved some.
	Received, Sent, Receives, Sends uint64
	// Merged counts datagrams that came in a packet of several (GRO), Segmented
	// those that left in one (GSO).
	Merged, Segmented uint64
	// Handed counts datagrams between two relays of the shard that needed no socket.
	Handed uint64
	// Overflowed counts datagrams that the kernel dropped because the queue of a
	// socket was full, Unsent those that it did not take for sending, Truncated
	// those that were larger than a datagram can be, Uncarried those for another
	// shard (Config.Other) that had no room for them.
	Overflowed, Unsent, Truncated, Uncarried uint64
	// Lost is Unsent by its reason.
	Lost [NumLosses]uint64
	// Carried is how many clients have their allocation at another shard now.
	Carried int
	// RelaysFailed counts relays that could not be opened, or that broke.
	RelaysFailed uint64
	// Turns counts how often the thread woke or went on.
	Turns uint64
	// Relays are open now.
	Relays int
}

// Shard is a running shard. Its methods are safe for concurrent use.
type Shard struct {
	calls  calls
	engine engine
	done   chan struct{} // closed when the engine has ended

	mu   sync.Mutex
	last Stats // once done is closed
}

// engine runs the books of a shard. It ends when calls are closed and none is left.
type engine interface {
	// wake makes it look at the calls soon. It is called under their lock.
	wake()
	// here reports whether the caller runs on the engine's thread.
	here() bool
}

// New starts a shard, which runs until Close.
func New(cfg Config) (*Shard, error) {
	s := &Shard{done: make(chan struct{})}
	s.calls.init()
	b, err := newBooks(s, cfg)
	if err == nil {
		err = s.start(b)
	}
	if err != nil {
		for _, l := range cfg.Listeners {
			l.close()
		}
		return nil, fmt.Errorf("turn shard %d: %w", cfg.Core.Shard, err)
	}
	return s, nil
}

func (cfg *Config) validate() error {
	if cfg.Relays == nil {
		return invalid("Relays", "nil: somebody must open the sockets of relays")
	}
	for i, l := range cfg.Core.Listeners {
		if _, ok := cfg.Listeners[uint16(i)]; ok == l.Stream {
			return invalid(fmt.Sprintf("Listeners[%d]", i), "give each datagram listener of the core a socket, and streams none")
		}
	}
	for i, socket := range cfg.Listeners {
		if int(i) >= len(cfg.Core.Listeners) || socket == nil {
			return invalid(fmt.Sprintf("Listeners[%d]", i), "nil, or no listener of the core: give indexes of Core.Listeners")
		}
	}
	return nil
}

// invalid says what is wrong with a field of Config, and what to do.
func invalid(field, what string) error { return fmt.Errorf("%s: %s", field, what) }

// Do has the shard call f soon and then execute what out holds; now is the time
// of the call. Calls of one goroutine keep their order, and before the next of
// them what out held is done: the data of its actions is no longer needed. Do
// waits while very many calls are waiting, but never on the shard's own thread.
// It is false, and f is not called, after Close.
func (s *Shard) Do(f func(now time.Time, c *core.Core, out *core.Output)) bool {
	return s.calls.push(call{run: f}, s.engine, true)
}

// offer is Do for callers that must not wait: it is false also without room.
func (s *Shard) offer(f func(now time.Time, c *core.Core, out *core.Output)) bool {
	return s.calls.push(call{run: f}, s.engine, false)
}

// Close ends the shard and closes its sockets. What was handed to Do before is
// called before. It waits for all that, and may be called again.
func (s *Shard) Close() error {
	s.calls.close(s.engine)
	<-s.done
	return nil
}

// Stats returns the counters.
func (s *Shard) Stats() Stats {
	got := make(chan Stats, 1)
	if s.calls.push(call{stats: got}, s.engine, true) {
		return <-got
	}
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// ended is called by the engine as the last thing that it does.
func (s *Shard) ended(last Stats) {
	s.mu.Lock()
	s.last = last
	s.mu.Unlock()
	close(s.done)
}
