// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// wantedMesh is the test mesh with a node desk, to which phone has no edge, and a
// node router with a network behind it.
func wantedMesh(t *testing.T) mesh.Snapshot {
	t.Helper()
	s := *testFake(t).snap
	for id, addr := range map[mesh.NodeID]string{"desk": "10.9.0.3/32", "router": "10.9.0.4/32"} {
		s.Nodes = s.Nodes.With(&mesh.Node{ID: id, PublicKey: testKey(t), IPv4: netip.MustParsePrefix(addr)})
	}
	s.Groups = []mesh.Group{{Name: "routers", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "router"}}}}
	s.Routes = []mesh.Route{{Name: "r", Node: "router", Destinations: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	return s
}

// Who is near decides about answers that routes are, or may be, part of, and about
// no others.
func TestWanted_MayDifferByRoutes(t *testing.T) {
	s := wantedMesh(t)
	desk, router := s.Node("desk"), s.Node("router")
	routers, none := map[mesh.NodeID]bool{"router": true}, map[mesh.NodeID]bool{}
	addr := netip.MustParseAddr
	for name, c := range map[string]struct {
		w       wanted
		id      mesh.NodeID
		routers map[mesh.NodeID]bool
		want    bool
	}{
		"a node that routes nothing":         {wanted{text: "desk", other: desk}, "phone", routers, false},
		"its address":                        {wanted{text: "10.9.0.3", addr: addr("10.9.0.3"), other: desk}, "phone", routers, false},
		"asked by a router":                  {wanted{text: "desk", other: desk}, "router", routers, true},
		"a router":                           {wanted{text: "router", other: router}, "phone", routers, true},
		"a router while nobody routes":       {wanted{text: "router", other: router}, "phone", none, false},
		"behind a router":                    {wanted{text: "10.0.0.1", addr: addr("10.0.0.1"), other: router}, "phone", routers, true},
		"an address of nobody":               {wanted{text: "8.8.8.8", addr: addr("8.8.8.8")}, "phone", routers, true},
		"an address of nobody, and no route": {wanted{text: "8.8.8.8", addr: addr("8.8.8.8")}, "phone", none, false},
		"a node that is not there":           {wanted{text: "nobody"}, "phone", routers, false},
		"a node that came":                   {wanted{text: "desk"}, "phone", none, true},
		"a node that went":                   {wanted{text: "nobody", other: desk}, "phone", none, true},
		"an edge that came":                  {wanted{text: "phone", other: s.Node("phone")}, "gw", none, true},
		"an edge that stays":                 {wanted{text: "phone", other: s.Node("phone"), linked: true}, "gw", none, false},
		"an edge that went":                  {wanted{text: "desk", other: desk, linked: true}, "gw", none, true},
	} {
		if got := c.w.mayDiffer(&s, c.id, c.routers); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if linked(&s, "nobody", "phone") || linked(&s, "phone", "nobody") || !linked(&s, "gw", "phone") {
		t.Error("edges of nobody, or none of the mesh")
	}
}

// holderPlans say that one node holds every address.
type holderPlans struct {
	countedPlans
	id mesh.NodeID
}

func (p *holderPlans) Holder(*mesh.Snapshot, mesh.NodeID, netip.Addr) (mesh.NodeID, error) {
	p.holders++
	return p.id, nil
}

// An answer keeps what it was made of.
func TestWanted_DecideNotesWhatItIsMadeOf(t *testing.T) {
	s := wantedMesh(t)
	s.Edges = s.Edges.With(mesh.Edge{Source: "phone", Target: "router"})
	for text, c := range map[string]struct {
		holder        mesh.NodeID
		linked, asked bool
	}{
		"desk": {}, "router": {linked: true},
		"10.9.0.3": {holder: "desk", asked: true}, "10.9.0.4": {holder: "router", linked: true, asked: true},
		"10.0.0.1": {holder: "router", linked: true, asked: true},
	} {
		plans := &holderPlans{id: c.holder}
		w := &wanted{text: text}
		w.addr, _ = netip.ParseAddr(text)
		if !w.decide(plans, &s, "phone") || w.linked != c.linked || (plans.holders == 1) != c.asked || w.other == nil || !w.told {
			t.Errorf("%s: %+v", text, w)
		}
	}
}

// A state is decided by once, though routes are part of answers.
func TestPairFollower_DecidesOncePerState(t *testing.T) {
	s := wantedMesh(t)
	f := &pairFollower{service: &pairsService{}, id: "phone", wanted: map[string]*wanted{"router": {text: "router", other: s.Node("router"), told: true}}}
	self := s.Node("phone")
	if n := len(f.stale(&s, self)); n != 1 {
		t.Errorf("at first %d are asked about", n)
	}
	if n := len(f.stale(&s, self)); n != 0 {
		t.Errorf("again %d are asked about", n)
	}
	next := s
	if n := len(f.stale(&next, self)); n != 1 {
		t.Errorf("by another state %d are asked about", n)
	}
	for name, change := range map[string]func(*mesh.Snapshot){
		"IPv4": func(s *mesh.Snapshot) { s.IPv4 = netip.MustParsePrefix("10.0.0.0/8") }, "IPv6": func(s *mesh.Snapshot) { s.IPv6 = netip.Prefix{} },
	} {
		f.decided, f.wanted = &s, map[string]*wanted{"desk": {text: "desk", other: s.Node("desk"), told: true}}
		next := s
		change(&next)
		if n := len(f.stale(&next, self)); n != 1 {
			t.Errorf("another %s: %d are asked about", name, n)
		}
	}
}

// The nodes that offer routes are those of the state, also when only a group has
// changed.
func TestForwarders_FollowTheState(t *testing.T) {
	s := wantedMesh(t)
	s.Routes = []mesh.Route{{Name: "r", Node: "group:routers", Destinations: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	var f forwarders
	check := func(what string, want ...mesh.NodeID) {
		t.Helper()
		got := f.of(&s)
		if len(got) != len(want) {
			t.Errorf("%s: %v", what, got)
		}
		for _, id := range want {
			if !got[id] {
				t.Errorf("%s: %v", what, got)
			}
		}
	}
	check("a group", "router")
	s.Groups = []mesh.Group{{Name: "routers", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "desk"}}}}
	check("another one", "desk")
	s.Routes = nil
	check("no route")
}
