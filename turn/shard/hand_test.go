// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// Two relays of a shard meet without a socket between them, behind a one-to-one
// NAT too, and nothing else changes: sources, order, permissions, sizes.
func TestShard_HandsOverBetweenItsRelays(t *testing.T) {
	for name, public := range map[string]netip.Addr{"here": {}, "behind NAT": netip.MustParseAddr("192.0.2.1")} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, engine func(*Config)) {
				w := newWorld(t, engine, func(cfg *Config) { cfg.Relays.(*testRelays).public = public })
				a, b := w.client(loopback4, "ann"), w.client(loopback6, "bob")
				atA, atB := a.allocate(), b.allocate()
				a.bind(0x4000, atB)
				a.send(channelData(0x4000, []byte("no permission yet")))
				a.must(stun.MethodRefresh) // the shard works in order
				b.permit(atA)
				for _, size := range []int{0, 1, 1200, 65000} {
					payload := bytes.Repeat([]byte{1}, size)
					a.send(channelData(0x4000, payload))
					m := b.message()
					if data, from := dataOf(t, m); from != atA || !bytes.Equal(data, payload) {
						t.Fatalf("bob got %d bytes from %v, want %d from %v", len(data), from, size, atA)
					}
					b.send(indication(atA, payload))
					if got := a.packet(); !bytes.Equal(got, channelData(0x4000, payload)) {
						t.Fatalf("ann got %d bytes, want %d", len(got), size+4)
					}
				}
				if n := w.Stats().Handed; n != 9 {
					t.Errorf("%d datagrams were handed over, want all 9", n)
				}
			})
		})
	}
}

// A relay that its client has bound to itself is an echo. It echoes once.
func TestShard_ARelayThatTalksToItselfEnds(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		a := w.client(loopback4, "ann")
		a.bind(0x4000, a.allocate())
		for range 100 {
			a.send(channelData(0x4000, []byte("echo")))
			if got := a.packet(); !bytes.Equal(got, channelData(0x4000, []byte("echo"))) {
				t.Fatalf("got %q", got)
			}
		}
		if got := w.Stats(); got.Handed != 100 || got.ToPeers.Packets != 100 || got.ToClients != (Traffic{100, 400}) {
			t.Errorf("counted %+v", got)
		}
	})
}

// What a relay was handed goes to whoever has its address after it.
func TestShard_HandsNothingToRelaysThatHaveEnded(t *testing.T) {
	both(t, func(t *testing.T, engine func(*Config)) {
		w := newWorld(t, engine)
		a, b := w.client(loopback4, "ann"), w.client(loopback4, "bob")
		atA, atB := a.allocate(), b.allocate()
		a.bind(0x4000, atB)
		b.permit(atA)
		a.send(channelData(0x4000, []byte("to bob")))
		if data, _ := dataOf(t, b.message()); string(data) != "to bob" {
			t.Fatalf("bob got %q", data)
		}
		b.must(stun.MethodRefresh, lifetime(0))
		var next *net.UDPConn
		eventually(t, "the address is free", func() (ok bool) {
			var err error
			next, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(atB))
			return err == nil
		})
		defer next.Close()
		a.send(channelData(0x4000, []byte("to the next")))
		expect(t, next, []byte("to the next"))
	})
}

// Relays of two shards meet through sockets.
func TestShard_RelaysOfTwoShardsMeet(t *testing.T) {
	a := newWorld(t)
	b := newWorld(t, func(cfg *Config) { cfg.Core.Shard = 1 })
	ann, bob := a.client(loopback4, "ann"), b.client(loopback4, "bob")
	atA, atB := ann.allocate(), bob.allocate()
	ann.bind(0x4000, atB)
	bob.bind(0x4001, atA)
	ann.send(channelData(0x4000, []byte("hi")))
	if got := bob.packet(); !bytes.Equal(got, channelData(0x4001, []byte("hi"))) {
		t.Errorf("bob got %q", got)
	}
	if a.Stats().Handed+b.Stats().Handed != 0 {
		t.Error("a shard handed over what it does not have")
	}
}

var _ Relays = (*testRelays)(nil)

func (w *world) allocations() (n int) {
	got := make(chan int, 1)
	w.Do(func(_ time.Time, c *core.Core, _ *core.Output) { got <- c.Stats().Allocations })
	return <-got
}
