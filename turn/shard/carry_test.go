// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"bytes"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// pair is two shards at one address: the kernel chooses one for each client.
func pair(t *testing.T) (shards [2]*world, at netip.AddrPort) {
	t.Helper()
	var known [2]atomic.Pointer[Shard]
	at = netip.AddrPortFrom(loopback4, 0)
	key := bytes.Repeat([]byte{7}, 32)
	for i := range shards {
		s, err := Listen(at, true)
		if err != nil {
			t.Fatal(err)
		}
		at = s.Addr()
		shards[i] = newWorld(t, func(cfg *Config) {
			for _, l := range cfg.Listeners {
				l.Close()
			}
			cfg.Listeners = map[uint16]*Socket{0: s}
			cfg.Core.Listeners = []core.Listener{{Addr: at}}
			cfg.carriedFor = time.Millisecond
			cfg.Core.Shard, cfg.Core.NonceKey = uint8(i), key
			cfg.Other = func(n uint8) *Shard {
				if n > 1 {
					return nil
				}
				return known[n].Load()
			}
		})
		known[i].Store(shards[i].Shard)
	}
	return shards, at
}

// A client whose reserved port is at another shard is served there, although its
// packets come here, until its allocation ends.
func TestShard_CarriesClientsOfReservedPorts(t *testing.T) {
	shards, at := pair(t)
	ann := newClient(t, loopback4, at, "ann")
	res := ann.must(stun.MethodAllocate, transportUDP, attr(stun.AttrEvenPort, 0x80))
	token, err := res.Get(stun.AttrReservationToken)
	if err != nil {
		t.Fatal(err)
	}
	home := shards[token[0]]
	if home.allocations() != 1 {
		t.Fatalf("the token names shard %d, which has no allocation", token[0])
	}
	other := shards[1-token[0]]
	second := other.clientHere(at, "ann")
	if got := second.allocate(attr(stun.AttrReservationToken, token...)); got.Port() != relayed(t, res).Port()+1 {
		t.Errorf("the second relay is at %v, the first at %v", got, relayed(t, res))
	}
	if home.allocations() != 2 || other.allocations() != 0 {
		t.Errorf("the shards have %d and %d allocations", home.allocations(), other.allocations())
	}
	peer, peerAt := socket(t, loopback4)
	eventually(t, "the other shard knows whose client this is", func() bool {
		return code(second.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(peerAt))) == 0
	})
	for range 10 {
		second.send(channelData(0x4000, []byte("ping")))
		peer.WriteToUDPAddrPort([]byte("pong"), expect(t, peer, []byte("ping")))
		if got := second.packet(); string(got) != "\x40\x00\x00\x04pong" {
			t.Fatalf("got %q", got)
		}
	}
	second.must(stun.MethodRefresh, lifetime(0))
	eventually(t, "the client is as any other again", func() bool {
		second.request(stun.MethodAllocate, transportUDP)
		if other.allocations() == 1 {
			return true
		}
		second.request(stun.MethodRefresh, lifetime(0)) // it was carried once more
		return false
	})
}

// A client whose allocation ends while it says nothing is forgotten where its
// packets come.
func TestShard_ForgetsCarriedClientsThatVanish(t *testing.T) {
	shards, at := pair(t)
	ann := newClient(t, loopback4, at, "ann")
	res := ann.must(stun.MethodAllocate, transportUDP, attr(stun.AttrEvenPort, 0x80))
	token, err := res.Get(stun.AttrReservationToken)
	if err != nil {
		t.Fatal(err)
	}
	home, other := shards[token[0]], shards[1-token[0]]
	second, bystander := other.clientHere(at, "ann"), other.clientHere(at, "bob")
	second.allocate(attr(stun.AttrReservationToken, token...))
	eventually(t, "the other shard knows whose client this is", func() bool { return other.Stats().Carried == 1 })
	for range 10 { // it is looked up, and stays
		bystander.request(stun.MethodRefresh)
	}
	if n := other.Stats().Carried; n != 1 {
		t.Errorf("%d clients are known to be elsewhere, want 1", n)
	}
	home.Do(func(_ time.Time, c *core.Core, out *core.Output) {
		c.Evict(func(core.Info) bool { return true }, out)
	})
	eventually(t, "the client is forgotten", func() bool {
		bystander.request(stun.MethodRefresh)
		return other.Stats().Carried == 0
	})
}

// A token of a shard that is not there is served by none.
func TestShard_RefusesTokensOfShardsThatAreNotThere(t *testing.T) {
	_, at := pair(t)
	c := newClient(t, loopback4, at, "ann")
	c.request(stun.MethodRefresh) // logs in
	for _, first := range []byte{0, 1, 2, 255} {
		token := attr(stun.AttrReservationToken, first, 1, 2, 3, 4, 5, 6, 7)
		if got := code(c.request(stun.MethodAllocate, transportUDP, token)); got != 508 {
			t.Errorf("a token of shard %d: code %d, want 508", first, got)
		}
	}
}

// clientHere returns a client whose packets come to this shard.
func (w *world) clientHere(at netip.AddrPort, user string) *client {
	w.Helper()
	for range 100 {
		before := w.Stats().Received
		c := newClient(w.TB, loopback4, at, user)
		if c.request(stun.MethodRefresh); w.Stats().Received > before {
			return c
		}
	}
	w.Fatal("the kernel gives this shard no client")
	return nil
}
