// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// meshService serves v1.Mesh. A node that follows a gateway answers from the
// part of the mesh that it was told of.
type meshService struct{ state State }

var _ v1connect.MeshHandler = (*meshService)(nil)

// GetNode returns one node.
func (m *meshService) GetNode(ctx context.Context, req *connect.Request[v1.GetNodeRequest]) (*connect.Response[v1.MeshNode], error) {
	id, err := mesh.ParseNodeID(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	s, err := current(ctx, m.state)
	if err != nil {
		return nil, err
	}
	n, ok := s.Nodes.Get(id)
	if !ok {
		return nil, unknownNode(id)
	}
	return connect.NewResponse(mesh.NodeToProto(n)), nil
}

// ListNodes returns every node, sorted by id.
func (m *meshService) ListNodes(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[v1.NodeList], error) {
	s, err := current(ctx, m.state)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&v1.NodeList{Nodes: nodesToProto(s)}), nil
}

// GetMeshGraph returns ids and edges, also as Graphviz text.
func (m *meshService) GetMeshGraph(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[v1.MeshGraph], error) {
	s, err := current(ctx, m.state)
	if err != nil {
		return nil, err
	}
	graph := &v1.MeshGraph{Edges: edgesToProto(s), Dot: dot(s)}
	for id := range s.Nodes.All() {
		graph.Nodes = append(graph.Nodes, string(id))
	}
	return connect.NewResponse(graph), nil
}

func nodesToProto(s *mesh.Snapshot) []*v1.MeshNode {
	nodes := make([]*v1.MeshNode, 0, s.Nodes.Len())
	for _, n := range s.Nodes.All() {
		nodes = append(nodes, mesh.NodeToProto(n))
	}
	return nodes
}

func edgesToProto(s *mesh.Snapshot) []*v1.MeshEdge {
	all := s.AllEdges()
	edges := make([]*v1.MeshEdge, 0, len(all))
	for _, e := range all {
		edges = append(edges, mesh.EdgeToProto(e))
	}
	return edges
}

// dot draws the mesh in the Graphviz language. Ids are quoted strings: never
// HTML labels, and nothing in an id can end its quotes.
func dot(s *mesh.Snapshot) string {
	var b strings.Builder
	quote := quoterDOT()
	b.WriteString("graph mesh {\n")
	for id := range s.Nodes.All() {
		b.WriteString("\t" + quote(string(id)) + ";\n")
	}
	for _, e := range s.AllEdges() {
		b.WriteString("\t" + quote(string(e.Source)) + " -- " + quote(string(e.Target)) +
			" [weight=" + strconv.Itoa(int(e.Weight)) + "];\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// quoterDOT writes strings as double-quoted DOT strings. Backslashes are doubled,
// as they would begin an escape in a label; line ends become spaces. To make it
// costs more than to use it.
func quoterDOT() func(string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ", "\r", " ", "\x00", "")
	return func(s string) string { return `"` + escape.Replace(s) + `"` }
}
