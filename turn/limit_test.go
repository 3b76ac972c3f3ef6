// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net/netip"
	"testing"
)

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
