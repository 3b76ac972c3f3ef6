// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// reserved makes an allocation with a reservation, and returns the shard that has
// it, the other one, and the token.
func reserved(t *testing.T, shards [2]*world, at netip.AddrPort) (home, other *world, token stun.Setter) {
	t.Helper()
	res := newClient(t, loopback4, at, "ann").must(stun.MethodAllocate, transportUDP, attr(stun.AttrEvenPort, 0x80))
	v, err := res.Get(stun.AttrReservationToken)
	if err != nil {
		t.Fatal(err)
	}
	return shards[v[0]], shards[1-v[0]], attr(stun.AttrReservationToken, v...)
}

// asks runs f with the books of the shard.
func (w *world) asks(f func(b *books)) {
	w.Helper()
	done := make(chan struct{})
	w.Do(func(time.Time, *core.Core, *core.Output) { f(w.books()); close(done) })
	await(w.TB, done, "a call")
}

func (w *world) carried() (n int) {
	w.asks(func(b *books) { n = len(b.carried) })
	return n
}

// A client that has an allocation here asks here, whatever its token says.
func TestShard_CarriesNobodyWhoHasAnAllocation(t *testing.T) {
	shards, at := pair(t)
	home, other, token := reserved(t, shards, at)
	c := other.clientHere(at, "ann")
	c.allocate()
	if got := code(c.request(stun.MethodAllocate, transportUDP, token)); got != 437 {
		t.Errorf("code %d, want 437", got)
	}
	if home.allocations() != 1 || other.allocations() != 1 || other.carried() != 0 {
		t.Errorf("the shards have %d and %d allocations, %d clients are carried", home.allocations(), other.allocations(), other.carried())
	}
}

// A client whose token is of the shard where it comes in is carried nowhere.
func TestShard_ServesItsOwnTokens(t *testing.T) {
	shards, at := pair(t)
	home, other, token := reserved(t, shards, at)
	home.clientHere(at, "ann").allocate(token)
	if home.allocations() != 2 || other.allocations() != 0 || home.carried() != 0 || other.carried() != 0 {
		t.Errorf("%d allocations here and %d there; carried are %d and %d", home.allocations(), other.allocations(), home.carried(), other.carried())
	}
}

// What is carried over is a copy: the other shard may be long in looking at it.
func TestShard_CarriesCopies(t *testing.T) {
	shards, at := pair(t)
	home, other, token := reserved(t, shards, at)
	c := other.clientHere(at, "ann")
	m := c.signed(stun.MethodAllocate, transportUDP, token)
	home.held(func() {
		before := other.Stats().Received
		c.send(m.Raw)
		for range slots { // all memory of a batch, and more than one
			c.send(make([]byte, 300))
		}
		eventually(t, "the memory is used anew", func() bool { return other.Stats().Received == before+1+slots })
	})
	for {
		if res := c.message(); res.TransactionID == m.TransactionID {
			if got := code(res); got != 0 {
				t.Errorf("code %d", got)
			}
			return
		}
	}
}

// What another shard has no room for is dropped, and counted.
func TestShard_CountsWhatItCannotCarry(t *testing.T) {
	shards, at := pair(t)
	home, other, token := reserved(t, shards, at)
	c := other.clientHere(at, "ann")
	home.held(func() {
		for home.offer(func(time.Time, *core.Core, *core.Output) {}) {
		}
		c.send(c.signed(stun.MethodAllocate, transportUDP, token).Raw)
		eventually(t, "it is counted", func() bool { return other.Stats().Uncarried == 1 })
	})
	home.asks(func(*books) {}) // there is room again
	c.allocate(token)
}

// A shard carries so many clients and no more, and forgets those whose allocations
// have ended without a word.
func TestShard_CarriesBoundedlyManyClients(t *testing.T) {
	shards, at := pair(t)
	home, other, token := reserved(t, shards, at)
	number := uint8(0)
	if home == shards[1] {
		number = 1
	}
	c := other.clientHere(at, "ann")
	other.asks(func(b *books) {
		b.looked = time.Now().Add(time.Hour) // not yet again
		for i := range maxCarried {
			gone := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 9)
			b.carried[core.Flow{Client: gone}] = number
		}
	})
	if got := code(c.request(stun.MethodAllocate, transportUDP, token)); got != 508 || other.carried() != maxCarried {
		t.Errorf("beyond the bound: code %d, want 508; %d clients are carried", got, other.carried())
	}
	other.asks(func(b *books) { b.looked = time.Time{} })
	c.request(stun.MethodRefresh)
	eventually(t, "those who have nothing are forgotten", func() bool { return other.carried() == 0 })
	c.allocate(token)
	eventually(t, "the client is carried", func() bool { return other.carried() == 1 })
	other.asks(func(b *books) { b.looked = time.Time{} })
	for range 3 {
		c.must(stun.MethodRefresh)
	}
	if home.allocations() != 2 || other.allocations() != 0 || other.carried() != 1 {
		t.Errorf("the shards have %d and %d allocations, %d clients are carried", home.allocations(), other.allocations(), other.carried())
	}
}
