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
