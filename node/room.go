// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// room keeps the MTU of a userspace network at what the way to others leaves. On a
// TUN interface hostNetwork does that.
type room struct {
	node *Node
	// pathMTU is that of hostnet.Host, and set that of wg.Device.SetMTU.
	pathMTU func([]netip.Addr) (int, error)
	set     func(mtu int) error

	mu     sync.Mutex   // guards the fields below, and is held while they are put in force
	now    int          // in force; 0 is defaultMTU
	looked []netip.Addr // to where the last look was
}

// fit looks at the way to the peers of plan, if they are elsewhere than at the last
// look, or again is set.
func (r *room) fit(plan *mesh.Plan, again bool) {
	if r == nil || plan == nil || r.node.cfg.MTU != 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	to := r.node.underlay(plan)
	if !again && slices.Equal(to, r.looked) {
		return
	}
	r.looked = to
	path, err := r.pathMTU(to)
	if errors.Is(err, mesh.ErrUnsupported) {
		return
	}
	if err != nil {
		r.node.log.Debug("the mtu of the way to others is not known", "err", err)
		return
	}
	mtu := meshMTU(0, path)
	if mtu == r.now || r.now == 0 && mtu == defaultMTU {
		return
	}
	if err := r.set(mtu); err != nil {
		r.node.log.Warn("mtu of the mesh not changed", "err", err)
		return
	}
	r.node.log.Info("mtu of the mesh", "n", mtu)
	r.now = mtu
}

// run looks again and again, until ctx ends: hosts move from network to network.
func (r *room) run(ctx context.Context) error {
	tick := time.NewTicker(lookAtPeers)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			r.fit(r.node.current.Load(), true)
		}
	}
}
