// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// countedPlans says that every node is a pair of every other one, and counts how
// often it is asked.
type countedPlans struct{ pairs, holders int }

func (p *countedPlans) Pair(s *mesh.Snapshot, _, b mesh.NodeID) (mesh.Peer, error) {
	p.pairs++
	n := s.Node(b)
	if n == nil {
		return mesh.Peer{}, mesh.Refuse(mesh.ErrNotFound, "no node %q", b)
	}
	return mesh.Peer{Node: n, AllowedIPs: n.Prefixes()}, nil
}

func (p *countedPlans) MaySignal(*mesh.Snapshot, mesh.NodeID, mesh.NodeID) error { return nil }

func (p *countedPlans) Holder(s *mesh.Snapshot, _ mesh.NodeID, addr netip.Addr) (mesh.NodeID, error) {
	p.holders++
	if n, ok := s.NodeByAddr(addr); ok {
		return n.ID, nil
	}
	return "", mesh.Refuse(mesh.ErrNotFound, "nobody holds %s", addr)
}

// A state that differs in neither of the two nodes, the ACLs, groups and routes
// is not even asked about, and one that answers the same is not told.
func TestPairFollower_AsksAboutWhatMayHaveChanged(t *testing.T) {
	snap := testFake(t).snap
	desk := &mesh.Node{ID: "desk", PublicKey: testKey(t), IPv4: netip.MustParsePrefix("10.9.0.3/32")}
	base := *snap
	base.Nodes = snap.Nodes.With(desk)
	plans := &countedPlans{}
	f := &pairFollower{service: &pairsService{plans: plans, membership: &membershipService{}}, id: "phone", wanted: make(map[string]*wanted)}
	told := 0
	tell := func(s *mesh.Snapshot) {
		t.Helper()
		if err := f.tell(t.Context(), s, func(m *meshgatev1.FollowPairsResponse) error { told += len(m.GetPairs()); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.ask(&meshgatev1.FollowPairsRequest{NodeId: "phone", Add: []string{"desk", "10.9.0.3", "10.9.0.77"}}); err != nil {
		t.Fatal(err)
	}
	tell(&base)
	if told != 3 || plans.pairs != 2 || plans.holders != 2 {
		t.Fatalf("at first: told %d, asked %d and %d", told, plans.pairs, plans.holders)
	}
	other := func(s mesh.Snapshot) mesh.Snapshot {
		s.Version++
		s.Nodes = s.Nodes.With(&mesh.Node{ID: "other", PublicKey: testKey(t), IPv4: netip.MustParsePrefix("10.9.0.4/32")})
		s.Edges = s.Edges.With(mesh.Edge{Source: "gw", Target: "other"})
		return s
	}
	for _, c := range []struct {
		what        string
		change      func(mesh.Snapshot) mesh.Snapshot
		asked, told int
	}{
		{"another node and its edge", other, 0, 0},
		{"the same again", func(s mesh.Snapshot) mesh.Snapshot { return s }, 0, 0},
		{"the node that is wanted", func(s mesh.Snapshot) mesh.Snapshot {
			n := *desk
			n.PrimaryEndpoint = "192.0.2.9"
			s.Nodes = s.Nodes.With(&n)
			return s
		}, 2, 2},
		{"the same record in other memory", func(s mesh.Snapshot) mesh.Snapshot {
			n := *s.Node("desk")
			s.Nodes = s.Nodes.With(&n)
			return s
		}, 2, 0},
		{"the node that asks", func(s mesh.Snapshot) mesh.Snapshot {
			n := *s.Node("phone")
			s.Nodes = s.Nodes.With(&n)
			return s
		}, 2, 0},
		{"an edge between the two", func(s mesh.Snapshot) mesh.Snapshot {
			s.Edges = s.Edges.With(mesh.Edge{Source: "desk", Target: "phone"})
			return s
		}, 2, 0},
		{"ACLs", func(s mesh.Snapshot) mesh.Snapshot { s.ACLs = []mesh.ACL{{Name: "new"}}; return s }, 2, 0},
		{"groups", func(s mesh.Snapshot) mesh.Snapshot { s.Groups = []mesh.Group{{Name: "g"}}; return s }, 2, 0},
		{"routes of the other", func(s mesh.Snapshot) mesh.Snapshot {
			s.Routes = []mesh.Route{{Name: "r", Node: "desk", Destinations: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
			return s
		}, 2, 0},
		{"and then who is near", other, 2, 0},
		{"somebody at an address of nobody", func(s mesh.Snapshot) mesh.Snapshot {
			s.Routes = nil
			s.Nodes = s.Nodes.With(&mesh.Node{ID: "late", PublicKey: testKey(t), IPv4: netip.MustParsePrefix("10.9.0.77/32")})
			return s
		}, 3, 1},
	} {
		*plans, told = countedPlans{}, 0
		base = c.change(base)
		next := base
		tell(&next)
		if plans.pairs != c.asked || told != c.told {
			t.Errorf("%s: asked %d times, told %d; want %d and %d", c.what, plans.pairs, told, c.asked, c.told)
		}
	}
	gone := base
	gone.Nodes = gone.Nodes.Without("phone")
	if err := f.tell(t.Context(), &gone, nil); !errors.Is(err, mesh.ErrNotFound) || !strings.Contains(err.Error(), "join first") {
		t.Errorf("a node that left: %v", err)
	}
}

// A node is told why it has no pair in the words that are for people.
func TestWanted_TellsReasonsWithoutTheirKind(t *testing.T) {
	snap, plans := testFake(t).snap, &countedPlans{}
	for text, want := range map[string]string{"nobody": `no node "nobody"`, "10.9.0.77": "nobody holds 10.9.0.77"} {
		addr, _ := netip.ParseAddr(text)
		w := &wanted{text: text, addr: addr}
		if news := w.decide(plans, snap, "phone"); !news || w.message().GetGoneReason() != want || w.message().GetPeer() != nil {
			t.Errorf("%s: %v, %v", text, news, w.message())
		}
		if w.decide(plans, snap, "phone") {
			t.Errorf("%s: the same is told again", text)
		}
	}
	if got := words(mesh.ErrUnavailable); got != mesh.ErrUnavailable.Error() {
		t.Errorf("of another error: %q", got)
	}
}

func TestPairsService_CountsStreams(t *testing.T) {
	p := &pairsService{}
	var release []func()
	for range maxPairStreams {
		r, err := p.enter("phone")
		if err != nil {
			t.Fatal(err)
		}
		release = append(release, r)
	}
	if _, err := p.enter("phone"); code(err) != connect.CodeResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	if r, err := p.enter("desk"); err != nil {
		t.Errorf("of another node: %v", err)
	} else {
		r()
	}
	for _, r := range release {
		r()
	}
	if len(p.streams) != 0 {
		t.Errorf("left: %v", p.streams)
	}
}
