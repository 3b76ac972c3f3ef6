// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/path"
)

// Status says for people how packets get to a node.
type Status struct {
	Node mesh.NodeID
	// Gateway is true for the node's gateway, which needs no signals.
	Gateway bool
	// Stands is true when packets go over the pair; else a gateway carries them.
	Stands bool
	// Silent is when a gateway was last heard that does not answer any more; zero
	// while it does, and for one that never did.
	Silent time.Time
	// Path is where they go, or why they do not.
	Path path.State
	// Used is when a packet last went or came.
	Used time.Time
}

// Status lists the pairs, and the ways to gateways, by node id.
func (p *Pairs) Status() []Status { return *p.status.Load() }

func (l *link) status() Status {
	st := Status{Node: l.peer.Node.ID, Gateway: l.kind == gateway, Stands: l.stands, Silent: l.silent(time.Now()), Path: l.finder.State(), Used: l.used}
	if why := l.pairs.relays.without(); why != "" && !st.Path.Standing {
		st.Path.Why = strings.TrimPrefix(st.Path.Why+"; "+why, "; ")
	}
	return st
}

// Look is Status as of now, with the round trips of the last checks. Where Run does
// not answer before ctx ends, or has ended, it is Status.
func (p *Pairs) Look(ctx context.Context) []Status {
	list := make(chan []Status, 1)
	select {
	case p.events <- func(time.Time) { list <- p.statuses() }:
	case <-p.ended:
		return p.Status()
	case <-ctx.Done():
		return p.Status()
	}
	select {
	case l := <-list:
		return l
	case <-p.ended:
	case <-ctx.Done():
	}
	return p.Status()
}

// statuses is for Run.
func (p *Pairs) statuses() []Status {
	list := make([]Status, 0, len(p.links))
	for _, l := range p.links {
		list = append(list, l.status())
	}
	slices.SortFunc(list, func(a, b Status) int { return cmp.Compare(a.Node, b.Node) })
	return list
}
