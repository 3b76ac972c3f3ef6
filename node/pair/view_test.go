// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
)

// What pairs have, nobody else has; what waits for its session, a gateway carries
// if it can.
func TestView_Apply(t *testing.T) {
	peer := func(id mesh.NodeID, allowed ...string) mesh.Peer {
		p := mesh.Peer{Node: &mesh.Node{ID: id}}
		for _, a := range allowed {
			p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(a))
		}
		return p
	}
	one, two := "172.16.0.1/32", "172.16.0.2/32"
	for name, tt := range map[string]struct {
		plan, pairs []mesh.Peer
		waiting     []mesh.NodeID
		want        []mesh.Peer
	}{
		"nothing": {plan: []mesh.Peer{peer("gate", one, two)}, want: []mesh.Peer{peer("gate", one, two)}},
		"a pair takes what is its own": {
			plan: []mesh.Peer{peer("gate", one, two)}, pairs: []mesh.Peer{peer("bob", two)},
			want: []mesh.Peer{peer("bob", two), peer("gate", one)},
		},
		"a pair without a session takes nothing": {
			plan: []mesh.Peer{peer("gate", one, two)}, pairs: []mesh.Peer{peer("bob")},
			want: []mesh.Peer{peer("bob"), peer("gate", one, two)},
		},
		"a network around it stays": {
			plan: []mesh.Peer{peer("gate", "172.16.0.0/12")}, pairs: []mesh.Peer{peer("bob", two)},
			want: []mesh.Peer{peer("bob", two), peer("gate", "172.16.0.0/12")},
		},
		"an edge that waits is carried": {
			plan: []mesh.Peer{peer("bob", two), peer("gate", "172.16.0.0/12")}, waiting: []mesh.NodeID{"bob"},
			want: []mesh.Peer{peer("bob"), peer("gate", "172.16.0.0/12")},
		},
		"an edge that nobody carries waits with what it has": {
			plan: []mesh.Peer{peer("bob", two, one), peer("gate", one)}, waiting: []mesh.NodeID{"bob"},
			want: []mesh.Peer{peer("bob", two), peer("gate", one)},
		},
	} {
		v := &View{peers: tt.pairs, waiting: make(map[mesh.NodeID]bool)}
		for _, id := range tt.waiting {
			v.waiting[id] = true
		}
		before := mesh.PeersOf(slices.Clone(tt.plan)...)
		got := v.Apply(mesh.Plan{Peers: before}).Peers
		show := func(peers mesh.Peers) (list []string) {
			for p := range peers.All() {
				list = append(list, fmt.Sprint(p.Node.ID, p.AllowedIPs))
			}
			return list
		}
		if want := mesh.PeersOf(tt.want...); !slices.Equal(show(got), show(want)) {
			t.Errorf("%s: %v, want %v", name, show(got), show(want))
		}
		if was := mesh.PeersOf(tt.plan...); !slices.Equal(show(before), show(was)) {
			t.Errorf("%s: the plan itself was changed: %v", name, show(before))
		}
	}
}

// The plan is to have the pairs, each with what is behind it once it stands, and a
// network behind the node that the directory told of last.
func TestPairs_Publish(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		published := 0
		s.cfg.Publish = func() { published++ }
		office := netip.MustParsePrefix("192.168.7.0/24")
		link := func(k kind, id mesh.NodeID, n byte, stands bool) *link {
			p := s.peer(id, n)
			p.Endpoint, p.AllowedIPs = "10.0.0.1:1", append(p.AllowedIPs, office)
			l, _ := s.link(k, p)
			l.stands, l.answered = stands, time.Now()
			s.pass(time.Second)
			return l
		}
		link(sought, "first", 1, true)
		last := link(sought, "last", 3, true)
		link(sought, "waits", 4, false)
		link(edge, "edge", 5, true)
		link(edge, "weak", 6, false)
		link(gateway, "gate", 9, false)
		s.publish()
		has := func() (list []string) {
			for _, p := range s.View().Peers() {
				list = append(list, fmt.Sprint(p.Node.ID, p.Endpoint, p.AllowedIPs))
			}
			return list
		}
		if got, want := has(), []string{"first[172.16.0.1/32]", "last[172.16.0.3/32 192.168.7.0/24]", "waits[]"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if w := s.View().waiting; len(w) != 1 || !w["weak"] {
			t.Errorf("waiting are %v", w)
		}
		if m := s.metrics; value(t, m.pairs[byGateway]) != 5 || value(t, m.gateways[byGateway]) != 1 {
			t.Errorf("%v pairs, %v gateways", value(t, m.pairs[byGateway]), value(t, m.gateways[byGateway]))
		}
		if list := s.Status(); published != 1 || len(list) != 6 || list[0].Node != "edge" || !list[2].Gateway || list[2].Node != "gate" || list[3].Node != "last" || list[3].Gateway || !list[3].Stands || list[3].Used != last.used {
			t.Errorf("published %d times: %+v", published, list)
		}
	})
}

// What is due is done, and the plan told when it has changed.
func TestPairs_Tend(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		published := 0
		s.cfg.Publish = func() { published++ }
		s.follow()
		l, f := s.link(sought, s.peer("ada", 1))
		f.finds(true)
		s.tend(time.Now())
		if published != 1 || s.fresh || l.way == nil || !l.due.After(time.Now()) {
			t.Fatalf("published %d times, way %v", published, l.way)
		}
		due, way := l.due, s.ways[l.key]
		way.closed = true // seen when it is due
		if next := s.tend(time.Now()); published != 1 || next.After(due) || s.ways[l.key] != way {
			t.Errorf("published %d times; next after %s", published, time.Until(next))
		}
		s.pass(time.Until(due))
		if s.tend(time.Now()); s.ways[l.key] == way {
			t.Error("what was due was not done")
		}
		s.Offer(nil)
		s.Offer([]Server{turnServer("gate", "one")})
		if s.wait(); len(s.relays.servers) != 1 {
			t.Errorf("offered %d servers", len(s.relays.servers))
		}
	})
}

// A host that was asleep has its sessions made anew where it has a way, and all
// ways checked.
func TestPairs_Woke(t *testing.T) {
	inStill(t, func(t *testing.T, s *still) {
		stands, f := s.link(sought, s.peer("ada", 1))
		stands.tend(time.Now())
		wayless, _ := s.link(gateway, s.gate("gate", 9))
		waits, _ := s.link(sought, s.peer("cid", 3))
		waits.tend(time.Now())
		stands.stands = true
		s.pass(time.Hour)
		s.woke(time.Now())
		if s.shakes[stands.key] != 1 || stands.shook != time.Now() || s.shakes[wayless.key]+s.shakes[waits.key] != 0 || f.restarts != 1 || s.relays.doubted != time.Now() {
			t.Errorf("sessions %v, restarts %d", s.shakes, f.restarts)
		}
	})
}
