// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A node that has an edge to another one which nobody can call has its packets
// carried by the gateway, and the device takes that.
func TestFollower_TheGatewayCarriesAPairThatWaits(t *testing.T) {
	g := newFakeGateway(t)
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	const far = "172.16.0.9/32"
	gate := proto.CloneOf(g.answer.GetPeers()[0])
	gate.AllowedIps = append(gate.AllowedIps, far)
	g.answer.Peers = []*v1.WireGuardPeer{gate, {
		Node:       &v1.MeshNode{Id: "far", PublicKey: key.Public().Encode(), PrivateIpv4: far, Paths: true},
		AllowedIps: []string{far}, Proto: v1.ConnectProtocol_CONNECT_ICE,
	}}
	n := follow(t, g, "", func(c *Config) {
		c.Follow.Paths = true
		c.Follow.MeshPairs = func(netip.AddrPort) PairGateway { return noPairs{} }
	})
	hears(t, g) // which is when the first plan is in force
	stats, err := n.node.device.Stats()
	n.end()
	if err != nil || len(stats.Peers) != 2 {
		t.Fatalf("%d peers, %v", len(stats.Peers), err)
	}
	for _, p := range stats.Peers {
		if carries := slices.Contains(p.AllowedIPs, netip.MustParsePrefix(far)); carries != (p.PublicKey != key.Public().WireGuard()) {
			t.Errorf("peer %v has %v", p.PublicKey, p.AllowedIPs)
		}
	}
}

func TestUnshared_EachNetworkIsBehindOnePeer(t *testing.T) {
	peer := func(id mesh.NodeID, paths bool, endpoint string, networks ...string) mesh.Peer {
		p := mesh.Peer{Node: &mesh.Node{ID: id, Paths: paths}, Endpoint: endpoint}
		for _, n := range networks {
			p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(n))
		}
		return p
	}
	const a, b, c, all = "172.16.0.1/32", "172.16.0.2/32", "10.0.0.0/8", "172.16.0.0/12"
	for name, tt := range map[string]struct {
		peers  []mesh.Peer
		stands mesh.NodeID
		want   string
	}{
		"a pair that waits":                {[]mesh.Peer{peer("gw", false, "g:1", a, b), peer("n", true, "", a)}, "", "gw[" + a + " " + b + "] n[]"},
		"a pair that stands":               {[]mesh.Peer{peer("gw", false, "g:1", a, b), peer("n", true, "", a)}, "n", "gw[" + b + "] n[" + a + "]"},
		"another pair stands":              {[]mesh.Peer{peer("gw", false, "g:1", a, b), peer("n", true, "", a), peer("o", true, "", b)}, "o", "gw[" + a + "] n[] o[" + b + "]"},
		"nobody else has it":               {[]mesh.Peer{peer("gw", false, "g:1", b), peer("n", true, "", a, c)}, "", "gw[" + b + "] n[" + a + " " + c + "]"},
		"all of the mesh is carried":       {[]mesh.Peer{peer("gw", false, "g:1", all), peer("n", true, "", a)}, "n", "gw[" + all + "] n[" + a + "]"},
		"two pairs have the same":          {[]mesh.Peer{peer("gw", false, "g:1", c), peer("n", true, "", a, c), peer("o", true, "", c)}, "", "gw[" + c + "] n[" + a + "] o[]"},
		"two pairs, of which one stands":   {[]mesh.Peer{peer("n", true, "", a, c), peer("o", true, "", b, c)}, "n", "n[" + a + "] o[" + b + " " + c + "]"},
		"one that can be called is no end": {[]mesh.Peer{peer("gw", false, "g:1", b), peer("n", true, "n:1", a)}, "n", "gw[" + b + "] n[" + a + "]"},
		"nothing":                          {nil, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			plan := unshared(mesh.Plan{Peers: mesh.PeersOf(tt.peers...)}, map[mesh.NodeID]bool{tt.stands: true})
			var got []string
			for p := range plan.Peers.All() {
				got = append(got, fmt.Sprintf("%s%v", p.Node.ID, p.AllowedIPs))
			}
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("got %s, want %s", text, tt.want)
			}
		})
	}
}
