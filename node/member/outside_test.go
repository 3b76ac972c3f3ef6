// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/member"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
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
	second.Node.Features = []mesh.Feature{{Kind: v1.Feature_MEMBERSHIP, Port: 8443}}
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

// What a member says of its own private network keeps nobody from offering one of
// the same addresses: anybody could take them all, and most are there many times.
func TestRoutes_ArePutWhereOthersSayTheyLive(t *testing.T) {
	f := outsideFixture(t)
	home := request(t, "home")
	home.Node.PrimaryEndpoint = "192.168.7.9"
	home.Node.WireGuardEndpoints = []netip.AddrPort{
		netip.MustParseAddrPort("10.7.0.1:51820"), netip.MustParseAddrPort("100.64.7.1:51820"), netip.MustParseAddrPort("[fd07::1]:51820"),
	}
	f.join(home)
	router := request(t, "router")
	router.Routes = prefixes("192.168.7.0/24", "10.7.0.0/16", "100.64.7.0/24", "fd07::/64")
	f.join(router)
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

// An endpoint is judged by what it stands for, however it is spelled.
func TestEndpoints_InEverySpelling(t *testing.T) {
	f := outsideFixture(t)
	for _, addr := range []string{
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "::127.0.0.1", "2002:7f00:1::", "2001:0:7f00:1::", "::ffff:0:127.0.0.1",
		"2001:db8::5efe:127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.1", "0.0.0.1", "255.255.255.255", "240.0.0.1", "169.254.169.254",
		"192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fec0::1", "ff02::1", "fe80::1",
	} {
		at := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(addr), 9)}
		f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: "me", WireGuardEndpoints: at}), mesh.ErrInvalid, "wireguard_endpoints: ")
		f.wantRefused(f.Update(t.Context(), mesh.UpdateRequest{ID: "me", PrimaryEndpoint: addr}), mesh.ErrInvalid, "primary_endpoint: ")
	}
	for _, addr := range []string{"203.0.113.4", "100.64.0.1", "192.168.1.2", "2001:db8::4", "fd00:1::4", "::ffff:203.0.113.4"} {
		at := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(addr), 9)}
		if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "me", WireGuardEndpoints: at}); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// Nobody says that it is where another member is.
func TestEndpoints_OfOthers(t *testing.T) {
	f := outsideFixture(t)
	if err := f.Update(t.Context(), mesh.UpdateRequest{ID: "gw", WireGuardEndpoints: []netip.AddrPort{netip.MustParseAddrPort("198.18.77.1:4000")}}); err != nil {
		t.Fatal(err)
	}
	at := func(list ...string) (out []netip.AddrPort) {
		for _, e := range list {
			out = append(out, netip.MustParseAddrPort(e))
		}
		return out
	}
	for name, u := range map[string]mesh.UpdateRequest{
		"the gateway's":          {WireGuardEndpoints: at("203.0.113.4:1", "198.18.77.1:4000")},
		"mapped":                 {WireGuardEndpoints: at("[::ffff:198.18.77.1]:4000")},
		"by the primary one":     {PrimaryEndpoint: "198.18.77.1", WireGuardEndpoints: at("203.0.113.4:4000")},
		"of a node":              {WireGuardEndpoints: at("198.18.80.1:51820")},
		"with the port left out": {PrimaryEndpoint: "198.18.80.1"},
	} {
		u.ID = "me"
		err := f.Update(t.Context(), u)
		f.wantRefused(err, mesh.ErrExists, "primary_endpoint or wireguard_endpoints: ")
		join := request(t, "new")
		join.Node.PrimaryEndpoint, join.Node.WireGuardEndpoints = u.PrimaryEndpoint, u.WireGuardEndpoints
		if _, joined := f.Join(t.Context(), join); joined == nil {
			t.Errorf("%s: a join with it", name)
		}
	}
	fine := func(name string, u mesh.UpdateRequest) {
		t.Helper()
		if err := f.Update(t.Context(), u); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	fine("another port behind the same address", mesh.UpdateRequest{ID: "me", PrimaryEndpoint: "198.18.77.1", WireGuardEndpoints: at("198.18.77.1:4001")})
	fine("a private address", mesh.UpdateRequest{ID: "far", WireGuardEndpoints: at("198.18.80.1:51820", "192.168.1.2:51820")})
	fine("the same private address elsewhere", mesh.UpdateRequest{ID: "me", WireGuardEndpoints: at("198.18.77.1:4001", "192.168.1.2:51820")})
	fine("the gateway's own", mesh.UpdateRequest{ID: "gw", WireGuardEndpoints: at("198.18.77.1:4001")})
	fine("what it said before", mesh.UpdateRequest{ID: "me", WireGuardEndpoints: at("198.18.77.1:4001")})
	if err := f.Note(t.Context(), map[mesh.NodeID]time.Time{"far": time.Now()}, nil); err != nil {
		t.Fatal(err)
	}
	fine("that of a node which is gone", mesh.UpdateRequest{ID: "me", WireGuardEndpoints: at("198.18.80.1:51820")})
}
