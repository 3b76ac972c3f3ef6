// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// What a node says of itself replaces what it said before; who it is stays.
func TestDeclare_ReplacesAndWithdraws(t *testing.T) {
	f := newFixture(t)
	r := mesh.JoinRequest{
		Node: mesh.Node{
			ID: "a", PublicKey: newKey(t), PrimaryEndpoint: "192.0.2.7", Zone: "z1",
			Services: []mesh.Service{{Protocol: "tcp", Port: 80}},
		},
		AssignIPv4: true,
		Routes:     []netip.Prefix{netip.MustParsePrefix("198.18.5.0/24")},
	}
	s, err := f.Join(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Node("a")
	if err := f.Declare(t.Context(), mesh.Node{ID: "a", Zone: "z2"}, nil); err != nil {
		t.Fatal(err)
	}
	s = f.registry.Snapshot()
	want := mesh.Node{ID: "a", PublicKey: before.PublicKey, IPv4: before.IPv4, IPv6: before.IPv6, JoinedAt: before.JoinedAt, Zone: "z2"}
	if diff := cmp.Diff(want, *s.Node("a"), equal); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}
	for _, route := range s.Routes {
		if route.Name == registry.AutoRoute("a") {
			t.Errorf("the route is still offered: %v", route)
		}
	}
}

func TestDeclare_RefusesWhatAJoinRefuses(t *testing.T) {
	f := newFixture(t)
	if _, err := f.Join(t.Context(), mesh.JoinRequest{Node: mesh.Node{ID: "a", PublicKey: newKey(t)}}); err != nil {
		t.Fatal(err)
	}
	f.wantRefused(f.Declare(t.Context(), mesh.Node{ID: "none"}, nil), mesh.ErrNotFound, "none")
	f.wantRefused(f.Declare(t.Context(), mesh.Node{ID: "a", PublicKey: newKey(t)}, nil), mesh.ErrExists, "public_key")
	f.wantRefused(f.Declare(t.Context(), mesh.Node{ID: "a", PrimaryEndpoint: "169.254.0.1"}, nil), mesh.ErrInvalid, "primary_endpoint")
	f.wantRefused(f.Declare(t.Context(), mesh.Node{ID: "a"}, []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}), mesh.ErrInvalid, "routes")
}

// A node that takes itself for a member is told that it was removed; one of
// another mesh is new here.
func TestJoin_OfARemovedMemberIsNotFound(t *testing.T) {
	f := newFixture(t)
	r := mesh.JoinRequest{Node: mesh.Node{ID: "a", PublicKey: newKey(t)}}
	s, err := f.Join(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	r.MemberOf = s.IPv6
	if _, err := f.Join(t.Context(), r); err != nil {
		t.Errorf("a member that joins again: %v", err)
	}
	if err := f.Leave(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	_, err = f.Join(t.Context(), r)
	f.wantRefused(err, mesh.ErrRemoved, "removed")
	if _, err := f.Join(t.Context(), mesh.JoinRequest{Node: mesh.Node{ID: "b", PublicKey: newKey(t)}}); err != nil {
		t.Fatal(err)
	}
	again := mesh.JoinRequest{
		Node: mesh.Node{ID: "b", PublicKey: f.registry.Snapshot().Node("b").PublicKey}, MemberOf: s.IPv6,
		DirectPeers: map[mesh.NodeID]v1.ConnectProtocol{"a": v1.ConnectProtocol_CONNECT_ICE},
	}
	if _, err := f.Join(t.Context(), again); !errors.Is(err, mesh.ErrNotFound) || errors.Is(err, mesh.ErrRemoved) {
		t.Errorf("a member whose peer is gone: %v", err)
	}
	r.MemberOf = netip.MustParsePrefix("fd00:9999::/32")
	if _, err := f.Join(t.Context(), r); err != nil {
		t.Errorf("a member of another mesh: %v", err)
	}
}

// A route that has the name of a node's own may be somebody else's: a node
// neither deletes it, nor takes its place.
func TestRoutes_OfOthersStay(t *testing.T) {
	f := newFixture(t)
	f.join(request(t, "gw3"))
	f.join(request(t, "fresh"))
	foreign := mesh.Route{Name: registry.AutoRoute("fresh"), Node: "gw3", Destinations: prefixes("10.5.0.0/16")}
	put := func(r mesh.Route) {
		t.Helper()
		if _, err := f.registry.Update(t.Context(), func(tx *registry.Tx) error { return tx.PutRoute(r) }); err != nil {
			t.Fatal(err)
		}
	}
	put(foreign)
	again := mesh.JoinRequest{Node: *f.registry.Snapshot().Node("fresh")}
	routes := prefixes("10.6.0.0/16")
	for name, call := range map[string]func(routes []netip.Prefix) error{
		"join": func(routes []netip.Prefix) error {
			again.Routes = routes
			_, err := f.Join(t.Context(), again)
			return err
		},
		"update": func(routes []netip.Prefix) error {
			return f.Update(t.Context(), mesh.UpdateRequest{ID: "fresh", Routes: routes})
		},
		"declare": func(routes []netip.Prefix) error { return f.Declare(t.Context(), again.Node, routes) },
	} {
		if err := call(nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		f.wantRefused(call(routes), mesh.ErrExists, `routes: there is a route "fresh-auto" of "gw3"`)
		if diff := cmp.Diff([]mesh.Route{foreign}, f.registry.Snapshot().Routes, equal); diff != "" {
			t.Errorf("%s: routes (-want +got):\n%s", name, diff)
		}
	}
	// The gateway itself starts whatever there is.
	put(mesh.Route{Name: registry.AutoRoute("gw"), Node: "gw3", Destinations: prefixes("10.7.0.0/16")})
	if err := f.Declare(t.Context(), *f.registry.Snapshot().Node("gw"), prefixes("10.8.0.0/16")); err != nil {
		t.Errorf("of the gateway itself: %v", err)
	}
}
