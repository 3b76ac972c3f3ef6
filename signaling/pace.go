// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"fmt"

	"golang.org/x/time/rate"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// pathRate and pathBurst bound the signals with paths from one node to another,
	// per second and at once, over all of their channels. A node with twenty
	// addresses that moves to another network each minute stays below.
	pathRate, pathBurst = 2, 128
	// openRate and openBurst bound the channels that one node opens to another. A
	// node waits for seconds before it opens a further one.
	openRate, openBurst = 0.5, 16
	// maxPaces bounds the pairs of nodes that are remembered. One that has said
	// little is forgotten after two seconds.
	maxPaces = 1 << 16
)

// pathPace is what one node may still tell another one, whatever the channels:
// who closes one and opens the next gets no more for it.
type pathPace struct{ openings, signals *rate.Limiter }

// rested says that p is as good as a new one.
func (p *pathPace) rested() bool {
	return p.openings.Tokens() >= openBurst && p.signals.Tokens() >= pathBurst
}

// pace returns what is left to a pair of nodes, by the key of both. It needs the
// lock of the Service.
func (c *census) pace(key string) (*pathPace, error) {
	if p := c.paces[key]; p != nil {
		return p, nil
	}
	if len(c.paces) >= c.sweepAt {
		for k, p := range c.paces {
			if p.rested() {
				delete(c.paces, k)
			}
		}
		// Half of the additions have been paid for before the next look.
		c.sweepAt = min(max(2*len(c.paces), minSweep), maxPaces)
	}
	if len(c.paces) >= maxPaces {
		return nil, fmt.Errorf("too many nodes tell each other paths at this node, try again later: %w", mesh.ErrExhausted)
	}
	p := &pathPace{rate.NewLimiter(openRate, openBurst), rate.NewLimiter(pathRate, pathBurst)}
	c.paces[key] = p
	return p, nil
}

// open counts one more channel of a node to another, and its first signal. It
// needs the lock of the Service.
func (c *census) open(from, to string) error {
	p, err := c.pace(pathKey(from, to))
	if err == nil && (!p.openings.Allow() || !p.signals.Allow()) {
		err = fmt.Errorf("%q opens path channels to %q too often, wait a few seconds: %w", from, to, mesh.ErrExhausted)
	}
	return err
}

// minSweep is how many pairs are remembered before any is looked at again.
const minSweep = 256

// pacePath counts one more signal with a path of a node to another.
func (s *Service) pacePath(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.census.pace(pathKey(from, to))
	if err == nil && !p.signals.Allow() {
		err = fmt.Errorf("%q sends more than %d signals with paths per second to %q: %w", from, pathRate, to, mesh.ErrExhausted)
	}
	if err != nil {
		s.metrics.refused.Inc()
	}
	return err
}

// pathKey is the key of what goes from one node to another.
func pathKey(from, to string) string { return from + "\x00" + to }
