// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"net/netip"
	"slices"
)

// gate is a plane whose packets for idle peers wait until the library has
// those: it would not know where else to put them.
type gate struct {
	plane
	filter  *filter
	metrics *metrics
	// wake makes the library have idle peers. It returns when it does, or when
	// there is no hope.
	wake func([]*contact)

	// last is where the last packet went, which is where the next one most
	// likely goes. It belongs to Read.
	last struct {
		routes *prefixSet
		dst    netip.Addr
		to     *contact
	}
}

// Read implements tun.Device. Packets for peers that nobody knows how to reach
// are left out, as a size of 0, which the library ignores.
func (g *gate) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := g.plane.Read(bufs, sizes, offset)
	if rules := g.filter.load(); rules.lazy {
		g.wait(rules.routes, bufs, sizes[:n], offset)
	}
	return n, err
}

// wait returns when no packet is for an idle peer any more.
func (g *gate) wait(routes *prefixSet, bufs [][]byte, sizes []int, offset int) {
	var idle []*contact
	for i, size := range sizes {
		_, dst, ok := addresses(bufs[i][offset : offset+size])
		if !ok {
			continue
		}
		to := g.to(routes, dst)
		if to == nil {
			continue
		}
		switch to.at() {
		case stateActive:
		case stateLost:
			sizes[i] = 0
			g.metrics.drop(reasonLost)
		default:
			if !slices.Contains(idle, to) {
				idle = append(idle, to)
			}
		}
	}
	if len(idle) > 0 {
		g.wake(idle)
	}
}

// to returns the peer behind an address, or nil.
func (g *gate) to(routes *prefixSet, dst netip.Addr) *contact {
	if g.last.routes != routes || g.last.dst != dst {
		_, to := routes.find(dst)
		g.last.routes, g.last.dst, g.last.to = routes, dst, to
	}
	return g.last.to
}
