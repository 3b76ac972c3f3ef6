// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// plainTable holds what is known of a few nodes beside their records, as plain
// text. They are few, so that the published map is copied when it changes.
type plainTable[T any] struct {
	prefix string
	parse  func(text string) (T, error)
	set    map[mesh.NodeID]T
}

func (t *plainTable[T]) under() string { return t.prefix }

// put takes over a changed value. An undecodable one is as good as absent.
func (t *plainTable[T]) put(name string, value []byte) error {
	v, err := t.parse(string(value))
	if err != nil {
		t.remove(name)
		return err
	}
	next := make(map[mesh.NodeID]T, len(t.set)+1)
	maps.Copy(next, t.set)
	next[mesh.NodeID(name)] = v
	t.set = next
	return nil
}

func (t *plainTable[T]) remove(name string) {
	if _, ok := t.set[mesh.NodeID(name)]; ok {
		t.set = maps.Clone(t.set)
		delete(t.set, mesh.NodeID(name))
	}
}

func (t *plainTable[T]) clear() { t.set = nil }

func parseTime(text string) (time.Time, error) { return time.Parse(time.RFC3339, text) }

// parseSeconds reads a time for which something was watched.
func parseSeconds(text string) (time.Duration, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	return time.Duration(n) * time.Second, err
}

func formatSeconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

// nodeTable holds the decoded nodes.
type nodeTable struct{ set mesh.Nodes }

func (t *nodeTable) under() string { return prefixNodes }

// put takes over a changed value. An undecodable one is as good as absent.
func (t *nodeTable) put(name string, value []byte) error {
	n, err := decode(value, &v1.MeshNode{}, mesh.NodeFromProto)
	if err == nil && string(n.ID) != name {
		err = fmt.Errorf("the value is that of %q", n.ID)
	}
	if err != nil {
		t.remove(name)
		return err
	}
	t.set = t.set.With(n)
	return nil
}

func (t *nodeTable) remove(name string) { t.set = t.set.Without(mesh.NodeID(name)) }

func (t *nodeTable) clear() { t.set = mesh.Nodes{} }

// edgeTable holds the decoded edges. Each has two keys, of which one alone will
// do; where they differ, the one whose source sorts first decides.
type edgeTable struct {
	set mesh.Edges
	// backward are the edges by the keys whose source sorts last. The values of
	// the others are in forward.
	forward, backward map[ends]mesh.Edge
}

// ends are the nodes of an edge, in order.
type ends struct{ a, b mesh.NodeID }

func (t *edgeTable) under() string { return prefixEdges }

func edgeName(source, target mesh.NodeID) string { return string(source) + "/" + string(target) }

// put takes over a changed value. An undecodable one is as good as absent.
func (t *edgeTable) put(name string, value []byte) error {
	e, err := decode(value, &v1.MeshEdge{}, mesh.EdgeFromProto)
	if err == nil && name != edgeName(e.Source, e.Target) && name != edgeName(e.Target, e.Source) {
		err = fmt.Errorf("the value is that of %q", edgeName(e.Source, e.Target))
	}
	if err != nil {
		t.remove(name)
		return err
	}
	side, at := t.side(name)
	side[at] = e
	t.settle(at)
	return nil
}

func (t *edgeTable) remove(name string) {
	side, at := t.side(name)
	if _, ok := side[at]; ok {
		delete(side, at)
		t.settle(at)
	}
}

// side returns where the edge with a key is kept, and its ends.
func (t *edgeTable) side(name string) (map[ends]mesh.Edge, ends) {
	if t.forward == nil {
		t.clear()
	}
	source, target, _ := strings.Cut(name, "/")
	if source < target {
		return t.forward, ends{mesh.NodeID(source), mesh.NodeID(target)}
	}
	return t.backward, ends{mesh.NodeID(target), mesh.NodeID(source)}
}

// settle makes the edge between two nodes what its keys say.
func (t *edgeTable) settle(at ends) {
	e, ok := t.forward[at]
	if !ok {
		e, ok = t.backward[at]
	}
	if ok {
		t.set = t.set.With(e)
	} else {
		t.set = t.set.Without(at.a, at.b)
	}
}

func (t *edgeTable) clear() {
	*t = edgeTable{forward: map[ends]mesh.Edge{}, backward: map[ends]mesh.Edge{}}
}
