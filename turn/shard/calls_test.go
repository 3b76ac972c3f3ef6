// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// Calls of many goroutines are run one at a time, those of each in its order,
// while packets flow; after Close there are none.
func TestDo_KeepsTheOrderOfEachGoroutine(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		const callers, each = 8, 3000
		var last [callers]int
		var all sync.WaitGroup
		for i := range callers {
			all.Go(func() {
				for n := 1; n <= each; n++ {
					w.Do(func(time.Time, *core.Core, *core.Output) {
						if last[i] != n-1 { // the race detector watches, too
							t.Errorf("caller %d: call %d after %d", i, n, last[i])
						}
						last[i] = n
					})
				}
			})
		}
		all.Wait()
		w.Close()
		for i, n := range last {
			if n != each {
				t.Errorf("caller %d: %d of %d calls were run", i, n, each)
			}
		}
		if w.Do(func(time.Time, *core.Core, *core.Output) { t.Error("a call after Close") }) {
			t.Error("Do says that it would call after Close")
		}
		w.Close()
	})
}

// Who calls from the shard's own thread never waits for it.
func TestDo_NeverWaitsForItself(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		done := make(chan struct{})
		w.Do(func(time.Time, *core.Core, *core.Output) {
			for range 3 * maxCalls {
				w.Do(func(time.Time, *core.Core, *core.Output) {})
			}
			w.Do(func(time.Time, *core.Core, *core.Output) { close(done) })
		})
		await(t, done, "the last call")
	})
}

// Others wait when there are too many, those that must not are refused, and Close
// lets the ones that wait go.
func TestDo_IsBounded(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		held, running, refused := make(chan struct{}), make(chan struct{}), make(chan bool)
		w.Do(func(time.Time, *core.Core, *core.Output) { close(running); <-held })
		await(t, running, "the call that holds the thread")
		for w.offer(func(time.Time, *core.Core, *core.Output) {}) {
		}
		if n := len(w.calls.waiting); n != maxCalls {
			t.Errorf("%d calls wait, want %d", n, maxCalls)
		}
		go func() { refused <- w.Do(func(time.Time, *core.Core, *core.Output) {}) }()
		go w.Close()
		if <-refused {
			t.Error("a call that waited for room was accepted after Close")
		}
		close(held)
		await(t, w.done, "the end")
	})
}

// Who waits for room goes on as soon as there is some.
func TestDo_GoesOnWhenThereIsRoom(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		waited := make(chan struct{})
		w.held(func() {
			for w.offer(func(time.Time, *core.Core, *core.Output) {}) {
			}
			entered := make(chan struct{})
			go func() {
				close(entered)
				w.Do(func(time.Time, *core.Core, *core.Output) { close(waited) })
			}()
			<-entered
		})
		await(t, waited, "the call that found no room")
	})
}

func await(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: not within %s", what, patience)
	}
}

// A shard with allocations and nothing to do does nothing, until their time is over.
func TestShard_RestsUntilSomethingEnds(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		t.Parallel() // it waits
		w := newWorld(t, engine, func(cfg *Config) { cfg.Core.Limits.DefaultLifetime = time.Second })
		w.client(loopback4, "ann").allocate()
		before := w.Stats().Turns
		eventually(t, "the relay is given back", func() bool { return w.relays.count() == 0 })
		if n := w.Stats().Turns - before; n > 10 {
			t.Errorf("%d turns in a second of rest", n)
		}
	})
}

// Datagrams of one batch from one relay go to their peers, each its own way.
func TestShard_SeveralPeersInOneBatch(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		c := w.client(loopback4, "ann")
		relay := c.allocate()
		c.bind(0x4002, relay)
		peers := make([]*net.UDPConn, 2)
		for i := range peers {
			var at netip.AddrPort
			peers[i], at = socket(t, loopback4)
			c.bind(0x4000+uint16(i), at)
		}
		flow := core.Flow{Client: c.LocalAddr().(*net.UDPAddr).AddrPort()}
		w.Do(func(now time.Time, c *core.Core, out *core.Output) {
			for i := range 9 {
				c.FromClient(now, flow, channelData(0x4000+uint16(i%3), []byte{byte(i)}), out)
			}
		})
		for i := range 9 {
			if i%3 < 2 {
				expect(t, peers[i%3], []byte{byte(i)})
			} else if got := c.packet(); !bytes.Equal(got, channelData(0x4002, []byte{byte(i)})) {
				t.Errorf("from itself the client got %q", got)
			}
		}
	})
}

// What was sent before a relay was closed leaves, although both are of one batch.
func TestShard_SendsWhatCameBeforeTheEnd(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		c := w.client(loopback4, "ann")
		c.allocate()
		peer, at := socket(t, loopback4)
		c.bind(0x4000, at)
		flow := core.Flow{Client: c.LocalAddr().(*net.UDPAddr).AddrPort()}
		w.Do(func(now time.Time, c *core.Core, out *core.Output) {
			for range 3 {
				c.FromClient(now, flow, channelData(0x4000, []byte("last")), out)
			}
			c.Evict(func(core.Info) bool { return true }, out)
		})
		for range 3 {
			expect(t, peer, []byte("last"))
		}
		if n := w.Stats().Relays; n != 0 {
			t.Errorf("%d relays are left", n)
		}
	})
}

// Relays that cannot be opened are 508, are counted, and cost nothing.
func TestShard_RelayThatCannotBeOpenedIs508(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		c := w.client(loopback4, "ann")
		for name, sabotage := range map[string]func(){
			"refused": func() { w.relays.refuse = unix.EMFILE },
			"broken":  func() { w.relays.sabot = func(o Opened) { o.Socket.close() } },
		} {
			before := w.Stats().RelaysFailed
			w.relays.mu.Lock()
			sabotage()
			w.relays.mu.Unlock()
			if got := code(c.request(stun.MethodAllocate, transportUDP)); got != 508 {
				t.Errorf("%s: code %d, want 508", name, got)
			}
			if got := code(c.request(stun.MethodAllocate, transportUDP, attr(stun.AttrEvenPort, 0x80))); got != 508 {
				t.Errorf("%s, two: code %d, want 508", name, got)
			}
			if n := w.Stats().RelaysFailed - before; n != 2 || w.relays.count() != 0 {
				t.Errorf("%s: %d have failed, %d are open", name, n, w.relays.count())
			}
			w.relays.mu.Lock()
			w.relays.refuse, w.relays.sabot = nil, nil
			w.relays.mu.Unlock()
		}
		c.allocate()
	})
}

// New gives everything back when it fails.
func TestNew_ClosesListenersWhenItFails(t *testing.T) {
	before := openFiles(t)
	for name, change := range map[string]func(*Config){
		"Realm":        func(c *Config) { c.Core.Realm = "" },
		"Relays":       func(c *Config) { c.Relays = nil },
		"Listeners[1]": func(c *Config) { c.Core.Listeners[1].Stream = true },
		"Listeners[7]": func(c *Config) { c.Listeners[7] = nil },
		"epoll add":    func(c *Config) { c.Listeners[1].close() },
	} {
		s, err := Listen(netip.AddrPortFrom(loopback4, 0), false)
		if err != nil {
			t.Fatal(err)
		}
		other, err := Listen(netip.AddrPortFrom(loopback4, 0), false)
		if err != nil {
			t.Fatal(err)
		}
		cfg := Config{
			Core: core.Config{
				Realm: "meshgate", Offers: core.Offers{IPv4: true}, Authenticator: users{},
				Listeners: []core.Listener{{Addr: s.Addr()}, {Addr: other.Addr()}},
			},
			Listeners: map[uint16]*Socket{0: s, 1: other}, Relays: &testRelays{},
		}
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// Close ends a shard under load, from several goroutines, and leaves no file open.
func TestClose_LeavesNothing(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		socket(t, loopback4) // the poller of the runtime has its own files from now on
		before := openFiles(t)
		for range 3 {
			w := newWorld(t, engine)
			c := w.client(loopback4, "ann")
			peer, at := socket(t, loopback4)
			relay := c.allocate()
			c.bind(0x4000, at)
			stop := make(chan struct{})
			var load sync.WaitGroup
			for _, send := range []func(){
				func() { c.WriteToUDPAddrPort(channelData(0x4000, make([]byte, 100)), c.server) },
				func() { peer.WriteToUDPAddrPort(make([]byte, 100), relay) },
				func() { w.Do(func(time.Time, *core.Core, *core.Output) {}) },
				func() { w.Stats() },
			} {
				load.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							send()
						}
					}
				})
			}
			c.packet()
			var closing sync.WaitGroup
			closing.Go(func() { w.Close() })
			closing.Go(func() { w.Close() })
			closing.Wait()
			close(stop)
			load.Wait()
			if w.Stats().ToPeers.Packets == 0 && w.Stats().ToClients.Packets == 0 {
				t.Error("nothing was relayed before the end")
			}
			c.Close()
			peer.Close()
		}
		if after := openFiles(t); after != before {
			t.Errorf("%d files are open, %d were", after, before)
		}
	})
}

func openFiles(t testing.TB) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func TestSocket_Close(t *testing.T) {
	s, err := Listen(netip.AddrPortFrom(loopback4, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(s.Addr(), false); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second socket at the address: %v", err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
