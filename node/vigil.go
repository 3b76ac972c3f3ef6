// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// vigil is for how long a gateway has watched, as the leader, who is silent. The
// clock of a gateway may be set by years, and a node whose silence only that clock
// tells of is not gone.
type vigil struct {
	// at and wall are when it looked last, by a clock that nobody sets and by the one
	// of the host; zero: it did not lead then.
	at, wall time.Time
	// watched is what was not stored yet.
	watched time.Duration
}

// look notes that a leader looks again, and returns by how much the clock of the
// host was set since it did so last. What passes while its machine stands still
// does not count.
func (v *vigil) look(at, wall time.Time) (set time.Duration) {
	wall = wall.Round(0)
	passed := at.Sub(v.at)
	first := v.at.IsZero()
	if !first {
		v.watched += min(passed, 2*lookEach)
		set = wall.Sub(v.wall) - passed
	}
	if v.at, v.wall = at, wall; set.Abs() < maxDrift {
		return 0
	}
	return set
}

// keepVigil notes a look of this gateway, and reports whether its clock was set.
func (h *holder) keepVigil(v *vigil, at, wall time.Time) bool {
	if !h.cfg.Purge.leads() {
		*v = vigil{}
		return false
	}
	set := v.look(at, wall)
	if set != 0 && h.cfg.Purge.After > 0 {
		h.node.log.Warn("the clock of this gateway was set, or its machine stood still: no silent member is removed for that; see that the clock is right", "by", set.Round(time.Second))
	}
	return set != 0
}

// storeVigil stores for how long was watched who is silent, if anybody is, so that
// it is not lost with this leader.
func (h *holder) storeVigil(ctx context.Context, v *vigil, s *mesh.Snapshot) error {
	if len(s.Silent) == 0 || h.cfg.Purge.After <= 0 {
		v.watched = 0
		return nil
	}
	if v.watched < watchEach {
		return nil
	}
	if err := h.Members.Watch(ctx, v.watched); err != nil {
		return err
	}
	v.watched = 0
	return nil
}
