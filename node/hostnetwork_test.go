// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestMeshMTU(t *testing.T) {
	for _, tt := range []struct{ configured, path, want int }{
		{0, 0, 1420}, {0, 1500, 1420}, {0, 9000, 1420}, {0, 65536, 1420}, {0, 1492, 1412}, {0, 1400, 1320}, {0, 1280, 1280}, {0, 576, 1280},
		{1300, 0, 1300}, {1420, 1280, 1420}, {8920, 9000, 8920},
	} {
		if got := meshMTU(tt.configured, tt.path); got != tt.want {
			t.Errorf("configured %d, path %d: %d, want %d", tt.configured, tt.path, got, tt.want)
		}
	}
}

func networks(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestHostConfig_ServesWhatTheNodeOffers(t *testing.T) {
	s := &mesh.Snapshot{
		IPv4: netip.MustParsePrefix("172.16.0.0/12"), IPv6: netip.MustParsePrefix("fd00::/32"),
		Nodes:  mesh.NodesOf(&mesh.Node{ID: "router"}, &mesh.Node{ID: "other"}),
		Groups: []mesh.Group{{Name: "routers", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_NODE, Name: "router"}}}},
		Routes: []mesh.Route{
			{Name: "a", Node: "router", Destinations: networks("192.168.7.0/24", "fd77::/64")},
			{Name: "b", Node: "other", Destinations: networks("192.168.8.0/24")},
			{Name: "c", Node: "other", NextHop: "router", Destinations: networks("192.168.9.0/24")},
			{Name: "d", Node: "router", NextHop: "other", Destinations: networks("192.168.10.0/24")},
			{Name: "e", Node: "group:routers", Destinations: networks("192.168.7.0/24", "192.168.11.0/24")},
			{Name: "f", Node: "router", Destinations: networks("172.17.0.0/16", "0.0.0.0/0")}, // a v1 leader checks nothing
		},
	}
	plan := &mesh.Plan{Self: &mesh.Node{ID: "router"}}
	n := &Node{cfg: Config{ID: "router"}}
	want := networks("192.168.7.0/24", "192.168.9.0/24", "192.168.11.0/24", "fd77::/64")
	if c := n.hostConfig(s, plan); !slices.Equal(c.Serve, want) || !c.Forward || !slices.Equal(c.Masquerade, s.Networks()) || !slices.Equal(c.Networks, s.Networks()) {
		t.Errorf("%+v, want it to serve %v", c, want)
	}
	n.cfg.KeepSources = true
	if c := n.hostConfig(s, plan); !slices.Equal(c.Serve, want) || c.Masquerade != nil {
		t.Errorf("with the sources kept: %+v", c)
	}
	n.cfg = Config{ID: "third"}
	if c := n.hostConfig(s, plan); c.Serve != nil || c.Forward || c.Masquerade != nil {
		t.Errorf("a node that offers nothing: %+v", c)
	}
}

func TestUnderlay(t *testing.T) {
	gateway := &mesh.Node{ID: "gw", PrimaryEndpoint: "198.18.0.1", Features: []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP, Port: 443}}}
	peers := []mesh.Peer{{Node: gateway}, {Endpoint: "gw.example.com:51820", Node: &mesh.Node{ID: "named"}}}
	for i := range 40 {
		peers = append(peers, mesh.Peer{Endpoint: "198.18.0.9:51820", Node: &mesh.Node{ID: mesh.NodeID(fmt.Sprint("a", i))}})
	}
	got := new(Node).underlay(&mesh.Plan{Peers: mesh.PeersOf(peers...)})
	if len(got) != maxUnderlay || got[0] != netip.MustParseAddr("198.18.0.1") || got[1] != netip.MustParseAddr("198.18.0.9") {
		t.Errorf("%v", got)
	}
}

// A router that holds no state forwards to the networks that it offers and to
// nothing else. What its gateway forwarded passes, and so do its peers where the
// ACLs let them.
func TestDeviceConfig_RouterForwardsToItsNetworks(t *testing.T) {
	key, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	self := &mesh.Node{ID: "router", IPv4: netip.MustParsePrefix("172.16.0.2/32")}
	gateway := &mesh.Node{ID: "gw", IPv4: netip.MustParsePrefix("172.16.0.1/32"), Features: []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP, Port: 443}}}
	friend := &mesh.Node{ID: "friend", IPv4: netip.MustParsePrefix("172.16.0.3/32")}
	foe := &mesh.Node{ID: "foe", IPv4: netip.MustParsePrefix("172.16.0.4/32")}
	s := &mesh.Snapshot{
		IPv4: netip.MustParsePrefix("172.16.0.0/12"), Nodes: mesh.NodesOf(self, gateway, friend, foe),
		ACLs:   []mesh.ACL{{Name: "a", Accept: true, SourceNodes: []string{"friend"}, DestinationCIDRs: networks("192.168.7.0/24")}},
		Routes: []mesh.Route{{Name: "router-auto", Node: "router", Destinations: networks("192.168.7.0/24")}},
	}
	plan := mesh.Plan{Self: self}
	for _, o := range []*mesh.Node{gateway, friend, foe} {
		plan.Peers = plan.Peers.With(mesh.Peer{Node: o, AllowedIPs: o.Prefixes()})
	}
	n := &Node{cfg: Config{ID: "router", Key: key}, flows: policy.NewFlows()}
	packet := func(src, dst string) mesh.Packet {
		return mesh.Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: mesh.ProtocolTCP, Kind: mesh.PacketOpens, DstPort: 80}
	}
	if n.deviceConfig(s, plan).Allow(packet("172.16.0.3", "192.168.7.9")) {
		t.Error("a node without an interface on the host forwards")
	}
	n.host = &hostNetwork{}
	allow := n.deviceConfig(s, plan).Allow
	for _, tt := range []struct {
		name, src, dst string
		want           bool
	}{
		{"a peer that may", "172.16.0.3", "192.168.7.9", true},
		{"a peer that may not", "172.16.0.4", "192.168.7.9", false},
		{"the gateway", "172.16.0.1", "192.168.7.9", true},
		{"one behind the gateway", "172.16.9.9", "192.168.7.9", true},
		{"another network", "172.16.0.3", "192.168.8.9", false},
		{"the gateway to another network", "172.16.0.1", "192.168.8.9", false},
		{"from peer to peer", "172.16.0.3", "172.16.0.4", false},
		{"from peer to gateway", "172.16.0.3", "172.16.0.1", false},
	} {
		if got := allow(packet(tt.src, tt.dst)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	n.cfg.ID = "friend"
	if n.deviceConfig(s, plan).Allow(packet("172.16.0.3", "192.168.7.9")) {
		t.Error("a node that offers nothing forwards")
	}
}
