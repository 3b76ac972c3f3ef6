// SPDX-License-Identifier: Apache-2.0

package shard

import (
	"testing"
)

// Packets allocate nothing on the thread, alone and merged, both ways.
func TestThread_PacketsAllocateNothing(t *testing.T) {
	for name, n := range map[string]int{"alone": 1, "merged": 8, "many": 400} {
		for _, size := range []int{100, 1200} {
			r := newRunner(t, newWorld(t).udp[loopback4], n, size)
			r.up()
			r.down()
			if got := testing.AllocsPerRun(100, r.up); got != 0 {
				t.Errorf("%s, %d bytes to the peer: %v allocations", name, size, got)
			}
			if got := testing.AllocsPerRun(100, r.down); got != 0 {
				t.Errorf("%s, %d bytes to the client: %v allocations", name, size, got)
			}
		}
	}
}
