// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// Each network has so many credentials refused and no more, wherever in it they come
// from, and others forge nothing away from it.
func TestGuesses_EachNetworkHasItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuesses(2, 64)
		tried := func(addr string, proven bool, n int) (got int) {
			a := netip.MustParseAddr(addr)
			for range n {
				if !g.Spent(a, proven) {
					g.Refused(a, proven)
					got++
				}
			}
			return got
		}
		if got := tried("11.0.0.1", true, 60) + tried("11.0.0.99", true, 60); got != 64 {
			t.Errorf("a network tries %d, want 64", got)
		}
		if got := tried("11.0.0.1", false, 100); got != 64 {
			t.Errorf("in its name %d are tried, want 64", got)
		}
		if got := tried("11.0.1.1", true, 100); got != 64 {
			t.Errorf("another network tries %d, want 64", got)
		}
		if got := tried("2a00:0:0:100::1", true, 100) + tried("2a00:0:0:1ff::1", true, 100); got != 64 {
			t.Errorf("a /56 tries %d, want 64", got)
		}
		if got := tried("127.0.0.1", true, 100); got != 64 {
			t.Errorf("loopback tries %d, want 64", got)
		}
		for range 1000 { // many that were tried at once
			g.Refused(netip.MustParseAddr("11.0.0.1"), true)
		}
		time.Sleep(3 * time.Second) // the bubble's clock
		if got := tried("11.0.0.7", true, 100); got != 6 {
			t.Errorf("three seconds later %d, want 6", got)
		}
		time.Sleep(time.Hour)
		if got := tried("11.0.0.7", true, 100); got != 64 {
			t.Errorf("an hour later %d, want 64", got)
		}
	})
}

// try has credentials of an address refused until that is spent, or n were, and returns how many.
func (g *Guesses) try(a netip.Addr, n int) (got int) {
	for ; got < n && !g.Spent(a, true); got++ {
		g.Refused(a, true)
	}
	return got
}

// ipv4At is an address in the n-th network of IPv4.
func ipv4At(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n>>16) + 11, byte(n >> 8), byte(n), 9})
}

// ipv6At is an address in the n-th /56 of the wide-th /40.
func ipv6At(wide, n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x2a, 1, byte(wide >> 8), byte(wide), byte(wide >> 16), byte(n >> 8), byte(n), 1})
}

// However many networks somebody has, those of others are not kept out; and who has spent
// all is not forgotten for those that try once.
func TestGuesses_NobodyIsKeptOutByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuesses(1, 8)
		guesser := netip.MustParseAddr("203.0.113.5")
		g.try(guesser, 100)
		for n := range 20_000 {
			g.Refused(ipv4At(n), true)
		}
		if !g.Spent(guesser, true) {
			t.Error("a network that has spent all is forgotten for those that tried once")
		}
		for n := range 32768 {
			g.try(ipv6At(n>>7, n&127), 100)
		}
		kept := 0
		for n := range 2000 {
			if g.Spent(ipv4At(1<<17+n), true) {
				kept++
			}
		}
		if kept > 4 { // that have a tag of another one by chance: one in 130000
			t.Errorf("%d of 2000 networks may not try", kept)
		}
	})
}

// As many networks as there is room for are known apart.
func TestGuesses_KnowsManyNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = sets * ways / 4
		g := NewGuesses(1, 8)
		spent := 0
		for n := range many {
			g.try(ipv4At(n), 100)
		}
		for n := range many {
			if g.Spent(ipv4At(n), true) {
				spent++
			}
		}
		if spent < many*99/100 {
			t.Errorf("%d of %d networks are known to have spent all", spent, many)
		}
	})
}

// Who has many networks of IPv6 does not try without an end, and one site does not keep
// out its neighbours.
func TestGuesses_AWideNetworkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const burst = 8
		g := NewGuesses(1, burst)
		tried := 0
		for n := range sites / 2 {
			tried += g.try(ipv6At(0, n), 100)
		}
		if g.Spent(ipv6At(0, 0xffff), true) {
			t.Errorf("%d of one site keep its neighbours out", tried)
		}
		for n := range 4 * sites {
			tried += g.try(ipv6At(0, n), 100)
		}
		if most := sites * burst * 11 / 10; tried < sites*burst*9/10 || tried > most {
			t.Errorf("a /40 tries %d, want %d", tried, sites*burst)
		}
		if !g.Spent(ipv6At(0, 0xffff), true) || g.Spent(ipv6At(0, 0xffff), false) || g.Spent(ipv6At(1, 0), true) {
			t.Error("not the /40 is spent, or another one, or what is forged in its name counts")
		}
		time.Sleep(burst * time.Second) // the bubble's clock
		if got := g.try(ipv6At(0, 0xffff), 100); got != burst {
			t.Errorf("when all is over a network of it tries %d, want %d", got, burst)
		}
	})
}

// A count costs no memory.
func TestGuesses_AllocateNothing(t *testing.T) {
	g, n := NewGuesses(1, 8), 0
	if got := testing.AllocsPerRun(1000, func() {
		n++
		g.try(ipv6At(n, n), 2)
		g.Refused(ipv4At(n), false)
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkGuesses(b *testing.B) {
	g, addr := NewGuesses(1, 64), netip.MustParseAddr("2a00::1")
	b.ReportAllocs()
	for b.Loop() {
		g.Spent(addr, true)
		g.Refused(addr, true)
	}
}
