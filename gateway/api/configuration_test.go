// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// wirePeers are peers of many kinds, and a snapshot that has their nodes.
func wirePeers(t testing.TB, n int) (*mesh.Snapshot, []mesh.Peer) {
	t.Helper()
	s := &mesh.Snapshot{}
	var peers []mesh.Peer
	for i := range n {
		node := &mesh.Node{
			ID: mesh.NodeID(fmt.Sprintf("n%03d", i)), PublicKey: testKey(t), Zone: "east",
			IPv4:     netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 32),
			Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}},
		}
		s.Nodes = s.Nodes.With(node)
		p := mesh.Peer{Node: node, AllowedIPs: node.Prefixes(), Endpoint: fmt.Sprintf("192.0.2.%d:51820", i%250)}
		switch i % 4 {
		case 1:
			p.Endpoint, p.Protocol = "", v1.ConnectProtocol_CONNECT_ICE
		case 2:
			p.AllowedIPs = nil
		case 3:
			for j := range 2 * maxKept {
				p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 8, byte(i), byte(j)}), 32))
			}
		}
		peers = append(peers, p)
	}
	return s, peers
}

// listOf is the list of peers, of which it takes a copy.
func listOf(peers []mesh.Peer) mesh.Peers { return mesh.PeersOf(slices.Clone(peers)...) }

// read is what a client reads of a message.
func read[M proto.Message](t testing.TB, sent M) M {
	t.Helper()
	raw, err := proto.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	got := sent.ProtoReflect().New().Interface().(M)
	if err := proto.Unmarshal(raw, got); err != nil {
		t.Fatal(err)
	}
	return got
}

// A client cannot tell a packed message from another one.
func TestPeerMessages_ReadAsTheyAre(t *testing.T) {
	s, peers := wirePeers(t, 12)
	c := &configuration{gateway: "gw", revision: 7, peers: listOf(peers), dns: []string{"10.9.0.1:53"}, acls: []*v1.NetworkACL{{Name: "all"}}}
	var m peerMessages
	buffer := m.buffer()
	for range 2 { // the second time they are known
		plain, err := m.message(s, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		packed, err := m.message(s, c, buffer)
		if err != nil {
			t.Fatal(err)
		}
		if len(plain.GetPeers()) != len(peers) || len(packed.GetPeers()) != 0 {
			t.Fatalf("%d plain peers and %d packed ones", len(plain.GetPeers()), len(packed.GetPeers()))
		}
		got := read(t, packed)
		if diff := cmp.Diff(plain, got, protocmp.Transform()); diff != "" || len(got.ProtoReflect().GetUnknown()) != 0 {
			t.Errorf("%s%d unknown bytes", diff, len(got.ProtoReflect().GetUnknown()))
		}
		answer := &v1.JoinResponse{GatewayId: "gw"}
		if err := m.pack(answer, s, listOf(peers), new([]byte)); err != nil {
			t.Fatal(err)
		}
		want := &v1.JoinResponse{GatewayId: "gw", Peers: plain.GetPeers()}
		if diff := cmp.Diff(want, read(t, answer), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	for _, p := range []proto.Message{&v1.PeerConfigurations{}, &v1.JoinResponse{}} {
		if f := p.ProtoReflect().Descriptor().Fields().ByName("peers"); f.Number() != peersField || f.Kind() != protoreflect.MessageKind {
			t.Errorf("%T has %v", p, f)
		}
	}
}

// Whatever was asked before, and for whichever node: each part of a peer that
// changes is in its message.
func TestPeerMessages_FollowEachPartOfAPeer(t *testing.T) {
	s, peers := wirePeers(t, 1)
	forms := []mesh.Peer{peers[0]}
	for _, change := range []func(p *mesh.Peer){
		func(p *mesh.Peer) { p.Endpoint = "198.51.100.1:1" },
		func(p *mesh.Peer) { p.Protocol = v1.ConnectProtocol_CONNECT_LIBP2P },
		func(p *mesh.Peer) { p.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
		func(p *mesh.Peer) {
			p.AllowedIPs = append(slices.Clone(p.AllowedIPs), netip.MustParsePrefix("fd00::/8"))
		},
		func(p *mesh.Peer) { n := *p.Node; n.Zone = "west"; p.Node = &n },
		func(p *mesh.Peer) {
			n := *p.Node
			n.Services = []mesh.Service{{Protocol: "tcp", Port: 22}}
			p.Node = &n
		},
	} {
		p := peers[0]
		change(&p)
		forms = append(forms, p)
	}
	var m peerMessages
	for _, from := range forms { // forth and back between any two
		for _, to := range forms {
			for _, p := range []mesh.Peer{from, to} {
				packed, err := m.message(s, &configuration{peers: mesh.PeersOf(p)}, m.buffer())
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(peerToProto(p), read(t, packed).GetPeers()[0], protocmp.Transform()); diff != "" {
					t.Fatal(diff)
				}
			}
			if kept := len(m.forms["n000"]); kept > maxForms {
				t.Fatalf("%d messages of one peer are kept", kept)
			}
		}
	}
}

// Nodes that are gone leave nothing behind, and long lists are not kept at all.
func TestPeerMessages_KeepLittle(t *testing.T) {
	s, peers := wirePeers(t, 8)
	var m peerMessages
	if _, err := m.encode(nil, s, listOf(peers)); err != nil {
		t.Fatal(err)
	}
	if len(m.forms) != 6 { // two of the eight have long lists
		t.Errorf("%d peers are kept", len(m.forms))
	}
	fewer := *s
	fewer.Nodes = s.Nodes.Without("n000").Without("n001")
	if _, err := m.encode(nil, &fewer, listOf(peers[2:3])); err != nil {
		t.Fatal(err)
	}
	if len(m.forms) != 4 || m.forms["n000"] != nil {
		t.Errorf("%d peers are kept after two left", len(m.forms))
	}
}

// A configuration is sent when anything but its revision differs.
func TestConfiguration_Same(t *testing.T) {
	_, peers := wirePeers(t, 3)
	make := func() *configuration {
		n := *peers[0].Node
		copied := slices.Clone(peers)
		copied[0].Node, copied[1].AllowedIPs = &n, slices.Clone(copied[1].AllowedIPs)
		return &configuration{
			gateway: "gw", revision: 1, peers: mesh.PeersOf(copied...), ice: []string{"a"}, dns: []string{"b"},
			acls: []*v1.NetworkACL{{Name: "all"}}, gateways: []*v1.MeshNode{{Id: "gw"}},
		}
	}
	peersBut := func(change func(peers []mesh.Peer) []mesh.Peer) func(*configuration) {
		return func(c *configuration) { c.peers = mesh.PeersOf(change(slices.Collect(c.peers.All()))...) }
	}
	c := make()
	if c.same(nil) || !c.same(c) || !c.same(make()) {
		t.Error("a configuration is not the same as itself")
	}
	for name, change := range map[string]func(*configuration){
		"gateway":     func(c *configuration) { c.gateway = "gw2" },
		"fewer peers": peersBut(func(list []mesh.Peer) []mesh.Peer { return list[:2] }),
		"another peer": peersBut(func(list []mesh.Peer) []mesh.Peer {
			n := *list[2].Node
			n.ID = "other"
			list[2].Node = &n
			return list
		}),
		"node":     peersBut(func(list []mesh.Peer) []mesh.Peer { list[0].Node.Multiaddrs = []string{"/ip4/192.0.2.1"}; return list }),
		"endpoint": peersBut(func(list []mesh.Peer) []mesh.Peer { list[2].Endpoint = ""; return list }),
		"protocol": peersBut(func(list []mesh.Peer) []mesh.Peer { list[2].Protocol++; return list }),
		"allowed": peersBut(func(list []mesh.Peer) []mesh.Peer {
			list[1].AllowedIPs[0] = netip.MustParsePrefix("10.0.0.0/8")
			return list
		}),
		"more allowed": peersBut(func(list []mesh.Peer) []mesh.Peer {
			list[1].AllowedIPs = append(list[1].AllowedIPs, list[1].AllowedIPs...)
			return list
		}),
		"ICE servers": func(c *configuration) { c.ice = nil },
		"DNS servers": func(c *configuration) { c.dns = []string{"c"} },
		"ACLs":        func(c *configuration) { c.acls = []*v1.NetworkACL{{Name: "all", Priority: 1}} },
		"gateways":    func(c *configuration) { c.gateways = append(c.gateways, &v1.MeshNode{Id: "gw2"}) },
	} {
		other := make()
		change(other)
		if c.same(other) || other.same(c) {
			t.Errorf("%s: the same", name)
		}
	}
	later := make()
	later.revision++
	if !c.same(later) {
		t.Error("another revision alone is sent")
	}
}

// Only encodings that are binary for sure are packed: any other would lose peers.
func TestPacks(t *testing.T) {
	for kind, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc-web+proto": true, "application/grpc-web": true,
		"application/proto": true, "application/connect+proto": true, "Application/Proto; charset=utf-8": true,
		"application/json": false, "application/connect+json": false, "application/grpc+json": false, "application/grpc-web+json": false,
		"application/json; charset=utf-8": false, "": false, "application/": false, "application/grpc+other": false, ";": false,
	} {
		if got := packs(http.Header{"Content-Type": {kind}}); got != want {
			t.Errorf("%q: %v", kind, got)
		}
	}
	if packs(nil) {
		t.Error("a request without a header")
	}
}

// planned is a State with a plan of its own for each node.
type planned struct {
	*fake
	peers map[mesh.NodeID]mesh.Peers
}

func (p *planned) Plan(s *mesh.Snapshot, id mesh.NodeID) (mesh.Plan, error) {
	return mesh.Plan{Self: s.Node(id), Peers: p.peers[id]}, nil
}

// Subscribers share messages and buffers, and each gets its own peers.
func TestSubscriber_EachGetsItsOwnPeers(t *testing.T) {
	s, peers := wirePeers(t, 24)
	f := testFake(t)
	f.snap = s
	p := &planned{fake: f, peers: map[mesh.NodeID]mesh.Peers{}}
	for i := range peers {
		p.peers[peers[i].Node.ID] = mesh.PeersOf(append(slices.Clone(peers[:i]), peers[i+1:]...)[i%3 : 12+i%9]...)
	}
	m := &membershipService{state: p, members: f}
	var wg sync.WaitGroup
	for id := range p.peers {
		wg.Go(func() {
			want := &v1.PeerConfigurations{GatewayId: "gw", Peers: peersToProto(p.peers[id])}
			for range 5 {
				b := &subscriber{service: m, id: id, packed: true}
				err := b.tell(t.Context(), s, func(c *v1.PeerConfigurations) error {
					if got := read(t, c); !proto.Equal(&v1.PeerConfigurations{GatewayId: "gw", Peers: got.GetPeers()}, want) {
						t.Errorf("%s got %v, want %v", id, got.GetPeers(), want.GetPeers())
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
