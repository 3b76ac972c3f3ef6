// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a State, Members, Links and Remote.
type fake struct {
	self    mesh.NodeID
	snap    *mesh.Snapshot
	plan    mesh.Plan
	stats   mesh.InterfaceStats
	reads   int
	ways    []mesh.Way
	looks   int // at ways
	err     error
	joined  *mesh.JoinRequest
	updated *mesh.UpdateRequest
	left    mesh.NodeID
	adopted mesh.NodeID
	changes []mesh.Change
	syncs   int
}

func (f *fake) Self() mesh.NodeID        { return f.self }
func (f *fake) Snapshot() *mesh.Snapshot { return f.snap }
func (f *fake) Wait(ctx context.Context, _ uint64) (*mesh.Snapshot, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (f *fake) Sync(context.Context) (*mesh.Snapshot, error) {
	f.syncs++
	return f.snap, f.err
}
func (f *fake) Change(_ context.Context, c mesh.Change, _ mesh.Permit) error {
	f.changes = append(f.changes, c)
	return f.err
}
func (f *fake) ChangeAll(_ context.Context, b mesh.Batch) (mesh.Outcome, error) {
	f.changes = append(f.changes, b.Changes...)
	return mesh.Outcome{Effects: make([]mesh.Effect, len(b.Changes))}, f.err
}
func (f *fake) Plan(*mesh.Snapshot, mesh.NodeID) (mesh.Plan, error) { return f.plan, f.err }
func (f *fake) Join(_ context.Context, r mesh.JoinRequest) (*mesh.Snapshot, error) {
	f.joined = &r
	return f.snap, f.err
}
func (f *fake) Update(_ context.Context, r mesh.UpdateRequest) error { f.updated = &r; return f.err }
func (f *fake) Leave(_ context.Context, id mesh.NodeID) error        { f.left = id; return f.err }
func (f *fake) LeaveBound(_ context.Context, id mesh.NodeID) error {
	f.left = id + " bound"
	return f.err
}
func (f *fake) Adopt(_ context.Context, id mesh.NodeID) (*mesh.Snapshot, error) {
	f.adopted = id
	return f.snap, f.err
}
func (f *fake) Stats() (mesh.InterfaceStats, error) { f.reads++; return f.stats, f.err }
func (f *fake) RemoteStatus(_ context.Context, id mesh.NodeID) (*v1.Status, error) {
	return &v1.Status{Id: string(id)}, f.err
}

func (f *fake) Ways(context.Context) ([]mesh.Way, error) { f.looks++; return f.ways, f.err }
func (f *fake) WayTo(_ context.Context, o *mesh.Node) (mesh.Way, error) {
	for _, w := range f.ways {
		if w.Node == o.ID {
			return w, f.err
		}
	}
	return mesh.Way{Node: o.ID}, f.err
}
func (f *fake) Locate(_ context.Context, id mesh.NodeID) (*mesh.Node, error) {
	if o := f.snap.Node(id); o != nil {
		return o, f.err
	}
	return nil, fmt.Errorf("%w: no node %q", mesh.ErrNotFound, id)
}

// knows is a fake that finds one node more.
type knows struct {
	*fake
	more *mesh.Node
}

func (k *knows) Locate(ctx context.Context, id mesh.NodeID) (*mesh.Node, error) {
	if id == k.more.ID {
		return k.more, nil
	}
	return k.fake.Locate(ctx, id)
}

func (f *fake) Ping(_ context.Context, o *mesh.Node) (mesh.Pong, error) {
	return mesh.Pong{Address: o.Addrs()[0]}, f.err
}

func testKey(t testing.TB) mesh.PublicKey {
	t.Helper()
	k, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func testFake(t testing.TB) *fake {
	gw := &mesh.Node{
		ID: "gw", PublicKey: testKey(t), PrimaryEndpoint: "192.0.2.1", IPv4: netip.MustParsePrefix("10.9.0.1/32"),
		Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}, {Kind: v1.Feature_ICE_NEGOTIATION, Port: 8443}},
	}
	phone := &mesh.Node{ID: "phone", PublicKey: testKey(t), IPv4: netip.MustParsePrefix("10.9.0.2/32"), IPv6: netip.MustParsePrefix("fd00:0:1:2::/112")}
	named := &mesh.Node{ID: "gw-dns", PrimaryEndpoint: "gate.example.org", Features: gw.Features}
	return &fake{
		self: "gw",
		snap: &mesh.Snapshot{
			Version: 3, Domain: "mesh.test.", IPv4: netip.MustParsePrefix("10.9.0.0/16"), IPv6: netip.MustParsePrefix("fd00:0:1::/32"),
			Nodes: mesh.NodesOf(gw, phone, named),
			Edges: mesh.EdgesOf(mesh.Edge{Source: "gw", Target: "phone", Weight: 4}),
			ACLs:  []mesh.ACL{{Name: "all", Accept: true}},
		},
		plan: mesh.Plan{Self: phone, Peers: mesh.PeersOf(mesh.Peer{
			Node: gw, Endpoint: "192.0.2.1:51820", AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/32")}, Protocol: v1.ConnectProtocol_CONNECT_ICE,
		})},
	}
}

func TestMembership_Join(t *testing.T) {
	f := testFake(t)
	m := &membershipService{state: f, members: f}
	res, err := m.Join(t.Context(), connect.NewRequest(&v1.JoinRequest{
		Id: "phone", PublicKey: f.snap.Node("phone").PublicKey.Encode(), AssignIpv4: true, Routes: []string{"192.168.1.7/24"},
		DirectPeers: map[string]v1.ConnectProtocol{"gw": v1.ConnectProtocol_CONNECT_ICE},
		Features:    []*v1.FeaturePort{{Feature: v1.Feature_NODES, Port: 8443}},
		Services:    []*v1.Service{{Protocol: "tcp", Port: 22, Kind: "ssh"}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	peer := mesh.NodeToProto(f.snap.Node("gw"))
	peer.PrimaryEndpoint = "192.0.2.1:51820"
	want := &v1.JoinResponse{
		AddressIpv4: "10.9.0.2/32", AddressIpv6: "fd00:0:1:2::/112", NetworkIpv4: "10.9.0.0/16", NetworkIpv6: "fd00:0:1::/32",
		MeshDomain: "mesh.test.", GatewayId: "gw",
		Peers:      []*v1.WireGuardPeer{{Node: peer, AllowedIps: []string{"10.9.0.1/32"}, Proto: v1.ConnectProtocol_CONNECT_ICE}},
		IceServers: []string{"192.0.2.1:8443"}, // not gate.example.org, which v1 nodes cannot parse
	}
	got := res.Msg
	if len(got.GetNetworkAcls()) != 1 || got.GetNetworkAcls()[0].GetName() != "all" {
		t.Errorf("ACLs %v", got.GetNetworkAcls())
	}
	if off := time.Since(got.GetTime().AsTime()); off < 0 || off > time.Minute {
		t.Errorf("the gateway's clock is %v", got.GetTime().AsTime())
	}
	got.NetworkAcls, got.Time = nil, nil
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	r := f.joined
	if !r.AssignIPv4 || r.Routes[0].String() != "192.168.1.0/24" || r.DirectPeers["gw"] != v1.ConnectProtocol_CONNECT_ICE ||
		r.Node.Features[0].Port != 8443 || r.Node.Services[0].Kind != "ssh" {
		t.Errorf("intent %+v", r)
	}
}

func TestMembership_NoICEServersWithoutNeed(t *testing.T) {
	f := testFake(t)
	p, _ := f.plan.Peers.Get("gw")
	p.Protocol = v1.ConnectProtocol_CONNECT_NATIVE
	f.plan.Peers = mesh.PeersOf(p)
	c, err := (&subscriber{service: &membershipService{state: f, members: f}, id: "phone"}).configuration(f.snap)
	if err != nil || len(c.ice) != 0 {
		t.Errorf("%v, %v", c.ice, err)
	}
	p.Endpoint = ""
	f.plan.Peers = mesh.PeersOf(p)
	c, err = (&subscriber{service: &membershipService{state: f, members: f}, id: "phone"}).configuration(f.snap)
	if err != nil || len(c.ice) != 1 {
		t.Errorf("%v, %v", c.ice, err)
	}
}

func TestMembership_DNSServers(t *testing.T) {
	f := testFake(t)
	for id, port := range map[mesh.NodeID]uint16{"gw": 53, "phone": 5353, "gw-dns": 53} { // gw-dns has no address
		n := *f.snap.Node(id)
		n.Features = append(slices.Clone(n.Features), mesh.Feature{Kind: v1.Feature_MESH_DNS, Port: port})
		f.snap.Nodes = f.snap.Nodes.With(&n)
	}
	m := &membershipService{state: f, members: f}
	for id, want := range map[mesh.NodeID][]string{"phone": {"10.9.0.1:53"}, "gw-dns": {"10.9.0.1:53", "10.9.0.2:5353"}} {
		c, err := (&subscriber{service: m, id: id}).configuration(f.snap)
		if err != nil || !slices.Equal(c.dns, want) {
			t.Errorf("%s: %v, %v", id, c.dns, err)
		}
	}
}

func TestMembership_BadRequests(t *testing.T) {
	f := testFake(t)
	key := testKey(t).Encode()
	many := func(s string) []string { return strings.Split(strings.Repeat(s+" ", maxItems)+s, " ") }
	for name, change := range map[string]func(*v1.JoinRequest){
		"no id":                func(r *v1.JoinRequest) { r.Id = "" },
		"reserved id":          func(r *v1.JoinRequest) { r.Id = "leader" },
		"path as id":           func(r *v1.JoinRequest) { r.Id = "../x" },
		"long id":              func(r *v1.JoinRequest) { r.Id = strings.Repeat("x", 254) },
		"no key":               func(r *v1.JoinRequest) { r.PublicKey = "" },
		"bare WireGuard key":   func(r *v1.JoinRequest) { r.PublicKey = "RwHQhIhFH1RaQJ+1iuPlhYHKQKw/fxFGmM1x3qxzygE=" },
		"route is no network":  func(r *v1.JoinRequest) { r.Routes = []string{"example.org"} },
		"mapped route":         func(r *v1.JoinRequest) { r.Routes = []string{"::ffff:10.0.0.0/104"} },
		"too many routes":      func(r *v1.JoinRequest) { r.Routes = many("10.0.0.0/8") },
		"too many endpoints":   func(r *v1.JoinRequest) { r.WireguardEndpoints = many("192.0.2.1:1") },
		"too many multiaddrs":  func(r *v1.JoinRequest) { r.Multiaddrs = many("/ip4/1.2.3.4") },
		"endless multiaddr":    func(r *v1.JoinRequest) { r.Multiaddrs = []string{strings.Repeat("x", maxMultiaddr+1)} },
		"endpoint port 0":      func(r *v1.JoinRequest) { r.WireguardEndpoints = []string{"192.0.2.1:0"} },
		"endpoint port 65536":  func(r *v1.JoinRequest) { r.WireguardEndpoints = []string{"192.0.2.1:65536"} },
		"feature port -1":      func(r *v1.JoinRequest) { r.Features = []*v1.FeaturePort{{Port: -1}} },
		"feature port 65536":   func(r *v1.JoinRequest) { r.Features = []*v1.FeaturePort{{Port: 65536}} },
		"unspecified endpoint": func(r *v1.JoinRequest) { r.PrimaryEndpoint = "0.0.0.0" },
		"service of no kind":   func(r *v1.JoinRequest) { r.Services = []*v1.Service{{Protocol: "icmp", Port: 1}} },
		"zone too long":        func(r *v1.JoinRequest) { r.ZoneAwarenessId = strings.Repeat("z", 1000) },
		"peer of itself":       func(r *v1.JoinRequest) { r.DirectPeers = map[string]v1.ConnectProtocol{"phone": 0} },
		"peer without a name":  func(r *v1.JoinRequest) { r.DirectPeers = map[string]v1.ConnectProtocol{"": 0} },
		"short proof":          func(r *v1.JoinRequest) { r.Proof = &v1.JoinProof{Signature: make([]byte, 63)} },
		"proof of no time": func(r *v1.JoinRequest) {
			r.Proof = &v1.JoinProof{Signature: make([]byte, 64), Time: &timestamppb.Timestamp{Nanos: -1}}
		},
		"unknown protocol": func(r *v1.JoinRequest) { r.DirectPeers = map[string]v1.ConnectProtocol{"gw": 77} },
		"too many peers": func(r *v1.JoinRequest) {
			r.DirectPeers = map[string]v1.ConnectProtocol{}
			for i := range maxItems + 1 {
				r.DirectPeers[fmt.Sprint("n", i)] = 0
			}
		},
	} {
		r := &v1.JoinRequest{Id: "phone", PublicKey: key}
		change(r)
		_, err := (&membershipService{state: f, members: f}).Join(t.Context(), connect.NewRequest(r))
		if !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f.joined != nil {
		t.Error("a bad request went through")
	}
}

func TestMembership_OneVoter(t *testing.T) {
	f := testFake(t)
	m := &membershipService{state: f, members: f}
	key := testKey(t).Encode()
	_, join := m.Join(t.Context(), connect.NewRequest(&v1.JoinRequest{Id: "phone", PublicKey: key, AsVoter: true}))
	_, observe := m.Join(t.Context(), connect.NewRequest(&v1.JoinRequest{Id: "phone", PublicKey: key, AsObserver: true}))
	_, update := m.Update(t.Context(), connect.NewRequest(&v1.UpdateRequest{Id: "phone", AsVoter: true}))
	for _, err := range []error{join, observe, update} {
		if !errors.Is(err, mesh.ErrPrecondition) || !strings.Contains(err.Error(), "single voter") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := m.Apply(t.Context(), nil); !errors.Is(err, mesh.ErrDenied) {
		t.Errorf("Apply: %v", err)
	}
	res, err := m.GetStorageConfiguration(t.Context(), nil)
	want := &v1.StorageConfigurationResponse{Servers: []*v1.StorageServer{{Id: "gw", Suffrage: v1.ClusterStatus_CLUSTER_LEADER, Address: "10.9.0.1:8443"}}}
	if err != nil || cmp.Diff(want, res.Msg, protocmp.Transform()) != "" {
		t.Errorf("%v, %v", res, err)
	}
}

func TestMembership_UpdateAndLeave(t *testing.T) {
	f := testFake(t)
	m := &membershipService{state: f, members: f}
	if _, err := m.Update(t.Context(), connect.NewRequest(&v1.UpdateRequest{Id: "phone", PrimaryEndpoint: "192.0.2.7"})); err != nil {
		t.Fatal(err)
	}
	if f.updated.ID != "phone" || f.updated.PrimaryEndpoint != "192.0.2.7" || !f.updated.PublicKey.IsZero() {
		t.Errorf("intent %+v", f.updated)
	}
	if _, err := m.Leave(t.Context(), connect.NewRequest(&v1.LeaveRequest{Id: "phone"})); err != nil || f.left != "phone" {
		t.Errorf("%q, %v", f.left, err)
	}
	self := WithCaller(t.Context(), Caller{ID: "phone"})
	if _, err := m.Leave(self, connect.NewRequest(&v1.LeaveRequest{Id: "phone"})); err != nil || f.left != "phone bound" {
		t.Errorf("by a token of its name: got %v, left %q; want its key to stay bound", err, f.left)
	}
	self = WithCaller(t.Context(), Caller{ID: "phone", Keyed: true})
	if _, err := m.Leave(self, connect.NewRequest(&v1.LeaveRequest{Id: "phone"})); err != nil || f.left != "phone" {
		t.Errorf("by its key: got %v, left %q", err, f.left)
	}
	if _, err := m.Leave(t.Context(), connect.NewRequest(&v1.LeaveRequest{Id: "gw"})); !errors.Is(err, mesh.ErrPrecondition) {
		t.Errorf("the gateway itself: %v", err)
	}
}

// A node that follows a gateway sees a part of the mesh only, and must not
// answer as if that were all.
func TestMembership_OnANodeWithoutState(t *testing.T) {
	f := testFake(t)
	f.self = "phone"
	m := &membershipService{state: f, members: f}
	if _, err := m.GetStorageConfiguration(t.Context(), nil); !errors.Is(err, mesh.ErrUnsupported) {
		t.Error(err)
	}
	if err := m.SubscribePeers(t.Context(), connect.NewRequest(&v1.SubscribePeersRequest{Id: "gw"}), nil); !errors.Is(err, mesh.ErrUnsupported) {
		t.Error(err)
	}
	f.snap = nil
	if _, err := m.GetStorageConfiguration(t.Context(), nil); !errors.Is(err, mesh.ErrUnavailable) {
		t.Error(err)
	}
}

func TestNode_GetStatus(t *testing.T) {
	f := testFake(t)
	other := testKey(t).WireGuard()
	handshake := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	f.stats = mesh.InterfaceStats{
		Name: "meshgate0", Type: "netstack", ListenPort: 51820, PublicKey: f.snap.Node("gw").PublicKey.WireGuard(),
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/32"), netip.MustParsePrefix("fd00::1/112")},
		Peers: []mesh.PeerStats{
			{PublicKey: other, Endpoint: "192.0.2.9:1", LastHandshake: handshake, Keepalive: 25 * time.Second, ReceiveBytes: 5, TransmitBytes: 7},
			{PublicKey: testKey(t).WireGuard(), ReceiveBytes: 1},
		},
	}
	n := &nodeService{Config: Config{State: f, Remote: f, Build: Build{Version: "v1", Commit: "c", Date: "d"}}, links: &links{source: f, ways: f}, presences: newPresences(&Config{State: f}, &links{source: f, ways: f}), started: time.Now()}
	status := func(id string) (*v1.Status, error) {
		res, err := n.GetStatus(t.Context(), connect.NewRequest(&v1.GetStatusRequest{Id: id}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	for _, id := range []string{"", "gw"} {
		s, err := status(id)
		if err != nil {
			t.Fatal(err)
		}
		m := s.GetInterfaceMetrics()
		if s.GetId() != "gw" || s.GetVersion() != "v1" || s.GetClusterStatus() != v1.ClusterStatus_CLUSTER_LEADER || s.GetCurrentLeader() != "gw" ||
			len(s.GetFeatures()) != 3 || s.GetUptime() == "" || m.GetTotalReceiveBytes() != 6 || m.GetTotalTransmitBytes() != 7 ||
			m.GetAddressV4() != "10.9.0.1/32" || m.GetPublicKey() != f.stats.PublicKey.String() {
			t.Errorf("status %v", s)
		}
		if p := m.GetPeers()[0]; p.GetPublicKey() != other.String() || p.GetLastHandshakeTime() != "2026-11-22T10:00:00Z" || p.GetPersistentKeepAlive() != "25s" {
			t.Errorf("peer %v", p)
		}
		if m.GetPeers()[1].GetLastHandshakeTime() != "" {
			t.Error("a handshake that never was")
		}
	}
	for id, want := range map[string]error{"gw-dns": nil, "phone": mesh.ErrPrecondition, "absent": mesh.ErrNotFound, "../x": mesh.ErrInvalid, "*": mesh.ErrInvalid} {
		if _, err := status(id); !errors.Is(err, want) {
			t.Errorf("%s: %v", id, err)
		}
	}
	f.self = "phone"
	if s, err := status("phone"); err != nil || s.GetClusterStatus() != v1.ClusterStatus_CLUSTER_NODE || s.GetCurrentLeader() != "" {
		t.Errorf("%v, %v", s, err)
	}
	// A node knows a part of the mesh; of the others it asks.
	n.Ways = &knows{f, &mesh.Node{ID: "far", Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}}}
	for id, want := range map[string]error{"far": nil, "absent": mesh.ErrNotFound} {
		if _, err := status(id); !errors.Is(err, want) {
			t.Errorf("%s, on a node that knows a part: %v", id, err)
		}
	}
	f.snap = nil
	if _, err := status(""); !errors.Is(err, mesh.ErrUnavailable) {
		t.Error(err)
	}
}

func TestLinks(t *testing.T) {
	f := testFake(t)
	now := time.Now()
	key := func(id mesh.NodeID) mesh.WireGuardKey { return f.snap.Node(id).PublicKey.WireGuard() }
	for name, tt := range map[string]struct {
		handshake time.Time
		online    bool
	}{
		"never":  {time.Time{}, false},
		"recent": {now.Add(-handshakeAge + time.Second), true},
		"old":    {now.Add(-handshakeAge), false},
	} {
		got := linksToProto(f.snap, mesh.InterfaceStats{Peers: []mesh.PeerStats{
			{PublicKey: testKey(t).WireGuard()}, // a stranger
			{PublicKey: key("phone"), LastHandshake: tt.handshake, Endpoint: "192.0.2.9:1", ReceiveBytes: 3},
			{PublicKey: key("gw")},
		}}, map[mesh.NodeID]mesh.Way{"gw": {Node: "gw", Kind: mesh.DirectWay}}, now)
		if got[0].GetPath().GetKind() != meshgatev1.PathKind_PATH_KIND_DIRECT || got[1].GetPath() != nil {
			t.Errorf("%s: paths %v and %v", name, got[0].GetPath(), got[1].GetPath())
		}
		if len(got) != 2 || got[0].GetNodeId() != "gw" || got[1].GetOnline() != tt.online || got[1].GetReceiveBytes() != 3 {
			t.Errorf("%s: %v", name, got)
		}
		if (got[1].GetLastHandshake() != nil) != !tt.handshake.IsZero() {
			t.Errorf("%s: handshake %v", name, got[1].GetLastHandshake())
		}
	}
}

func TestMesh_Graph(t *testing.T) {
	f := testFake(t)
	evil := mesh.NodeID("a\\\" -> \"b\n<b>x</b>")
	f.snap.Nodes = f.snap.Nodes.With(&mesh.Node{ID: evil})
	f.snap.Edges = f.snap.Edges.With(mesh.Edge{Source: evil, Target: "gw"})
	res, err := (&meshService{state: f}).GetMeshGraph(t.Context(), connect.NewRequest(&emptypb.Empty{}))
	if err != nil {
		t.Fatal(err)
	}
	want := "graph mesh {\n" +
		"\t\"a\\\\\\\" -> \\\"b <b>x</b>\";\n" +
		"\t\"gw\";\n\t\"gw-dns\";\n\t\"phone\";\n" +
		"\t\"a\\\\\\\" -> \\\"b <b>x</b>\" -- \"gw\" [weight=0];\n" +
		"\t\"gw\" -- \"phone\" [weight=4];\n}\n"
	if diff := cmp.Diff(want, res.Msg.GetDot()); diff != "" {
		t.Error(diff)
	}
	if len(res.Msg.GetNodes()) != 4 || len(res.Msg.GetEdges()) != 2 {
		t.Errorf("%v", res.Msg)
	}
}

// The table of errors, row by row.
func TestError(t *testing.T) {
	closing, cancel := context.WithCancelCause(context.Background())
	cancel(ErrClosing)
	wire := wireError(t, connect.CodeUnauthenticated)
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		want connect.Code
		text string
	}{
		{nil, fmt.Errorf("x: %w", mesh.ErrInvalid), connect.CodeInvalidArgument, "x: invalid argument"},
		{nil, fmt.Errorf("x: %w", mesh.ErrNotFound), connect.CodeNotFound, "x: not found"},
		{nil, mesh.ErrExists, connect.CodeAlreadyExists, ""},
		{nil, mesh.ErrDenied, connect.CodePermissionDenied, ""},
		{nil, mesh.ErrUnauthenticated, connect.CodeUnauthenticated, ""},
		{nil, mesh.ErrExhausted, connect.CodeResourceExhausted, ""},
		{nil, mesh.ErrPrecondition, connect.CodeFailedPrecondition, ""},
		{nil, mesh.ErrUnavailable, connect.CodeUnavailable, ""},
		{nil, mesh.ErrUnsupported, connect.CodeUnimplemented, ""},
		{nil, ErrClosing, connect.CodeUnavailable, ""},
		{nil, fmt.Errorf("x: %w", context.Canceled), connect.CodeCanceled, ""},
		{nil, fmt.Errorf("x: %w", context.DeadlineExceeded), connect.CodeDeadlineExceeded, ""},
		{nil, io.EOF, connect.CodeInvalidArgument, "ended before"},
		{nil, errors.New("open /etc/secret"), connect.CodeInternal, "request_id r-1"},
		{nil, connect.NewError(connect.CodeOutOfRange, errors.New("x")), connect.CodeOutOfRange, ""},
		{nil, fmt.Errorf("x: %w", connect.NewError(connect.CodeOutOfRange, errors.New("x"))), connect.CodeOutOfRange, ""},
		{nil, fmt.Errorf("%w: %w", mesh.ErrUnavailable, wire), connect.CodeUnavailable, ""},
		{nil, wire, connect.CodeUnavailable, "the other node answered"},
		{nil, fmt.Errorf("x: %w", wireError(t, connect.CodeNotFound)), connect.CodeNotFound, "the other node answered"},
		{closing, context.Canceled, connect.CodeUnavailable, "shutting down"},
		{closing, errors.New("x"), connect.CodeUnavailable, "shutting down"},
	} {
		ctx := tt.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		got := Error(ctx, tt.err, "r-1")
		if got.Code() != tt.want || !strings.Contains(got.Message(), tt.text) || strings.Contains(got.Message(), "secret") {
			t.Errorf("%v: %v", tt.err, got)
		}
	}
	if Error(t.Context(), nil, "") != nil {
		t.Error("an error out of nothing")
	}
}

// That it was removed ends a node, so that nothing else may look like it.
func TestError_RemovedIsADetailOfItsOwn(t *testing.T) {
	for _, tt := range []struct {
		err     error
		removed bool
	}{
		{fmt.Errorf("adopt node %q: %w: it was removed", "nas", mesh.ErrRemoved), true},
		{fmt.Errorf("direct_peers: %w", mesh.ErrNotFound), false},
		{mesh.ErrUnauthenticated, false},
		{store.ErrNotFound, false},
	} {
		got := Error(t.Context(), tt.err, "r-1")
		if peer.Removed(got) != tt.removed || got.Message() != tt.err.Error() {
			t.Errorf("%v: %v with %d details", tt.err, got, len(got.Details()))
		}
	}
}
