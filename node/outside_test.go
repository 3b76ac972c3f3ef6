// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// What the tunnel and the replicas run on is told to the host, and nothing that a
// peer only says of itself.
func TestOutside(t *testing.T) {
	at := func(list ...string) []netip.AddrPort {
		var out []netip.AddrPort
		for _, e := range list {
			out = append(out, netip.MustParseAddrPort(e))
		}
		return out
	}
	n := &Node{}
	n.replicas = newLookups(func() []string { return []string{"10.0.0.5:7000", "gw2.example.com:7000", "[::ffff:10.0.1.5]:7000"} },
		func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("10.0.2.5")}, nil
		}, nil)
	n.replicas.lookUp(t.Context())
	plan := &mesh.Plan{
		Self: &mesh.Node{PrimaryEndpoint: "198.18.77.1", WireGuardEndpoints: at("198.18.77.1:51820")},
		Peers: mesh.PeersOf(
			mesh.Peer{Endpoint: "198.18.80.1:51820", Node: &mesh.Node{ID: "a", WireGuardEndpoints: at("198.18.80.1:51820", "10.9.0.1:51820")}},
			mesh.Peer{Endpoint: "name.example.com:51820", Node: &mesh.Node{ID: "b", PrimaryEndpoint: "name.example.com"}},
			mesh.Peer{Node: &mesh.Node{ID: "c", PrimaryEndpoint: "198.18.77.2", Features: []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP, Port: 443}}}},
			mesh.Peer{Node: &mesh.Node{ID: "d"}},
		),
	}
	var got []string
	for _, addr := range n.outside(plan) {
		got = append(got, addr.String())
	}
	slices.Sort(got)
	want := []string{"10.0.0.5", "10.0.1.5", "10.0.2.5", "198.18.77.1", "198.18.77.2", "198.18.80.1"}
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	plan.Routes = []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32"), netip.MustParsePrefix("2001:db8::9/128"), netip.MustParsePrefix("198.51.100.0/24")}
	n.contacts.last.Store(&contactsView{mesh.InterfaceStats{Peers: []mesh.PeerStats{
		{Endpoint: "203.0.113.9:4500"}, {Endpoint: "[2001:db8::9]:4500"}, {Endpoint: "[::ffff:203.0.113.9]:1"}, // found there
		{Endpoint: "198.51.100.7:4500"}, {Endpoint: "203.0.113.10:4500"}, {Endpoint: "datachannel 7"}, {}, // in no route of its own
	}}, time.Now().Add(time.Hour)})
	got = nil
	for _, addr := range n.outside(plan) {
		got = append(got, addr.String())
	}
	slices.Sort(got)
	want = append(want, "2001:db8::9", "203.0.113.9")
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("with peers in routes: got %v, want %v", got, want)
	}
	n.replicas = nil // a node behind a gateway
	if len(n.outside(&mesh.Plan{Self: &mesh.Node{}})) != 0 {
		t.Error("a node behind a gateway has replicas")
	}
}
