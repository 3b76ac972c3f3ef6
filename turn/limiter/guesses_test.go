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
