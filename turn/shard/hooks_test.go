// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// recorder keeps what hooks were told.
type recorder struct {
	mu     sync.Mutex
	heard  []string
	counts core.Usage // of the next Counters
}

func (r *recorder) hear(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = append(r.heard, fmt.Sprintf(format, args...))
}

func (r *recorder) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.heard)
}

// recordStreams and recordOffload are the hooks.
type recordStreams struct{ *recorder }

func (r recordStreams) Send(f core.Flow, data []byte) bool {
	r.hear("send %d: %d bytes", f.Conn, len(data))
	return true
}
func (r recordStreams) OpenRelay(a core.Action) { r.hear("open for %s", a.User) }
func (r recordStreams) CloseRelay(core.RelayID) { r.hear("close") }
func (r recordStreams) Connect(a core.Action)   { r.hear("connect %v", a.Peer) }
func (r recordStreams) Disconnect(id core.ConnectionID) {
	r.hear("disconnect %d", id)
}
func (r recordStreams) Splice(f core.Flow, id core.ConnectionID) {
	r.hear("splice %d to %d", f.Conn, id)
}

type recordOffload struct{ *recorder }

func (r recordOffload) Changed(f core.Flow, bindings iter.Seq[core.Binding]) {
	for b := range bindings {
		r.hear("serve %x to %v", b.Channel, b.Peer)
		return
	}
	r.hear("serve nothing")
}

func (r recordOffload) Counters(core.Flow) core.Usage {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.counts
	r.counts = core.Usage{}
	return u
}

// What is about streams goes to those who have them, in its order.
func TestShard_HandsActionsOfStreamsOver(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		r := &recorder{}
		w := newWorld(t, engine, func(cfg *Config) {
			cfg.Core.Listeners = append(cfg.Core.Listeners, core.Listener{Addr: cfg.Core.Listeners[0].Addr, Stream: true})
			cfg.Core.Offers.TCP = true
			cfg.Streams = recordStreams{r}
		})
		flow := core.Flow{Client: netip.MustParseAddrPort("127.0.0.1:9"), Conn: 7, Listener: 2}
		id := core.RelayID(1<<32 | 1)
		done := make(chan struct{})
		w.Do(func(now time.Time, c *core.Core, out *core.Output) {
			c.FromClient(now, flow, stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw, out)
			out.Actions = append(out.Actions,
				core.Action{Kind: core.OpenRelay, Transport: core.TCP, Relay: id, User: "ann"}, core.Action{Kind: core.Connect, Peer: flow.Client},
				core.Action{Kind: core.Splice, Flow: flow, Connection: 3}, core.Action{Kind: core.Disconnect, Connection: 3},
				core.Action{Kind: core.CloseRelay, Relay: id})
		})
		w.Do(func(time.Time, *core.Core, *core.Output) { close(done) })
		await(t, done, "the call behind it")
		want := []string{"send 7: 32 bytes", "open for ann", "connect 127.0.0.1:9", "splice 7 to 3", "disconnect 3", "close"}
		if got := r.said(); !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
	})
}

// A path past the core is told what it may serve, and asked what it has relayed.
func TestShard_KeepsTheBooksOfAnotherPath(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		t.Parallel() // it waits
		r := &recorder{}
		w := newWorld(t, engine, func(cfg *Config) { cfg.Offload = recordOffload{r} })
		c := w.client(loopback4, "ann")
		c.allocate()
		peer := netip.MustParseAddrPort("127.0.0.1:9")
		c.bind(0x4000, peer)
		r.mu.Lock()
		r.counts = core.Usage{SentPackets: 1, SentBytes: 2, ReceivedPackets: 3, ReceivedBytes: 4}
		r.mu.Unlock()
		eventually(t, "the counters were asked for", func() bool {
			s := w.Stats()
			return s.ToPeers == Traffic{1, 2} && s.ToClients == Traffic{3, 4}
		})
		used := make(chan core.Usage, 1)
		w.Do(func(_ time.Time, c *core.Core, _ *core.Output) {
			for i := range c.Allocations() {
				used <- i.Usage
			}
		})
		if got := <-used; got != (core.Usage{SentPackets: 1, SentBytes: 2, ReceivedPackets: 3, ReceivedBytes: 4}) {
			t.Errorf("the allocation has used %+v", got)
		}
		r.mu.Lock()
		r.counts = core.Usage{SentPackets: 10, SentBytes: 20}
		r.mu.Unlock()
		c.must(stun.MethodRefresh, lifetime(0))
		if s := w.Stats(); s.ToPeers != (Traffic{11, 22}) {
			t.Errorf("counted %+v to the end, want 11 packets", s.ToPeers)
		}
		if got := r.said(); !slices.Equal(got, []string{"serve 4000 to 127.0.0.1:9", "serve nothing"}) {
			t.Errorf("heard %q", got)
		}
	})
}
