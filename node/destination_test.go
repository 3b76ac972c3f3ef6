// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// world is a mesh with a gateway (us), a stock peer with a route, a node that
// runs Meshgate, and a gateway's ACLs.
func world(t *testing.T) *mesh.Snapshot {
	t.Helper()
	s := &mesh.Snapshot{
		Version: 1,
		IPv4:    netip.MustParsePrefix("172.16.0.0/12"), IPv6: netip.MustParsePrefix("fd9f:86d0:8188::/32"),
		Routes: []mesh.Route{
			{Name: "phone-auto", Node: "phone", Destinations: []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("169.254.0.0/16")}},
		},
		ACLs: []mesh.ACL{
			{
				Name: "mallory-web", Priority: 20, Accept: true, SourceNodes: []string{"mallory"}, DestinationNodes: []string{"phone"},
				Protocols: []mesh.Protocol{mesh.ProtocolTCP}, Ports: []uint16{8080},
			},
			{Name: "no-mallory", Priority: 10, SourceNodes: []string{"mallory"}},
			{Name: "accept", Accept: true, SourceNodes: []string{"*"}, DestinationNodes: []string{"*"}},
		},
	}
	for i, id := range []mesh.NodeID{"gate", "phone", "nas"} {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		n := &mesh.Node{
			ID: id, PublicKey: key.Public(),
			IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, 0, byte(i + 1)}), 32),
			IPv6: mesh.NodeIPv6(s.IPv6, key.Public().WireGuard()),
		}
		if id != "phone" {
			n.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}
		}
		s.Nodes = s.Nodes.With(n)
	}
	return s
}

func self(t *testing.T, s *mesh.Snapshot, id mesh.NodeID, holds bool) *Node {
	t.Helper()
	n := &Node{cfg: Config{ID: id, Expose: []Expose{{Protocol: "tcp", Port: 80, Target: "127.0.0.1:3000"}}}}
	if holds {
		n.members = &holder{}
	}
	n.snapshot.Store(s)
	return n
}

func TestDestination(t *testing.T) {
	s := world(t)
	for _, tc := range []struct {
		name    string
		self    mesh.NodeID
		holds   bool
		caller  string
		target  mesh.NodeID
		network string
		host    string
		port    uint16
		want    string // address, or a part of the error
		err     error
	}{
		{"an exposed port by default", "gate", true, "alice", "gate", "tcp", "", 80, "172.16.0.1:80", nil},
		{"an exposed port by v1's default host", "gate", true, "alice", "gate", "tcp", "127.0.0.1", 80, "172.16.0.1:80", nil},
		{"an exposed port by id", "gate", true, "alice", "gate", "tcp", "gate", 80, "172.16.0.1:80", nil},
		{"an exposed port by address", "gate", true, "alice", "gate", "tcp", "172.16.0.1", 80, "172.16.0.1:80", nil},
		{"the same port of udp", "gate", true, "alice", "gate", "udp", "", 80, "does not expose", mesh.ErrDenied},
		{"a port that is not exposed", "gate", true, "alice", "gate", "tcp", "", 22, "--expose tcp:22=", mesh.ErrDenied},
		{"the RPC port of ourselves", "gate", true, "alice", "gate", "tcp", "", 8443, "does not expose", mesh.ErrDenied},
		{"loopback spelled as IPv6", "gate", true, "alice", "gate", "tcp", "::1", 22, "does not expose", mesh.ErrDenied},
		{"loopback mapped", "gate", true, "alice", "gate", "tcp", "::ffff:127.0.0.1", 22, "does not expose", mesh.ErrDenied},
		{"a stock peer", "gate", true, "alice", "phone", "tcp", "", 22, "172.16.0.2:22", nil},
		{"a stock peer by its address", "gate", true, "alice", "phone", "udp", "172.16.0.2", 53, "172.16.0.2:53", nil},
		{"a stock peer through the gateway", "gate", true, "alice", "gate", "tcp", "phone", 22, "172.16.0.2:22", nil},
		{"a network behind a stock peer", "gate", true, "alice", "phone", "tcp", "192.168.7.9", 80, "192.168.7.9:80", nil},
		{"that network through another node", "gate", true, "alice", "gate", "tcp", "192.168.7.9", 80, "not reachable through", mesh.ErrDenied},
		{"metadata even when it is routed", "gate", true, "alice", "phone", "tcp", "169.254.169.254", 80, "not reachable through", mesh.ErrDenied},
		{"the RPC port of another node", "gate", true, "alice", "gate", "tcp", "nas", 8443, "serves the mesh itself", mesh.ErrDenied},
		{"a free mesh address", "gate", true, "alice", "gate", "tcp", "172.16.9.9", 80, "not reachable through", mesh.ErrDenied},
		{"the unspecified address", "gate", true, "alice", "gate", "tcp", "0.0.0.0", 80, "not reachable through", mesh.ErrDenied},
		{"an address outside", "gate", true, "alice", "gate", "tcp", "192.0.2.1", 80, "not reachable through", mesh.ErrDenied},
		{"a zone", "gate", true, "alice", "gate", "tcp", "fe80::1%lo", 80, "zone", mesh.ErrInvalid},
		{"a name outside the mesh", "gate", true, "alice", "gate", "tcp", "example.org", 80, "neither an address nor a node", mesh.ErrInvalid},
		{"a caller whom an ACL denies", "gate", true, "mallory", "phone", "tcp", "", 22, "no network ACL lets", mesh.ErrDenied},
		{"the port that an ACL accepts", "gate", true, "mallory", "phone", "tcp", "", 8080, "172.16.0.2:8080", nil},
		{"the same port of udp", "gate", true, "mallory", "phone", "udp", "", 8080, "reach udp port 8080 of 172.16.0.2", mesh.ErrDenied},
		{"the same port of another node", "gate", true, "mallory", "gate", "tcp", "nas", 8080, "no network ACL lets", mesh.ErrDenied},
		{"an unknown node", "gate", true, "alice", "nobody", "tcp", "", 22, "no node", mesh.ErrNotFound},
		{"another protocol", "gate", true, "alice", "phone", "icmp", "", 22, "want tcp or udp", mesh.ErrInvalid},
		{"port 0", "gate", true, "alice", "phone", "tcp", "", 0, "port 0", mesh.ErrInvalid},
		{"a follower's exposed port", "nas", false, "alice", "nas", "tcp", "localhost", 80, "172.16.0.3:80", nil},
		{"a follower is no way to others", "nas", false, "alice", "nas", "tcp", "phone", 80, "not reachable through", mesh.ErrDenied},
		{"nor by their address", "nas", false, "alice", "nas", "tcp", "172.16.0.2", 80, "not reachable through", mesh.ErrDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := self(t, s, tc.self, tc.holds).Destination(tc.caller, tc.target, tc.network, tc.host, tc.port)
			if tc.err == nil {
				if err != nil || got.String() != tc.want {
					t.Errorf("got %v, %v; want %s", got, err, tc.want)
				}
				return
			}
			if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.want) || got.IsValid() {
				t.Errorf("got %v, %v; want %v with %q", got, err, tc.err, tc.want)
			}
		})
	}
}

// Decisions follow the snapshot, although its ACLs are compiled once.
func TestDestination_FollowsTheSnapshot(t *testing.T) {
	s := world(t)
	n := self(t, s, "gate", true)
	for range 2 {
		if _, err := n.Destination("alice", "phone", "tcp", "", 22); err != nil {
			t.Fatal(err)
		}
	}
	next := *s
	next.ACLs = nil
	n.snapshot.Store(&next)
	if _, err := n.Destination("alice", "phone", "tcp", "", 22); !errors.Is(err, mesh.ErrDenied) {
		t.Errorf("without ACLs: %v", err)
	}
}

// What is delivered to the node itself is looked at only where ports count; and
// only a node that holds state forwards.
func TestDeviceConfig_FiltersWhatPortsDecide(t *testing.T) {
	s := world(t)
	open := *s
	open.ACLs = s.ACLs[2:]
	packet := mesh.Packet{
		Src: s.Node("phone").IPv4.Addr(), Dst: s.Node("nas").IPv4.Addr(), Protocol: mesh.ProtocolTCP, Kind: mesh.PacketOpens, DstPort: 22,
	}
	for _, c := range []struct {
		name     string
		s        *mesh.Snapshot
		holds    bool
		filtered bool
	}{
		{"ports, with state", s, true, true},
		{"ports, without", s, false, true},
		{"no ports, with state", &open, true, false},
		{"no ports, without", &open, false, false},
	} {
		n := self(t, c.s, "nas", c.holds)
		n.flows = policy.NewFlows()
		cfg := n.deviceConfig(c.s, mesh.Plan{Self: s.Node("nas"), Peers: mesh.PeersOf(mesh.Peer{Node: s.Node("phone")})})
		if cfg.Allow(packet) != c.holds {
			t.Errorf("%s: forwards %v", c.name, !c.holds)
		}
		if (cfg.Accept != nil) != c.filtered || (cfg.Sent != nil) != c.filtered {
			t.Errorf("%s: filters what is delivered: %v", c.name, !c.filtered)
		}
		if c.filtered && !cfg.Accept(packet) {
			t.Errorf("%s: refuses what an ACL accepts", c.name)
		}
	}
}

func TestDestination_BeforeTheMeshIsUnavailable(t *testing.T) {
	n := &Node{cfg: Config{ID: "gate"}}
	if _, err := n.Destination("alice", "gate", "tcp", "", 80); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if _, err := n.DialContext(context.Background(), "tcp", "172.16.0.1:80"); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

func TestDialContext_RefusesNamesAndClosedPortsOfItself(t *testing.T) {
	n := self(t, world(t), "gate", true)
	if _, err := n.DialContext(context.Background(), "tcp", "phone:80"); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("a name: %v", err)
	}
	if _, err := n.DialContext(context.Background(), "tcp", "172.16.0.1:22"); !errors.Is(err, mesh.ErrDenied) {
		t.Errorf("a port that is not exposed: %v", err)
	}
}
