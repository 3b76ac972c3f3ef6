// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// fakeShard owns a real core as a shard does, under a lock instead of on a thread:
// it calls one function after the other and executes what each has put into out.
// Relays of UDP are in memory.
type fakeShard struct {
	streams *Streams

	mu      sync.Mutex // guards the fields below
	ahead   time.Duration
	stalled bool // functions wait in the queue
	queue   []func(now time.Time, c *core.Core, out *core.Output)
	busy    bool
	ended   bool
	timer   *time.Timer
	port    uint16

	// Of whoever is busy.
	core  *core.Core
	out   core.Output
	muted bool // what goes to peers is not kept

	sent sentLog
}

// sentLog is what went to peers.
type sentLog struct {
	mu   sync.Mutex
	data [][]byte
}

// people are the accounts: passwords by username.
type people map[string]string

func (p people) Authenticate(_ time.Time, username []byte) (core.Account, bool) {
	name := string(username)
	return account(name, p[name]), true
}

func account(name, password string) core.Account {
	a := core.Account{User: name, Keys: []core.Key{core.NewKey(name, "meshgate", password)}}
	if name == "slow" {
		a.BytesPerSecond = 1 << 20
	}
	return a
}

// newShards attaches n shards to s.
func newShards(t testing.TB, s *Server, n int, change func(*core.Config)) []*fakeShard {
	t.Helper()
	shards, attach := make([]*fakeShard, n), make([]Shard, n)
	for i := range shards {
		at := netip.MustParseAddrPort("127.0.0.1:3478")
		cfg := core.Config{
			Realm: "meshgate", Shard: uint8(i), NonceKey: bytes.Repeat([]byte{7}, 32),
			Listeners:     []core.Listener{{Addr: at, Stream: true}},
			Offers:        core.Offers{IPv4: true, TCP: true},
			Authenticator: people{"alice": "wonder", "bob": "builder", "slow": "x"},
			Permit:        func(string, core.Peer) bool { return true },
		}
		if change != nil {
			change(&cfg)
		}
		c, err := core.New(time.Now(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		shards[i] = &fakeShard{streams: s.For(i), core: c, port: 50000}
		attach[i] = shards[i]
	}
	if err := s.Attach(attach...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range shards {
			f.end()
		}
	})
	return shards
}

// Do is what a shard's Do is. Whoever finds nobody at work does all the work.
func (f *fakeShard) Do(fn func(now time.Time, c *core.Core, out *core.Output)) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false
	}
	f.queue = append(f.queue, fn)
	if !f.busy && !f.stalled {
		f.work()
	}
	return true
}

func (f *fakeShard) work() {
	f.busy = true
	for len(f.queue) > 0 && !f.stalled {
		fn := f.queue[0]
		f.queue = f.queue[1:]
		now := time.Now().Add(f.ahead)
		f.mu.Unlock()
		fn(now, f.core, &f.out)
		f.core.Expire(now, &f.out)
		if len(f.out.Actions) > 0 && f.out.Actions[0].Kind == core.SendPeer && !f.muted {
			f.spoil()
		}
		f.execute(now)
		f.mu.Lock()
	}
	f.busy = false
	next, ok := f.core.Next()
	if f.timer != nil {
		f.timer.Stop()
	}
	if ok && !f.ended {
		f.timer = time.AfterFunc(time.Until(next.Add(-f.ahead)), func() {
			f.Do(func(time.Time, *core.Core, *core.Output) {})
		})
	}
}

func (f *fakeShard) execute(now time.Time) {
	for i := 0; i < len(f.out.Actions); i++ { // answers append more
		switch a := f.out.Actions[i]; a.Kind {
		case core.SendClient:
			f.streams.Send(a.Flow, a.Data)
		case core.SendPeer:
			if f.muted {
				break
			}
			f.sent.mu.Lock()
			f.sent.data = append(f.sent.data, bytes.Clone(a.Data))
			f.sent.mu.Unlock()
		case core.OpenRelay:
			if a.Transport == core.TCP {
				f.streams.OpenRelay(a)
				break
			}
			f.port++
			f.core.RelayOpened(now, a.Relay, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), f.port), &f.out)
		case core.CloseRelay:
			f.streams.CloseRelay(a.Relay)
		case core.Connect:
			f.streams.Connect(a)
		case core.Disconnect:
			f.streams.Disconnect(a.Connection)
		case core.Splice:
			f.streams.Splice(a.Flow, a.Connection)
		}
	}
	f.out.Reset()
}

// stall has the shard's thread stop, or go on.
func (f *fakeShard) stall(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stalled = on; !on && !f.busy {
		f.work()
	}
}

// waiting is how many functions wait.
func (f *fakeShard) waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.queue)
}

// spoil overwrites what pools hold: nobody may look at that any more, and what is
// in use is not there.
func (f *fakeShard) spoil() {
	for z := range numSizes {
		var all []*chunk
		for range 2 {
			c := f.streams.server.buffers.get(z)
			for i := range c.b {
				c.b[i] = 0xee
			}
			all = append(all, c)
		}
		for _, c := range all {
			f.streams.server.buffers.put(c)
		}
	}
}

// mute has the shard keep no more of what goes to peers.
func (f *fakeShard) mute() {
	f.Do(func(time.Time, *core.Core, *core.Output) { f.muted = true })
}

// advance moves the shard's clock.
func (f *fakeShard) advance(d time.Duration) {
	f.mu.Lock()
	f.ahead += d
	f.mu.Unlock()
	f.Do(func(time.Time, *core.Core, *core.Output) {})
}

// end is a shard's Close.
func (f *fakeShard) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended, f.queue = true, nil
	if f.timer != nil {
		f.timer.Stop()
	}
}

// see calls fn where the core may be looked at.
func (f *fakeShard) see(t testing.TB, fn func(c *core.Core, out *core.Output)) {
	t.Helper()
	done := make(chan struct{})
	if !f.Do(func(_ time.Time, c *core.Core, out *core.Output) { defer close(done); fn(c, out) }) {
		t.Fatal("the shard has ended")
	}
	<-done
}

// allocations is how many there are.
func (f *fakeShard) allocations(t testing.TB) (n int) {
	t.Helper()
	f.see(t, func(c *core.Core, _ *core.Output) { n = c.Stats().Allocations })
	return n
}

// flow returns the flow of a connection whose frames the core has seen, by its
// client; nil takes the only one.
func (f *fakeShard) flow(t testing.TB, client net.Addr) (flow core.Flow) {
	t.Helper()
	n := 0
	f.see(t, func(*core.Core, *core.Output) {
		for _, v := range f.streams.conns {
			if client == nil || v.flow.Client.String() == client.String() {
				flow = v.flow
				n++
			}
		}
	})
	if n != 1 {
		t.Fatalf("%d connections of %v", n, client)
	}
	return flow
}

// bring hands a message to the core that the reader of its stream knows nothing of.
func (f *fakeShard) bring(flow core.Flow, m *stun.Message) {
	f.Do(func(now time.Time, c *core.Core, out *core.Output) { c.FromClient(now, flow, m.Raw, out) })
}

// fromPeer hands a datagram to the only relay.
func (f *fakeShard) fromPeer(t testing.TB, peer netip.AddrPort, data []byte) {
	t.Helper()
	f.see(t, func(c *core.Core, out *core.Output) {
		for i := range c.Allocations() {
			id, ok := c.RelayAt(i.Relayed[0])
			if !ok {
				t.Errorf("no relay at %v", i.Relayed[0])
			}
			c.FromPeer(time.Now(), id, peer, data, 0, out)
			return
		}
		t.Error("no allocation")
	})
}

// toPeers returns what went to peers.
func (f *fakeShard) toPeers() [][]byte {
	f.sent.mu.Lock()
	defer f.sent.mu.Unlock()
	return slices.Clone(f.sent.data)
}
