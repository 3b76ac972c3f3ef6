// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/meshgate/meshgate/node/mesh"
)

// parseDOT reads the part of the Graphviz language that dot writes, and nothing
// else: "graph NAME {", statements, "}". A node is a quoted string; an edge is
// two of them with "--" in between and one attribute. It returns the texts of
// the strings as Graphviz's scanner sees them.
func parseDOT(text string) (nodes []string, edges [][3]string, err error) {
	body, ok := strings.CutPrefix(text, "graph mesh {\n")
	if !ok {
		return nil, nil, fmt.Errorf("no head in %q", text)
	}
	for {
		if body == "}\n" {
			return nodes, edges, nil
		}
		if body, ok = strings.CutPrefix(body, "\t"); !ok {
			return nil, nil, fmt.Errorf("no statement at %q", body)
		}
		var id, target, weight string
		if id, body, err = scanQuoted(body); err != nil {
			return nil, nil, err
		}
		if rest, isNode := strings.CutPrefix(body, ";\n"); isNode {
			nodes, body = append(nodes, id), rest
			continue
		}
		if body, ok = strings.CutPrefix(body, " -- "); !ok {
			return nil, nil, fmt.Errorf("neither node nor edge at %q", body)
		}
		if target, body, err = scanQuoted(body); err != nil {
			return nil, nil, err
		}
		if body, ok = strings.CutPrefix(body, " [weight="); !ok {
			return nil, nil, fmt.Errorf("no attribute at %q", body)
		}
		if weight, body, ok = strings.Cut(body, "];\n"); !ok || strings.Trim(weight, "-0123456789") != "" {
			return nil, nil, fmt.Errorf("weight %q", weight)
		}
		edges = append(edges, [3]string{id, target, weight})
	}
}

// scanQuoted reads a double-quoted string as Graphviz's scanner does: \" is a
// quote, \\ stays two backslashes, and a line end has no business in there.
func scanQuoted(text string) (id, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		return "", "", fmt.Errorf("no string at %q", text)
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			return b.String(), text[i+1:], nil
		case c == '\n' || c == '\r' || c == 0:
			return "", "", fmt.Errorf("byte %d in a string", c)
		case c == '\\' && i+1 < len(text) && text[i+1] == '"':
			b.WriteByte('"')
			i++
		case c == '\\' && i+1 < len(text) && text[i+1] == '\\':
			b.WriteString(`\\`)
			i++
		default:
			b.WriteByte(c)
		}
	}
	return "", "", fmt.Errorf("no end of %q", text)
}

func TestDOT_HoldsWhatTheMeshHolds(t *testing.T) {
	s := &mesh.Snapshot{}
	for _, id := range []mesh.NodeID{"gw-1", "graph", "a b", "x]; {", "<b>", "日本", "a--b", "#", "strict", "a;b=c"} {
		s.Nodes = s.Nodes.With(&mesh.Node{ID: id})
		if id != "gw-1" {
			s.Edges = s.Edges.With(mesh.Edge{Source: min("gw-1", id), Target: max("gw-1", id), Weight: int32(s.Edges.Len())})
		}
	}
	nodes, edges, err := parseDOT(dot(s))
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != s.Nodes.Len() || len(edges) != s.Edges.Len() {
		t.Errorf("%d nodes, %d edges", len(nodes), len(edges))
	}
	i := 0
	for id := range s.Nodes.All() {
		if nodes[i] != string(id) {
			t.Errorf("node %q, want %q", nodes[i], id)
		}
		i++
	}
	i = 0
	for e := range s.Edges.All() {
		if want := [3]string{string(e.Source), string(e.Target), fmt.Sprint(e.Weight)}; edges[i] != want {
			t.Errorf("edge %q, want %q", edges[i], want)
		}
		i++
	}
	if nodes, edges, err := parseDOT(dot(&mesh.Snapshot{})); err != nil || len(nodes)+len(edges) != 0 {
		t.Errorf("of nothing: %v, %v, %v", nodes, edges, err)
	}
}

// Whatever an id holds, it stays one node.
func FuzzDOT(f *testing.F) {
	for _, seed := range []string{"a", `a"`, `a\`, `\"; evil -- "`, "a\nb", "\x00", `\\`, `"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if !utf8.ValidString(id) || id == "~" { // the other end of the edge
			return
		}
		s := &mesh.Snapshot{
			Nodes: mesh.NodesOf(&mesh.Node{ID: mesh.NodeID(id)}),
			Edges: mesh.EdgesOf(mesh.Edge{Source: min(mesh.NodeID(id), "~"), Target: max(mesh.NodeID(id), "~"), Weight: 1}),
		}
		nodes, edges, err := parseDOT(dot(s))
		if err != nil || len(nodes) != 1 || len(edges) != 1 || (edges[0][0] != nodes[0] && edges[0][1] != nodes[0]) {
			t.Fatalf("%q gave %q, %q, %v", id, nodes, edges, err)
		}
		if mesh.ValidName(id) == nil && nodes[0] != id {
			t.Errorf("%q gave %q", id, nodes[0])
		}
	})
}
