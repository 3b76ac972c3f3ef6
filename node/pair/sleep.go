// SPDX-License-Identifier: Apache-2.0

package pair

import "time"

// asleepFor is by how much the time of day has to be ahead of the time that the
// host was running for, for the host to have slept. Clocks that are set look the
// same, and cost a few checks.
const asleepFor = 5 * time.Second

// slept sees whether the host was asleep. The zero value is ready.
type slept struct {
	ran  time.Duration
	wall time.Time
}

// since reports whether the host has slept since the last call. ran is how long
// it has been running by the monotonic clock, which stands still meanwhile, and
// wall is the time of day without that clock.
func (s *slept) since(ran time.Duration, wall time.Time) bool {
	was := *s
	s.ran, s.wall = ran, wall
	return !was.wall.IsZero() && wall.Sub(was.wall)-(ran-was.ran) >= asleepFor
}

// woke checks all that may have ended while the host was asleep. The others have
// given up the sessions, whose age this host underestimates.
func (p *Pairs) woke(now time.Time) {
	p.log.Info("the host was asleep; all paths are checked")
	p.restart(now)
	for _, l := range p.links {
		if l.stands && l.way != nil {
			l.shook = now
			p.cfg.Device.Handshake(l.key)
		}
	}
}
