// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimiter_EachNetworkHasItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(10, 30)
		taken := func(addr string, n int) (got int) {
			a := netip.MustParseAddr(addr)
			for range n {
				if l.take(a) {
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
		l := newLimiter(10, 30)
		got := 0
		for i := range uint32(1 << 20) {
			if l.take(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})) {
				got++
			}
		}
		if limit := limiterSlots * 30; got > limit {
			t.Errorf("%d answers, limit %d", got, limit)
		}
	})
}

func TestConnections_Bounds(t *testing.T) {
	c := &connections{total: 3, perSource: 2, bySource: make(map[netip.Addr]int)}
	a, b := netip.MustParseAddr("11.0.0.1"), netip.MustParseAddr("2a00::1")
	sameSource := netip.MustParseAddr("2a00::2")
	for _, tc := range []struct {
		addr netip.Addr
		want bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {sameSource, false}} {
		if got := c.enter(tc.addr); got != tc.want {
			t.Errorf("%s: %t", tc.addr, got)
		}
	}
	c.leave(a)
	if !c.enter(sameSource) {
		t.Error("a place that was left is not given again")
	}
	for _, addr := range []netip.Addr{a, b, sameSource} {
		c.leave(addr)
	}
	if c.count != 0 || len(c.bySource) != 0 {
		t.Errorf("%d left, sources %v", c.count, c.bySource)
	}
}

func BenchmarkLimiter(b *testing.B) {
	l := newLimiter(10, 30)
	addr := netip.MustParseAddr("11.0.0.1")
	b.ReportAllocs()
	for b.Loop() {
		l.take(addr)
	}
}
