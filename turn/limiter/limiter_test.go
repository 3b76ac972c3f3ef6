// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimiter_EachNetworkHasItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(10, 30)
		taken := func(addr string, n int) (got int) {
			a := netip.MustParseAddr(addr)
			for range n {
				if l.Take(a) {
					got++
				}
			}
			return got
		}
		if got := taken("11.0.0.1", 100); got != 30 {
			t.Errorf("a burst gets %d answers, want 30", got)
		}
		if got := taken("11.0.0.200", 100); got != 0 {
			t.Errorf("a neighbour in the same /24 gets %d more", got)
		}
		if got := taken("11.0.1.1", 100); got != 30 {
			t.Errorf("another network gets %d, want 30", got)
		}
		if got := taken("2a00:0:0:100::1", 100) + taken("2a00:0:0:1ff::1", 100); got != 30 {
			t.Errorf("a /56 gets %d, want 30", got)
		}
		time.Sleep(time.Second) // the bubble's clock
		if got := taken("11.0.0.7", 100); got != 10 {
			t.Errorf("a second later %d, want 10", got)
		}
		time.Sleep(time.Hour)
		if got := taken("11.0.0.7", 100); got != 30 {
			t.Errorf("an hour later %d, want 30", got)
		}
		if got := taken("127.0.0.1", 100) + taken("::1", 100); got != 200 {
			t.Errorf("loopback gets %d, want 200", got)
		}
	})
}

// However many addresses somebody forges, answers are bounded.
func TestLimiter_ForgedFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(10, 30)
		got := 0
		for i := range uint32(1 << 20) {
			if l.Take(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})) {
				got++
			}
		}
		if limit := slots * 30; got > limit {
			t.Errorf("%d answers, limit %d", got, limit)
		}
	})
}

// Whoever names a new network with each packet gets one answer for five of them,
// but for what a few hundred networks get; and all is well a moment later.
func TestLimiter_FloodOfAllNetworksIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seconds, rate = 2, 100_000
		l := New(10, 30)
		asked, got := 0, 0
		for range seconds * 100 {
			time.Sleep(time.Second / 100) // the bubble's clock
			for range rate / 100 {
				asked++
				if l.Take(netip.AddrFrom4([4]byte{byte(asked>>16) + 11, byte(asked >> 8), byte(asked), 1})) {
					got++
				}
			}
		}
		if least, most := asked/share/2, asked/share+networks*(30+10*seconds); got < least || got > most {
			t.Errorf("%d of %d are answered, want %d to %d", got, asked, least, most)
		}
		time.Sleep(3 * time.Second)
		got = 0
		for i := range networks * 30 {
			if l.Take(netip.AddrFrom4([4]byte{10, 0, byte(i % networks), 1})) {
				got++
			}
		}
		if want := networks * 30 * 9 / 10; got < want { // some networks share a slot
			t.Errorf("when the flood is over %d of %d are answered, want %d", got, networks*30, want)
		}
	})
}

func BenchmarkLimiter(b *testing.B) {
	l := New(10, 30)
	addr := netip.MustParseAddr("11.0.0.1")
	b.ReportAllocs()
	for b.Loop() {
		l.Take(addr)
	}
}
