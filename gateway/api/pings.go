// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"sync"

	"github.com/meshgate/meshgate/node/mesh"
)

const (
	// maxPings bounds the calls of Ping that are under way at a node, each of which
	// has one connection at a time.
	maxPings = 64
	// maxPingsPerCaller bounds those of one caller, so that nobody takes all.
	maxPingsPerCaller = 4
)

// pings counts the calls of Ping that are under way. It is safe for concurrent use.
type pings struct {
	mu       sync.Mutex
	all      int
	byCaller map[string]int // by id; none of a caller without
}

// enter counts a call at node self until leave is called. The operator of the host,
// and gateways, which have counted their callers themselves, are bound by the limit
// of all alone. Errors wrap mesh.ErrExhausted.
func (p *pings) enter(c Caller, self mesh.NodeID) (leave func(), err error) {
	id := c.ID
	if c.Node != nil && c.Node.HoldsState() {
		id = ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.all >= maxPings:
		return nil, fmt.Errorf("%w: %d pings are under way at %q; wait for one to end", mesh.ErrExhausted, maxPings, self)
	case id != "" && p.byCaller[id] >= maxPingsPerCaller:
		return nil, fmt.Errorf("%w: %d pings of %q are under way at %q; wait for one to end", mesh.ErrExhausted, maxPingsPerCaller, id, self)
	}
	p.all++
	if id != "" {
		if p.byCaller == nil {
			p.byCaller = make(map[string]int)
		}
		p.byCaller[id]++
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all--
		if id == "" {
			return
		}
		if p.byCaller[id]--; p.byCaller[id] == 0 {
			delete(p.byCaller, id)
		}
	}, nil
}
