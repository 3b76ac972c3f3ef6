// SPDX-License-Identifier: Apache-2.0

package pair

import (
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
	// Path is where they go, or why they do not.
	Path path.State
	// Used is when a packet last went or came.
	Used time.Time
}

// Status lists the pairs, and the ways to gateways, by node id.
func (p *Pairs) Status() []Status { return *p.status.Load() }

func (l *link) status() Status {
	return Status{Node: l.peer.Node.ID, Gateway: l.kind == gateway, Stands: l.stands, Path: l.finder.State(), Used: l.used}
}
