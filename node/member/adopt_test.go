// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// twoGateways are two processes over one state, each of which is a gateway.
func twoGateways(t testing.TB) (a, b fixture) {
	t.Helper()
	a = newFixture(t)
	r := request(t, "gw2")
	r.Node.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}}
	r.Node.PrimaryEndpoint = "192.0.2.2"
	a.join(r)
	self := *a.registry.Snapshot().Node("gw")
	self.Features = r.Node.Features
	if err := a.Declare(t.Context(), self, nil); err != nil {
		t.Fatal(err)
	}
	return a, newReplica(t, a.store, "gw2")
}

// adopt adopts on a state that has all that was acknowledged, as a call does.
func (f fixture) adopt(id mesh.NodeID) *mesh.Snapshot {
	f.t.Helper()
	if _, err := f.registry.Sync(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	s, err := f.Adopt(f.t.Context(), id)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// linked are the nodes that have a stored edge to id.
func linked(s *mesh.Snapshot, id mesh.NodeID) []mesh.NodeID {
	var list []mesh.NodeID
	for e := range s.Edges.Of(id) {
		list = append(list, map[bool]mesh.NodeID{true: e.Target, false: e.Source}[e.Source == id])
	}
	slices.Sort(list)
	return list
}

func TestAdopt_MovesAMemberAndNothingElse(t *testing.T) {
	a, b := twoGateways(t)
	a.join(request(t, "cam"))
	r := request(t, "nas")
	r.DirectPeers = map[mesh.NodeID]v1.ConnectProtocol{"cam": v1.ConnectProtocol_CONNECT_NATIVE}
	r.Routes = prefixes("198.18.1.0/24")
	before := a.join(r)
	if got := linked(before, "nas"); !slices.Equal(got, []mesh.NodeID{"cam", "gw"}) {
		t.Fatalf("joined with edges to %v", got)
	}
	s := b.adopt("nas")
	if got := linked(s, "nas"); !slices.Equal(got, []mesh.NodeID{"cam", "gw2"}) {
		t.Errorf("adopted with edges to %v", got)
	}
	if diff := cmp.Diff(before.Node("nas"), s.Node("nas"), equal); diff != "" {
		t.Errorf("the record changed: %s", diff)
	}
	if len(s.Routes) != len(before.Routes) {
		t.Errorf("routes: %v, before %v", s.Routes, before.Routes)
	}
	if got := linked(s, "cam"); !slices.Equal(got, []mesh.NodeID{"gw", "nas"}) {
		t.Errorf("another node has edges to %v", got)
	}
	if again := b.adopt("nas"); again.Revision != s.Revision {
		t.Errorf("once more: revision %d after %d", again.Revision, s.Revision)
	}
	back, err := a.Join(t.Context(), r)
	if err != nil || !slices.Equal(linked(back, "nas"), []mesh.NodeID{"cam", "gw"}) {
		t.Errorf("a join elsewhere leaves edges to %v, %v", linked(back, "nas"), err)
	}
}

// What an admin set on an edge to a gateway is not for a move to undo.
func TestAdopt_KeepsEdgesThatWereAskedFor(t *testing.T) {
	for name, edge := range map[string]mesh.Edge{
		"attributes":     {Weight: 1, Attributes: map[string]string{v1.EdgeAttribute_EDGE_ATTRIBUTE_ICE.String(): "true"}},
		"another weight": {Weight: 3},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := twoGateways(t)
			a.join(request(t, "nas"))
			edge.Source, edge.Target = "gw", "nas"
			if _, err := a.registry.Update(t.Context(), func(tx *registry.Tx) error { return tx.PutEdge(edge) }); err != nil {
				t.Fatal(err)
			}
			s := b.adopt("nas")
			if got := linked(s, "nas"); !slices.Equal(got, []mesh.NodeID{"gw", "gw2"}) {
				t.Fatalf("edges to %v", got)
			}
			got, _ := s.Edges.Get("gw", "nas")
			if diff := cmp.Diff(edge, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("the edge is another one (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("asked for by the node", func(t *testing.T) {
		a, b := twoGateways(t)
		r := request(t, "nas")
		r.DirectPeers = map[mesh.NodeID]v1.ConnectProtocol{"gw": v1.ConnectProtocol_CONNECT_ICE}
		a.join(r)
		if got := linked(b.adopt("nas"), "nas"); !slices.Equal(got, []mesh.NodeID{"gw", "gw2"}) {
			t.Errorf("edges to %v", got)
		}
	})
}

func TestAdopt_RefusesStrangersAndGateways(t *testing.T) {
	a, b := twoGateways(t)
	version := a.version()
	_, err := b.Adopt(t.Context(), "nobody")
	b.wantRefused(err, mesh.ErrRemoved, "nobody")
	for _, gate := range []mesh.NodeID{"gw", "gw2"} {
		_, err = b.Adopt(t.Context(), gate)
		b.wantRefused(err, mesh.ErrPrecondition, string(gate))
	}
	if a.version() != version {
		t.Error("something was written")
	}
}
