// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
)

// Whatever comes, goes and changes: the peers are those that are made of nothing
// else than the plan.
func TestDevicePeers_AreThoseOfThePlan(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	peer := func(i int) mesh.Peer {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		n := &mesh.Node{ID: mesh.NodeID(fmt.Sprintf("n%02d", i)), PublicKey: key.Public()}
		return mesh.Peer{Node: n, AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}), 32)}}
	}
	var peers mesh.Peers
	for i := range 20 {
		peers = peers.With(peer(i))
	}
	incremental := devicePeers{calls: true}
	for range 300 {
		all := slices.Collect(peers.All())
		switch p := all[random.IntN(len(all))]; random.IntN(7) {
		case 0:
			if len(all) > 1 {
				peers = peers.Without(p.Node.ID)
			}
		case 1:
			peers = peers.With(peer(random.IntN(20)))
		case 2:
			p.Endpoint = []string{"", "192.0.2.1:1", "192.0.2.2:2"}[random.IntN(3)]
			peers = peers.With(p)
		case 3:
			p.AllowedIPs = append(slices.Clip(p.AllowedIPs), netip.MustParsePrefix("10.8.0.0/16"))[random.IntN(2):]
			peers = peers.With(p)
		case 4: // nothing changes
		case 6:
			p.Veiled, p.Veils = [][]netip.Prefix{nil, p.AllowedIPs}[random.IntN(2)], random.IntN(2) == 0
			peers = peers.With(p)
		case 5: // all are the memory of nothing before
			peers = mesh.PeersOf(all...)
		}
		var nodes []*mesh.Node
		for p := range peers.All() {
			nodes = append(nodes, p.Node)
		}
		s := &mesh.Snapshot{Nodes: mesh.NodesOf(nodes...)}
		anew := devicePeers{calls: true}
		if diff := cmp.Diff(flat(anew.of(s, peers)), flat(incremental.of(s, peers)), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Fatal(diff)
		}
	}
}

// One that joins, changes or leaves among ten thousand makes one list anew, or
// two of it when it is full.
func TestDevicePeers_ShareLists(t *testing.T) {
	peer := func(i int) mesh.Peer { return mesh.Peer{Node: &mesh.Node{ID: mesh.NodeID(fmt.Sprintf("n%05d", i))}} }
	var peers mesh.Peers
	for i := range 10_000 {
		peers = peers.With(peer(2 * i))
	}
	var d devicePeers
	before := d.of(&mesh.Snapshot{}, peers)
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		p := peer(random.IntN(20_010))
		if _, ok := peers.Get(p.Node.ID); ok && random.IntN(2) == 0 {
			peers = peers.Without(p.Node.ID)
		} else {
			peers = peers.With(p)
		}
		lists := d.of(&mesh.Snapshot{}, peers)
		was := make(map[*wg.Peer]int)
		for _, list := range before {
			was[&list[0]] = len(list)
		}
		fresh := 0
		for _, list := range lists {
			if was[&list[0]] != len(list) {
				fresh++
			}
		}
		if fresh > 2 {
			t.Fatalf("%d lists of %d made anew", fresh, len(lists))
		}
		before = lists
	}
}

// flat is what lists hold.
func flat(lists [][]wg.Peer) []wg.Peer { return slices.Concat(lists...) }

// Only a node that nobody can call keeps its way open, and only to those that it
// can call.
func TestDevicePeers_Keepalive(t *testing.T) {
	plan := mesh.PeersOf(mesh.Peer{Node: &mesh.Node{ID: "a"}, Endpoint: "192.0.2.1:1"}, mesh.Peer{Node: &mesh.Node{ID: "b"}})
	for calls, want := range map[bool][]wg.Peer{
		true:  {{Name: "a", Endpoint: "192.0.2.1:1", Keepalive: keepalive}, {Name: "b"}},
		false: {{Name: "a", Endpoint: "192.0.2.1:1"}, {Name: "b"}},
	} {
		d := devicePeers{calls: calls}
		got := flat(d.of(&mesh.Snapshot{}, plan))
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Error(diff)
		}
	}
}
