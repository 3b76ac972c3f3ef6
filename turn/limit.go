// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net/netip"
	"sync"
)

// connections counts stream connections, in total and by source address. It is
// safe for concurrent use.
type connections struct {
	total, perSource int

	mu       sync.Mutex // guards the fields below
	count    int
	bySource map[netip.Addr]int
}

// enter counts one more connection of addr, or says that it is one too many.
func (c *connections) enter(addr netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count >= c.total || c.bySource[host(addr)] >= c.perSource {
		return false
	}
	c.count++
	c.bySource[host(addr)]++
	return true
}

func (c *connections) leave(addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count--
	if c.bySource[host(addr)]--; c.bySource[host(addr)] == 0 {
		delete(c.bySource, host(addr))
	}
}

// host returns what one machine can make up addresses from: a /64 counts as one source.
func host(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		p, _ := addr.Prefix(64) // 64 bits fit
		return p.Addr()
	}
	return addr
}
