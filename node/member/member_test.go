// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/meshgate/meshgate/node/member"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	"github.com/meshgate/meshgate/node/store"
	"github.com/meshgate/meshgate/node/store/storetest"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var equal = cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Transformer("nodes", func(n mesh.Nodes) map[mesh.NodeID]*mesh.Node { return maps.Collect(n.All()) }),
	cmp.Transformer("edges", func(e mesh.Edges) []mesh.Edge { return slices.Collect(e.All()) })}

// fixture is a mesh with the gateway "gw" in it.
type fixture struct {
	*member.Members
	t        testing.TB
	store    store.Store
	registry *registry.Registry
}

func newFixture(t testing.TB) fixture {
	t.Helper()
	return newFixtureOf(t, registry.Bootstrap{})
}

func newFixtureOf(t testing.TB, b registry.Bootstrap) fixture {
	t.Helper()
	f := newReplica(t, storetest.New(), "gw")
	b.Self.ID = "gw"
	b.Self.PublicKey = newKey(t)
	if err := f.registry.Bootstrap(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return f
}

// newReplica is another process over the same store.
func newReplica(t testing.TB, s store.Store, self mesh.NodeID) fixture {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	r := registry.New(s, logger)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	<-r.Ready()
	m, err := member.New(member.Config{Registry: r, Self: self, AllowUnproven: true, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{m, t, s, r}
}

func newKey(t testing.TB) mesh.PublicKey {
	t.Helper()
	k, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

// request asks for a plain node with a key of its own and an IPv4 address.
func request(t testing.TB, id mesh.NodeID) mesh.JoinRequest {
	t.Helper()
	return mesh.JoinRequest{Node: mesh.Node{ID: id, PublicKey: newKey(t)}, AssignIPv4: true}
}

func (f fixture) join(r mesh.JoinRequest) *mesh.Snapshot {
	f.t.Helper()
	s, err := f.Join(f.t.Context(), r)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// wantRefused checks the error and that nothing was written.
func (f fixture) wantRefused(err error, want error, field string) {
	f.t.Helper()
	if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), field) {
		f.t.Errorf("got %v, want %v that names %q", err, want, field)
	}
}

func (f fixture) version() uint64 { return f.registry.Snapshot().Version }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestJoin_IsOneChange(t *testing.T) {
	f := newFixture(t)
	before := f.version()
	r := request(t, "a")
	r.Node.PrimaryEndpoint = "192.0.2.1"
	r.Node.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}
	r.Node.Zone = "z"
	r.Node.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}
	r.Node.Services = []mesh.Service{{Protocol: "tcp", Port: 22, Kind: "ssh"}}
	r.Node.Multiaddrs = []string{"/ip4/192.0.2.1"}
	r.Routes = prefixes("10.1.0.0/16", "2001:db8::/32")
	s := f.join(r)
	n := s.Node("a")
	if age := time.Since(n.JoinedAt); age < -time.Second || age > time.Minute {
		t.Errorf("joined at %v", n.JoinedAt)
	}
	want := r.Node
	want.JoinedAt = n.JoinedAt
	want.IPv4 = netip.MustParsePrefix("172.16.0.2/32")
	want.IPv6 = mesh.NodeIPv6(s.IPv6, r.Node.PublicKey.WireGuard())
	if diff := cmp.Diff(&want, n, equal); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(mesh.EdgesOf(mesh.Edge{Source: "a", Target: "gw", Weight: 1}), s.Edges, equal); diff != "" {
		t.Errorf("edges (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]mesh.Route{{Name: "a-auto", Node: "a", Destinations: r.Routes}}, s.Routes, equal); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	changes := 0
	for c, err := range f.store.Watch(t.Context(), "", before) {
		if err != nil {
			t.Fatal(err)
		}
		changes++
		if c.Version == s.Version {
			break
		}
	}
	if changes != 1 {
		t.Errorf("the join made %d changes, want 1", changes)
	}
}

func TestJoin_OfAStockWireGuardPeer(t *testing.T) {
	f := newFixture(t)
	s := f.join(request(t, "phone"))
	n := s.Node("phone")
	if n.RunsMeshgate() || len(n.Addrs()) != 2 || s.Edges.Len() != 1 {
		t.Errorf("got %+v with edges %v", n, s.Edges)
	}
}

func TestJoin_WithoutIPv4(t *testing.T) {
	f := newFixture(t)
	r := request(t, "a")
	r.AssignIPv4 = false
	if n := f.join(r).Node("a"); n.IPv4.IsValid() || !n.IPv6.IsValid() {
		t.Errorf("got addresses %v", n.Addrs())
	}
	r.AssignIPv4 = true
	if n := f.join(r).Node("a"); n.IPv4.String() != "172.16.0.2/32" {
		t.Errorf("asked later: got %v", n.IPv4)
	}
	r.AssignIPv4 = false
	if n := f.join(r).Node("a"); n.IPv4.String() != "172.16.0.2/32" {
		t.Errorf("no longer asked: got %v, want the address kept", n.IPv4)
	}
}

// TestJoin_Again shows that addresses stay and all else is what the node says now.
func TestJoin_Again(t *testing.T) {
	f := newFixture(t)
	r := request(t, "a")
	r.Node.Zone = "z"
	r.Routes = prefixes("10.1.0.0/16")
	first := f.join(r)
	f.join(request(t, "b"))
	if again := f.join(r); !cmp.Equal(first.Node("a"), again.Node("a"), equal) || again != f.registry.Snapshot() {
		t.Errorf("the same request changed the record: %v", cmp.Diff(first.Node("a"), again.Node("a"), equal))
	}
	version := f.version()
	if f.join(r); f.version() != version {
		t.Error("the same request made a new version")
	}
	r.Node.Zone, r.Routes = "", nil
	r.Node.IPv4, r.Node.IPv6, r.Node.JoinedAt = netip.MustParsePrefix("172.16.0.9/32"), netip.Prefix{}, time.Now()
	s := f.join(r)
	want := *first.Node("a")
	want.Zone = ""
	if diff := cmp.Diff(&want, s.Node("a"), equal); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if len(s.Routes) != 0 {
		t.Errorf("routes %v are left of the first join", s.Routes)
	}
}

// An address that became free is handed out when those behind it are used up.
func TestJoin_AddressesAreUsedAgainAfterLeave(t *testing.T) {
	f := newFixtureOf(t, registry.Bootstrap{IPv4: netip.MustParsePrefix("172.16.0.0/29")})
	for _, id := range []mesh.NodeID{"a", "b", "c"} {
		f.join(request(t, id))
	}
	if err := f.Leave(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"172.16.0.5/32", "172.16.0.6/32", "172.16.0.3/32"} {
		id := mesh.NodeID(fmt.Sprint("late", i))
		if got := f.join(request(t, id)).Node(id).IPv4.String(); got != want {
			t.Errorf("%s got %s, want %s", id, got, want)
		}
	}
	_, err := f.Join(t.Context(), request(t, "g"))
	f.wantRefused(err, mesh.ErrExhausted, "assign_ipv4")
}

func TestJoin_StaticAddress(t *testing.T) {
	f := newFixture(t)
	m, err := member.New(member.Config{Registry: f.registry, Self: "gw", AllowUnproven: true, StaticIPv4: map[mesh.NodeID]netip.Addr{
		"printer": netip.MustParseAddr("172.16.0.2"), "late": netip.MustParseAddr("172.16.0.4"), "far": netip.MustParseAddr("10.0.0.1"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.Members = m
	late := request(t, "late")
	late.AssignIPv4 = false
	f.join(late)
	late.AssignIPv4 = true
	for want, r := range map[string]mesh.JoinRequest{"172.16.0.3/32": request(t, "a"), "172.16.0.2/32": request(t, "printer"), "172.16.0.4/32": late} {
		if got := f.join(r).Node(r.Node.ID).IPv4.String(); got != want {
			t.Errorf("%s got %s, want %s", r.Node.ID, got, want)
		}
	}
	_, err = f.Join(t.Context(), request(t, "far"))
	f.wantRefused(err, mesh.ErrPrecondition, "assign_ipv4")
	if _, err := member.New(member.Config{Registry: f.registry, Self: "gw", StaticIPv4: map[mesh.NodeID]netip.Addr{"x": {}}}); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("a static address that is none: %v", err)
	}
}

// TestJoin_Parallel has many nodes join at once, by way of several replicas.
func TestJoin_Parallel(t *testing.T) {
	const nodes, replicas = 100, 3
	f := newFixture(t)
	via := []fixture{f}
	for range replicas - 1 {
		via = append(via, newReplica(t, f.store, "gw"))
	}
	errs := make(chan error)
	for i := range nodes {
		r := request(t, mesh.NodeID(fmt.Sprintf("n%03d", i)))
		go func() {
			var err error
			for range 20 { // replicas that are not the leader compete: it may say to try again
				var s *mesh.Snapshot
				if s, err = via[i%replicas].Join(t.Context(), r); err == nil && s.Node(r.Node.ID) == nil {
					err = fmt.Errorf("%s is not in its snapshot", r.Node.ID)
				}
				if !errors.Is(err, mesh.ErrUnavailable) {
					break
				}
			}
			errs <- err
		}()
	}
	for range nodes {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	s := newReplica(t, f.store, "gw").registry.Snapshot()
	seen := map[netip.Addr]mesh.NodeID{}
	for id, n := range s.Nodes.All() {
		for _, a := range n.Addrs() {
			if other, ok := seen[a]; ok {
				t.Errorf("%s and %s both have %v", id, other, a)
			}
			seen[a] = id
		}
	}
	if s.Nodes.Len() != nodes+1 || len(seen) != 2*(nodes+1) || s.Edges.Len() != nodes {
		t.Errorf("got %d nodes, %d addresses, %d edges", s.Nodes.Len(), len(seen), s.Edges.Len())
	}
}

// TestJoin_SameThingAtOnce has many ask for one id, or one key: one gets it.
func TestJoin_SameThingAtOnce(t *testing.T) {
	const n = 20
	shared := newKey(t)
	for name, ask := range map[string]func(i int) mesh.JoinRequest{
		"id": func(int) mesh.JoinRequest { return request(t, "same") },
		"key": func(i int) mesh.JoinRequest {
			return mesh.JoinRequest{Node: mesh.Node{ID: mesh.NodeID(fmt.Sprintf("n%d", i)), PublicKey: shared}, AssignIPv4: true}
		},
		"route": func(i int) mesh.JoinRequest {
			r := request(t, mesh.NodeID(fmt.Sprintf("n%d", i)))
			r.Routes = prefixes("10.1.0.0/16")
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			errs := make(chan error)
			for i := range n {
				r := ask(i)
				go func() {
					_, err := f.Join(t.Context(), r)
					errs <- err
				}()
			}
			joined := 0
			for range n {
				switch err := <-errs; {
				case err == nil:
					joined++
				case !errors.Is(err, mesh.ErrExists):
					t.Error(err)
				}
			}
			if got := f.registry.Snapshot().Nodes.Len(); joined != 1 || got != 2 {
				t.Errorf("%d joined, %d nodes are there, want 1 and 2", joined, got)
			}
		})
	}
}

func TestJoin_Takeover(t *testing.T) {
	f := newFixture(t)
	a := request(t, "a")
	f.join(a)
	version := f.version()
	_, err := f.Join(t.Context(), request(t, "a"))
	f.wantRefused(err, mesh.ErrExists, "public_key")
	f.wantRefused(err, mesh.ErrExists, "meshgate delete nodes a")
	_, err = f.Join(t.Context(), request(t, "gw"))
	f.wantRefused(err, mesh.ErrExists, "public_key")
	_, err = f.Join(t.Context(), mesh.JoinRequest{Node: mesh.Node{ID: "b", PublicKey: a.Node.PublicKey}})
	f.wantRefused(err, mesh.ErrExists, "public_key")
	_, err = f.Join(t.Context(), mesh.JoinRequest{Node: mesh.Node{ID: "b", PublicKey: f.registry.Snapshot().Node("gw").PublicKey}})
	f.wantRefused(err, mesh.ErrExists, "public_key")
	if f.version() != version {
		t.Error("a refused join wrote something")
	}
	if err := f.Leave(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	f.join(request(t, "a")) // the id is free again
}

// TestJoin_OfANamedNode has v1 nodes' placeholders: an id without a key.
func TestJoin_OfANamedNode(t *testing.T) {
	f := newFixture(t)
	f.write(store.Op{Key: "/registry/nodes/a", Value: []byte(`{"id":"a"}`)}, store.Op{Key: "/registry/nodes/b", Value: []byte(`{"id":`)})
	if n := f.join(request(t, "a")).Node("a"); len(n.Addrs()) != 2 || n.JoinedAt.IsZero() {
		t.Errorf("got %+v", n)
	}
	_, err := f.Join(t.Context(), request(t, "b"))
	f.wantRefused(err, mesh.ErrExists, "makes no sense")
	if err := f.Leave(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	f.join(request(t, "b"))
}

// write changes the store beside the registry, and waits until it knows.
func (f fixture) write(ops ...store.Op) {
	f.t.Helper()
	version, err := f.store.Apply(f.t.Context(), store.Batch{Ops: ops})
	if err == nil {
		_, err = f.registry.Wait(f.t.Context(), version-1)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func TestJoin_BeforeThereIsAMesh(t *testing.T) {
	f := newReplica(t, storetest.New(), "gw")
	_, err := f.Join(t.Context(), request(t, "a"))
	f.wantRefused(err, mesh.ErrPrecondition, "no mesh")
}

func TestJoin_WhenAddressesAreUsedUp(t *testing.T) {
	f := newFixtureOf(t, registry.Bootstrap{IPv4: netip.MustParsePrefix("10.0.0.0/30")})
	f.join(request(t, "a"))
	_, err := f.Join(t.Context(), request(t, "b"))
	f.wantRefused(err, mesh.ErrExhausted, "assign_ipv4")
	r := request(t, "b")
	r.AssignIPv4 = false
	f.join(r)
}

func TestJoin_Edges(t *testing.T) {
	f := newFixture(t)
	hosts := 0
	public := func(id mesh.NodeID, zone string) mesh.JoinRequest {
		r := request(t, id)
		hosts++
		r.Node.PrimaryEndpoint, r.Node.Zone = fmt.Sprintf("192.0.2.%d", hosts), zone
		r.Node.Features = []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}
		return r
	}
	for _, r := range []mesh.JoinRequest{public("p1", ""), public("p2", ""), public("z1", "z"), public("y1", "y")} {
		f.join(r)
	}
	hidden := request(t, "z2")
	hidden.Node.Zone = "z"
	f.join(hidden)
	r := public("new", "z")
	r.DirectPeers = map[mesh.NodeID]v1.ConnectProtocol{"p1": v1.ConnectProtocol_CONNECT_ICE, "gw": v1.ConnectProtocol_CONNECT_NATIVE}
	s := f.join(r)
	var got []string
	for e := range s.Edges.All() {
		got = append(got, fmt.Sprintf("%s-%s %d %v", e.Source, e.Target, e.Weight, e.Attributes))
	}
	want := []string{ // those among public nodes are not stored
		"gw-new 1 map[EDGE_ATTRIBUTE_NATIVE:true]",
		"gw-p1 1 map[]", "gw-p2 1 map[]", "gw-y1 1 map[]", "gw-z1 1 map[]", "gw-z2 1 map[]",
		"new-p1 1 map[EDGE_ATTRIBUTE_ICE:true]",
		"z1-z2 1 map[]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("edges:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// What somebody set on an edge stays.
	r.DirectPeers = nil
	if diff := cmp.Diff(s.Edges, f.join(r).Edges, equal); diff != "" {
		t.Errorf("edges after joining again (-before +after):\n%s", diff)
	}
}

func TestUpdate(t *testing.T) {
	f := newFixture(t)
	r := request(t, "a")
	r.Node.Zone = "z"
	r.Node.Services = []mesh.Service{{Protocol: "tcp", Port: 22}}
	r.Routes = prefixes("10.1.0.0/16")
	before := f.join(r)
	if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "a", PublicKey: r.Node.PublicKey}); err != nil {
		t.Fatal(err)
	}
	if f.version() != before.Version {
		t.Error("an empty update made a new version")
	}
	u := mesh.UpdateRequest{
		ID: "a", PrimaryEndpoint: "gw.example.com", Zone: "y",
		WireGuardEndpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:1")},
		Features:           []mesh.Feature{{Kind: v1.Feature_NODES, Port: 1}},
		Services:           []mesh.Service{{Protocol: "udp", Port: 53}},
		Multiaddrs:         []string{"/dns/x"},
		Routes:             prefixes("10.2.0.0/16"),
	}
	if err := f.Update(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	s := f.registry.Snapshot()
	want := *before.Node("a")
	want.PrimaryEndpoint, want.Zone, want.WireGuardEndpoints = u.PrimaryEndpoint, u.Zone, u.WireGuardEndpoints
	want.Features, want.Services, want.Multiaddrs = u.Features, u.Services, u.Multiaddrs
	if diff := cmp.Diff(&want, s.Node("a"), equal); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]mesh.Route{{Name: "a-auto", Node: "a", Destinations: u.Routes}}, s.Routes, equal); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: "none"}), mesh.ErrNotFound, "none")
	f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: "a", PublicKey: newKey(t)}), mesh.ErrExists, "public_key")
	f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: "a/"}), mesh.ErrInvalid, "id")
	if f.version() != s.Version {
		t.Error("a refused update wrote something")
	}
}

func TestLeave(t *testing.T) {
	f := newFixture(t)
	empty := f.registry.Snapshot()
	a := request(t, "a")
	a.Routes = prefixes("10.1.0.0/16")
	f.join(a)
	b := request(t, "b")
	b.DirectPeers = map[mesh.NodeID]v1.ConnectProtocol{"a": v1.ConnectProtocol_CONNECT_ICE}
	f.join(b)
	f.write(store.Op{Key: "/registry/routes/more", Value: []byte(`{"name":"more","node":"a","destinationCidrs":["10.2.0.0/16"]}`)})
	if err := f.Leave(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s := f.registry.Snapshot()
	if s.Node("a") != nil || len(s.Routes) != 0 || s.Edges.Len() != 1 {
		t.Errorf("left: nodes %v, routes %v, edges %v", s.Nodes, s.Routes, s.Edges)
	}
	if err := f.Leave(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []mesh.NodeID{"b", "a", "never"} {
		f.wantRefused(f.Leave(t.Context(), id), mesh.ErrNotFound, fmt.Sprintf("leave of node %q: not found: no node of this id in the mesh", id))
		f.wantRefused(f.LeaveBound(t.Context(), id), mesh.ErrNotFound, "no node of this id")
	}
	left := f.registry.Snapshot()
	if diff := cmp.Diff(empty, left, equal, cmpopts.IgnoreFields(mesh.Snapshot{}, "Version", "Revision", "LastIPv4")); diff != "" {
		t.Errorf("the mesh is not what it was before the joins (-before +after):\n%s", diff)
	}
	entries, _, err := f.store.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Key, "/edges/") || strings.Contains(e.Key, "/routes/") {
			t.Errorf("%s is left in the store", e.Key)
		}
	}
	f.wantRefused(f.Leave(t.Context(), "gw"), mesh.ErrPrecondition, "gw")
}

func TestNew_NeedsARegistryAndSelf(t *testing.T) {
	for _, cfg := range []member.Config{{}, {Self: "gw"}, {Registry: registry.New(storetest.New(), nil)}} {
		if _, err := member.New(cfg); err == nil {
			t.Errorf("made from %+v", cfg)
		}
	}
}
