// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/member"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// outsideFixture is a mesh whose gateways are at 198.18.77.1 and 10.0.1.9, with
// replicas at 10.0.0.5 and 10.0.1.5, and whose node "far" has WireGuard only.
func outsideFixture(t *testing.T) fixture {
	t.Helper()
	f := newFixtureOf(t, registry.Bootstrap{Self: mesh.Node{PrimaryEndpoint: "198.18.77.1"}})
	m, err := member.New(member.Config{Registry: f.registry, Self: "gw", AllowUnproven: true, Replicas: func() []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.1.5")}
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.Members = m
	second := request(t, "second")
	second.Node.PrimaryEndpoint = "10.0.1.9"
	f.join(second)
	far := request(t, "far")
	far.Node.WireGuardEndpoints = []netip.AddrPort{netip.MustParseAddrPort("198.18.80.1:51820"), netip.MustParseAddrPort("[2001:db8:80::1]:51820")}
	f.join(far)
	f.join(request(t, "me"))
	return f
}

// Nobody gets a route on which the mesh itself runs, by whichever call.
func TestRoutes_LeaveTheMeshItsAddresses(t *testing.T) {
	f := outsideFixture(t)
	for _, tt := range []struct{ route, holds string }{
		{"198.18.77.1/32", "198.18.77.1"},
		{"198.18.76.0/22", "198.18.77.1"},
		{"10.0.1.9/32", `"second"`},
		{"10.0.0.5/32", "10.0.0.5"},
		{"10.0.0.0/8", "keep the state"},
		{"198.18.80.0/24", `"far"`},
		{"2001:db8:80::/48", `"far"`},
	} {
		version := f.version()
		routes := prefixes(tt.route)
		join := request(t, "new")
		join.Routes = routes
		_, joined := f.Join(t.Context(), join)
		f.wantRefused(joined, mesh.ErrInvalid, tt.holds)
		f.wantRefused(joined, mesh.ErrInvalid, "routes: ")
		f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: "me", Routes: routes}), mesh.ErrInvalid, tt.holds)
		f.wantRefused(f.Declare(t.Context(), *f.registry.Snapshot().Node("me"), routes), mesh.ErrInvalid, tt.holds)
		if f.version() != version {
			t.Errorf("%s: it wrote something", tt.route)
		}
	}
	own := request(t, "own")
	own.Node.PrimaryEndpoint, own.Routes = "198.18.90.1", prefixes("198.18.90.0/24")
	_, err := f.Join(t.Context(), own)
	f.wantRefused(err, mesh.ErrInvalid, `"own"`)
	own.Routes = prefixes("198.18.78.0/24", "10.7.0.0/16")
	f.join(own)
}

// An endpoint cannot move into a network that somebody offers, but for the
// gateway's own and for what was there before: these have to start.
func TestEndpoints_StayOutOfRoutes(t *testing.T) {
	f := outsideFixture(t)
	offering := request(t, "offering")
	offering.Routes = prefixes("10.7.0.0/16")
	f.join(offering)
	join := request(t, "new")
	join.Node.PrimaryEndpoint = "10.7.0.1"
	_, err := f.Join(t.Context(), join)
	f.wantRefused(err, mesh.ErrInvalid, `"offering-auto"`)
	inside := []netip.AddrPort{netip.MustParseAddrPort("10.7.0.1:1")}
	for _, id := range []mesh.NodeID{"me", "offering"} {
		f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: id, WireGuardEndpoints: inside}), mesh.ErrInvalid, "wireguard_endpoints")
	}
	if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "gw", PrimaryEndpoint: "10.7.0.1"}); err != nil {
		t.Errorf("of the gateway itself: %v", err)
	}
	// A state of before, in which a route is around a node and its own endpoint.
	if _, err := f.registry.Update(t.Context(), func(tx *registry.Tx) error {
		me := *tx.Snapshot().Node("me")
		me.PrimaryEndpoint = "10.9.0.1"
		if err := tx.PutNode(&me); err != nil {
			return err
		}
		return tx.PutRoute(mesh.Route{Name: registry.AutoRoute("me"), Node: "me", Destinations: prefixes("10.9.0.0/16")})
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.Declare(t.Context(), *f.registry.Snapshot().Node("me"), prefixes("10.9.0.0/16")); err != nil {
		t.Errorf("as it was: %v", err)
	}
	moved := mesh.UpdateRequest{ID: "me", PrimaryEndpoint: "198.18.91.1", Routes: prefixes("10.9.0.0/17")}
	if err := f.Update(t.Context(), moved); err != nil {
		t.Errorf("endpoint and route moved together: %v", err)
	}
}
