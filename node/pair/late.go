// SPDX-License-Identifier: Apache-2.0

package pair

import "time"

const (
	// lateTurns is how many turns an answer takes on a busy host: to be sent, to be
	// read, and to be looked at.
	lateTurns = 4
	// latest bounds what is made of being late.
	latest = time.Second
)

// late is by how much later than it wanted to Run came to its turn of late. On a
// host that is busy with other things gateways seem to be silent that have long
// answered, and to look for them over relays makes it busier. The zero value is
// of an idle host.
type late struct{ by time.Duration }

// saw notes a turn that was late. What was is forgotten with each that was less.
func (l *late) saw(by time.Duration) {
	l.by = min(max(by, l.by*3/4), latest)
}

// patience is d on a host that is as late as this one.
func (l *late) patience(d time.Duration) time.Duration { return d + lateTurns*l.by }
