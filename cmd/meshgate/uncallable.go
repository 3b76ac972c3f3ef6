// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// tellUncallable says of an edge that was put whether no packet can take it. Who
// may not read its nodes is told nothing.
func (a *app) tellUncallable(ctx context.Context, c calls, m proto.Message) {
	p, ok := m.(*v1.MeshEdge)
	if !ok {
		return
	}
	e, err := mesh.EdgeFromProto(p)
	if err != nil {
		return
	}
	var ends [2]*mesh.Node
	for i, id := range [2]mesh.NodeID{e.Source, e.Target} {
		answer, err := c.Mesh().GetNode(ctx, ask(c, &v1.GetNodeRequest{Id: string(id)}))
		if err != nil {
			return
		}
		if ends[i], err = mesh.NodeFromProto(answer.Msg); err != nil {
			return
		}
	}
	if text := uncallable(e, ends[0], ends[1]); text != "" {
		fmt.Fprintln(a.stderr, text)
	}
}

// uncallable is a sentence about an edge of which neither end can call the other,
// and that has nothing else to find a path by; empty for others. Plans follow one
// of plain WireGuard, as an end may know what it does not say.
func uncallable(e mesh.Edge, a, b *mesh.Node) string {
	for _, o := range []*mesh.Node{a, b} {
		if o.PrimaryEndpoint != "" || len(o.WireGuardEndpoints) > 0 || o.HoldsState() {
			return "" // as far as can be told from here
		}
	}
	if a.Paths && b.Paths {
		return "" // a path is looked for
	}
	if e.Protocol() != v1.ConnectProtocol_CONNECT_NATIVE {
		return deaf(a, b)
	}
	return fmt.Sprintf("edge %s to %s: neither of the two says where it can be called (meshgate join --public-address), and they do not both look for "+
		"a path: if no packet gets through, take the edge back (meshgate delete edges --from %s --to %s), and a gateway carries them",
		a.ID, b.ID, a.ID, b.ID)
}

// deaf is a sentence about an edge for which a path has to be found, where one of
// the two is a stock WireGuard peer; empty where none is. No plan has such an edge.
func deaf(a, b *mesh.Node) string {
	for _, o := range []*mesh.Node{a, b} {
		if !o.Paths && !o.RunsMeshgate() {
			return fmt.Sprintf("edge %s to %s leads nowhere: %s is a stock WireGuard peer, which looks for no path, and neither of the two says where it can be called "+
				"(meshgate join --public-address): a gateway carries their packets, as without it", a.ID, b.ID, o.ID)
		}
	}
	return ""
}
