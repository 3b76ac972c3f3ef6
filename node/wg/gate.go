// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"net/netip"
	"slices"
	"sync/atomic"
)

// gate is a plane whose packets for idle peers wait until the library has
// those: it would not know where else to put them.
type gate struct {
	plane
	filter  *filter
	metrics *metrics
	paths   *pathSet
	// wake makes the library have idle peers. It returns when it does, or when
	// there is no hope.
	wake func([]*contact)

	// seeker is told of what goes out.
	seeker seeker
	// veils are the peers to which packets go veiled, and from which such come; nil
	// for none.
	veils atomic.Pointer[veils]
	// veiled are destinations of the last packets, and whether those go veiled by
	// veiling and veilingOf. They belong to Read.
	veiled [1 << recentBits]struct {
		dst netip.Addr
		on  bool
	}
	veiling   *veils
	veilingOf *prefixSet
	// recent are destinations of the last packets, which are those of the next
	// ones most likely, and who was behind them according to known. They belong
	// to Read.
	recent [1 << recentBits]struct {
		dst netip.Addr
		to  *contact
	}
	known *prefixSet
}

// recentBits says how many destinations a gate remembers: 2 KB of them.
const recentBits = 6

// Read implements tun.Device. Packets for peers that nobody knows how to reach
// are left out, as a size of 0, which the library ignores.
func (g *gate) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := g.plane.Read(bufs, sizes, offset)
	rules := g.filter.load()
	if rules.seek != nil {
		g.seeker.observe(rules, bufs, sizes[:n], offset)
	}
	if v := g.veils.Load(); v != nil && len(v.on) > 0 {
		g.veil(v, rules.routes, bufs, sizes[:n], offset)
	}
	if rules.lazy {
		g.wait(rules.routes, bufs, sizes[:n], offset)
	}
	if g.paths.narrow.Load() > 0 {
		g.widen(rules.routes, bufs, sizes[:n], offset)
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
	if g.known != routes {
		clear(g.recent[:])
		g.known = routes
	}
	last := &g.recent[spread(dst)>>(64-recentBits)]
	if last.dst != dst {
		last.dst = dst
		_, last.to = routes.find(dst)
	}
	return last.to
}
