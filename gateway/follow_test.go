// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// received is the messages of a stream, taken as they come.
type received[M any] struct {
	messages chan *M
	end      chan error
}

func receive[M any](t *testing.T, stream *connect.ServerStreamForClient[M]) *received[M] {
	r := &received[M]{messages: make(chan *M, 100), end: make(chan error, 1)}
	go func() {
		for stream.Receive() {
			r.messages <- stream.Msg()
		}
		r.end <- stream.Err()
		_ = stream.Close()
	}()
	return r
}

// now returns what has come so far and is not taken yet.
func (r *received[M]) now() []*M {
	synctest.Wait()
	var got []*M
	for {
		select {
		case m := <-r.messages:
			got = append(got, m)
		default:
			return got
		}
	}
}

// changed is the test mesh at a later version, changed.
func changed(version uint64, change func(*mesh.Snapshot)) *mesh.Snapshot {
	s := testSnapshot()
	s.Version = version
	change(s)
	return s
}

func TestSubscribePeers_SendsChangesOfTheNodesPlanOnly(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		stream, err := v1connect.NewMembershipClient(bearer(p.client(t, true), "admin"), "http://gate").
			SubscribePeers(ctx, connect.NewRequest(&v1.SubscribePeersRequest{Id: "laptop"}))
		if err != nil {
			t.Fatal(err)
		}
		got := receive(t, stream)
		if first := got.now(); len(first) != 1 || len(first[0].GetPeers()) != 1 || first[0].GetGatewayId() != "gw-1" {
			t.Fatalf("at once: %v", first)
		}
		s.node.set(changed(8, func(s *mesh.Snapshot) { s.Nodes = s.Nodes.With(&mesh.Node{ID: "new"}) }))
		pass(time.Minute)
		if more := got.now(); len(more) != 0 {
			t.Errorf("a node that is no peer: %v", more)
		}
		s.node.set(changed(9, func(s *mesh.Snapshot) { s.Node("gw-1").Zone = "east" }))
		if more := got.now(); len(more) != 1 || more[0].GetPeers()[0].GetNode().GetZoneAwarenessId() != "east" {
			t.Errorf("a peer that changed: %v", more)
		}
		s.node.set(changed(10, func(s *mesh.Snapshot) {
			s.Node("gw-1").Zone = "east"
			s.Node("gw-1").Multiaddrs = []string{"/ip4/192.0.2.1"}
		}))
		if more := got.now(); len(more) != 0 {
			t.Errorf("right behind another change: %v", more)
		}
		s.node.set(changed(11, func(s *mesh.Snapshot) {
			s.Node("gw-1").Zone = "east"
			s.ACLs = []mesh.ACL{{Name: "new", Accept: true}}
		}))
		pass(50 * time.Millisecond)
		if more := got.now(); len(more) != 1 || len(more[0].GetNetworkAcls()) != 1 || len(more[0].GetPeers()[0].GetNode().GetMultiaddrs()) != 0 {
			t.Errorf("an ACL that changed: %v", more)
		}
		pass(time.Second)
		s.node.set(changed(12, func(s *mesh.Snapshot) { s.Nodes = s.Nodes.Without("laptop") }))
		if err := <-got.end; connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("a node that was removed: %v", err)
		}
	})
}

// Peers are in the message whatever the encoding, though they are encoded once for
// all that are binary.
func TestMembership_EveryEncodingHasThePeers(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		for name, options := range map[string][]connect.ClientOption{
			"Connect": nil, "Connect, JSON": {connect.WithProtoJSON()},
			"gRPC": {connect.WithGRPC()}, "gRPC, JSON": {connect.WithGRPC(), connect.WithProtoJSON()},
			"gRPC-web": {connect.WithGRPCWeb()}, "gRPC-web, JSON": {connect.WithGRPCWeb(), connect.WithProtoJSON()},
		} {
			ctx, cancel := context.WithCancel(context.Background())
			c := v1connect.NewMembershipClient(bearer(p.client(t, true), "admin"), "http://gate", options...)
			stream, err := c.SubscribePeers(ctx, connect.NewRequest(&v1.SubscribePeersRequest{Id: "laptop"}))
			if err != nil {
				t.Fatal(err)
			}
			got := receive(t, stream)
			first := got.now()
			if len(first) != 1 || len(first[0].GetPeers()) != 1 || first[0].GetPeers()[0].GetNode().GetId() != "gw-1" || len(first[0].GetPeers()[0].GetAllowedIps()) == 0 {
				t.Errorf("%s: subscribed to %v", name, first)
			}
			cancel()
			<-got.end
			key, err := mesh.GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			answer, err := c.Join(context.Background(), connect.NewRequest(&v1.JoinRequest{Id: "laptop", PublicKey: key.Public().Encode()}))
			if err != nil {
				t.Fatal(err)
			}
			if peers := answer.Msg.GetPeers(); len(peers) != 1 || peers[0].GetNode().GetId() != "gw-1" || len(answer.Msg.ProtoReflect().GetUnknown()) != 0 {
				t.Errorf("%s: joined with %v", name, peers)
			}
		}
	})
}

// anyReplicas is embedded where its own name is that of a method.
type anyReplicas = api.Replicas

// ledReplicas is gateways that are led or not.
type ledReplicas struct {
	anyReplicas
	none atomic.Bool
}

func (*ledReplicas) Replicas(context.Context) []api.Replica { return nil }

func (r *ledReplicas) Leads() bool { return !r.none.Load() }

// A watcher is told that nobody leads once no election explains it, and that
// somebody does again.
func TestWatchMesh_Leaderless(t *testing.T) {
	r := &ledReplicas{}
	bubble(t, func(c *Config) { c.Replicas = r }, func(t *testing.T, _ *served, p *pipes) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		stream, err := meshgatev1connect.NewWatchClient(bearer(p.client(t, true), "viewer"), "http://gate").
			WatchMesh(ctx, connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		w := receive(t, stream)
		for _, tt := range []struct {
			none, want bool
			after      time.Duration
			messages   int
		}{
			{after: time.Second, messages: 1},
			{none: true, after: 3 * time.Second},
			{none: true, after: 4 * time.Second, messages: 1, want: true},
			{none: true, after: time.Minute},
			{after: 2 * time.Second, messages: 1},
		} {
			r.none.Store(tt.none)
			pass(tt.after)
			got := w.now()
			if len(got) != tt.messages || len(got) > 0 && got[0].GetLeaderless() != tt.want {
				t.Errorf("%+v: got %v", tt, got)
			}
		}
		cancel()
		<-w.end
	})
}

// webIs reports whether the presence of web-1 is in a state.
func webIs(m *meshgatev1.WatchMeshResponse, state meshgatev1.PresenceState) bool {
	return slices.ContainsFunc(m.GetPresence(), func(p *meshgatev1.NodePresence) bool { return p.GetNodeId() == "web-1" && p.GetState() == state })
}

func TestWatchMesh(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		key, err := mesh.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		with := func(version uint64) *mesh.Snapshot {
			return changed(version, func(s *mesh.Snapshot) {
				n := *s.Node("web-1")
				n.PublicKey = key.Public()
				s.Nodes = s.Nodes.With(&n)
			})
		}
		stats := func(received uint64, endpoint string, handshake time.Time) mesh.InterfaceStats {
			return mesh.InterfaceStats{Peers: []mesh.PeerStats{{
				PublicKey: key.Public().WireGuard(), ReceiveBytes: received, Endpoint: endpoint, LastHandshake: handshake,
			}}}
		}
		s.node.set(with(8))
		s.node.setStats(stats(0, "", time.Time{}))
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var watchers []*received[meshgatev1.WatchMeshResponse]
		for range 5 {
			stream, err := meshgatev1connect.NewWatchClient(bearer(p.client(t, true), "viewer"), "http://gate").
				WatchMesh(ctx, connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
			if err != nil {
				t.Fatal(err)
			}
			watchers = append(watchers, receive(t, stream))
		}
		between := func(what string, least, most int, check func(*meshgatev1.WatchMeshResponse) bool) {
			t.Helper()
			for _, w := range watchers {
				got := w.now()
				if n := len(got); n < least || n > most || n > 0 && !check(got[n-1]) {
					t.Errorf("%s: %v", what, got)
				}
			}
		}
		expect := func(what string, n int, check func(*meshgatev1.WatchMeshResponse) bool) {
			t.Helper()
			between(what, n, n, check)
		}
		link := func(m *meshgatev1.WatchMeshResponse) *meshgatev1.Link { return m.GetLinks()[0] }
		expect("at once", 1, func(m *meshgatev1.WatchMeshResponse) bool {
			return m.GetVersion() == 8 && len(m.GetNodes()) == 4 && len(m.GetEdges()) == 1 && link(m).GetNodeId() == "web-1" && !link(m).GetOnline() && len(m.GetBarred()) == 3 // all others
		})
		pass(time.Minute)
		expect("nothing new", 0, nil)
		s.node.set(with(9))
		expect("a change of the mesh", 1, func(m *meshgatev1.WatchMeshResponse) bool { return m.GetVersion() == 9 })
		shut := *with(10)
		shut.ACLs = []mesh.ACL{{Name: "shut", DestinationNodes: []string{"web-1"}}, {Name: "all", Accept: true}}
		s.node.set(&shut)
		expect("an ACL", 1, func(m *meshgatev1.WatchMeshResponse) bool {
			return len(m.GetBarred()) == 1 && m.GetBarred()[0].GetNodeId() == "web-1" && m.GetBarred()[0].GetAcl() == "shut"
		})
		s.node.setStats(stats(10, "192.0.2.9:1", time.Now()))
		pass(1100 * time.Millisecond)
		expect("a handshake", 1, func(m *meshgatev1.WatchMeshResponse) bool {
			return link(m).GetOnline() && link(m).GetEndpoint() == "192.0.2.9:1"
		})
		pass(2 * time.Second)
		expect("who is up", 1, func(m *meshgatev1.WatchMeshResponse) bool {
			return webIs(m, meshgatev1.PresenceState_PRESENCE_STATE_UP)
		})
		handshake := time.Now()
		s.node.setStats(stats(20, "192.0.2.9:1", handshake))
		pass(2 * time.Second)
		expect("counters, at first", 0, nil)
		pass(4 * time.Second)
		expect("counters", 1, func(m *meshgatev1.WatchMeshResponse) bool { return link(m).GetReceiveBytes() == 20 })
		pass(4 * time.Minute)
		// That the link is down and that the node is are told together where both
		// are found in the same instant.
		between("silence", 1, 2, func(m *meshgatev1.WatchMeshResponse) bool {
			return !link(m).GetOnline() && webIs(m, meshgatev1.PresenceState_PRESENCE_STATE_DOWN)
		})
		before := s.node.statsReads()
		pass(time.Minute)
		if n := s.node.statsReads() - before; n > 61 {
			t.Errorf("%d watchers read statistics %d times in a minute", len(watchers), n)
		}
		cancel()
		for _, w := range watchers {
			if err := <-w.end; connect.CodeOf(err) != connect.CodeCanceled {
				t.Error(err)
			}
		}
	})
}

// A watcher that does not read gets the newest state when it does, not a queue.
func TestWatchMesh_SlowReaderGetsTheNewest(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		big := func(version uint64) *mesh.Snapshot {
			return changed(version, func(s *mesh.Snapshot) {
				for i := range 2000 {
					id := mesh.NodeID(tokenOf(string(rune('a'+i%26)) + time.Duration(i).String()))
					s.Nodes = s.Nodes.With(&mesh.Node{ID: id, Multiaddrs: []string{string(make([]byte, 500))}})
				}
			})
		}
		s.node.set(big(8))
		stream, err := meshgatev1connect.NewWatchClient(bearer(p.client(t, true), "viewer"), "http://gate", connect.WithAcceptCompression("gzip", nil, nil)).
			WatchMesh(context.Background(), connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		for v := uint64(9); v <= 40; v++ {
			s.node.set(big(v))
			synctest.Wait()
		}
		seen := 0
		for stream.Receive() {
			seen++
			if stream.Msg().GetVersion() == 40 {
				break
			}
		}
		if stream.Msg().GetVersion() != 40 || seen > 20 {
			t.Errorf("%d messages, the last of version %d: %v", seen, stream.Msg().GetVersion(), stream.Err())
		}
	})
}
