// SPDX-License-Identifier: Apache-2.0

package pair

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

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
