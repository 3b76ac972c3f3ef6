// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/topology"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// paths makes nodes take part in pairs.
func (b builder) paths(ids ...mesh.NodeID) builder {
	for _, id := range ids {
		b.change(id, func(n *mesh.Node) { n.Paths = true })
	}
	return b
}

// leaves is a hub with leaves a, b and c, which take part in pairs, and a stock
// peer.
func leaves() builder {
	return newMesh("hub", "a", "b", "c", "stock").stock("stock").paths("a", "b", "c").
		link("hub", "a", 1).link("hub", "b", 1).link("hub", "c", 1).link("hub", "stock", 1)
}

// comparable lets cmp look at addresses.
var comparable = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestPair_AllowsWhatBothMayHave(t *testing.T) {
	const v4, v6 = "172.16.0.3/32", "fd00:0:0:3::/112"
	for name, c := range map[string]struct {
		mesh builder
		want []string
		at   string
	}{
		"own addresses":        {leaves(), []string{v4, v6}, ""},
		"a public one":         {leaves().endpoints("b", "203.0.113.7", "203.0.113.7:51820"), []string{v4, v6}, "203.0.113.7:51820"},
		"one in the same zone": {leaves().endpoints("b", "", "192.168.1.7:51820").change("a", inZone).change("b", inZone), []string{v4, v6}, ""},
		"a route":              {leaves().route("r", "b", "10.0.0.0/8"), []string{"10.0.0.0/8", v4, v6}, ""},
		"a route in part": {leaves().route("r", "b", "10.0.0.0/8").
			acls(between(false, "a", "*", "10.128.0.0/9"), between(true, "*", "*")), []string{"10.0.0.0/9", v4, v6}, ""},
		"a route that another offers a part of": {leaves().route("r", "b", "10.0.0.0/8").route("s", "c", "10.128.0.0/9"),
			[]string{"10.0.0.0/9", v4, v6}, ""},
		"a granted part within what another offers": {leaves().route("r", "b", "10.0.0.0/8").route("s", "c", "10.128.0.0/9").
			acls(between(true, "a", "b", "10.128.0.0/10"), between(true, "a", "b", "172.16.0.0/12")), []string{v4}, ""},
		"a route that the node offers itself, too": {leaves().route("r", "b", "10.0.0.0/8").route("s", "a", "10.0.0.0/8"), []string{v4, v6}, ""},
		"a route of two, of which the other is nearer": {leaves().route("r", "b", "10.0.0.0/8").route("s", "c", "10.0.0.0/8").link("hub", "b", 7),
			[]string{v4, v6}, ""},
		"a route of two, of which the other is gone": {leaves().route("r", "group:routers", "10.0.0.0/8").routers("b", "gone"),
			[]string{"10.0.0.0/8", v4, v6}, ""},
		"one family":         {leaves().acls(between(true, "a", "b", "172.16.0.0/12")), []string{v4}, ""},
		"a direction":        {leaves().acls(between(true, "b", "a")), []string{v4, v6}, ""},
		"no IPv4":            {leaves().change("a", func(n *mesh.Node) { n.IPv4 = netip.Prefix{} }).route("r", "b", "10.0.0.0/8"), []string{v6}, ""},
		"ports":              {leaves().acls(mesh.ACL{Accept: true, Protocols: []mesh.Protocol{6}, Ports: []uint16{22}}), []string{v4, v6}, ""},
		"edge that ACLs cut": {leaves().link("a", "b", 1).acls(between(true, "a", "hub")), nil, "no network ACL lets nodes"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := topology.New(c.mesh.Snapshot, nil).Pair("a", "b")
			if c.want == nil {
				if !errors.Is(err, mesh.ErrDenied) || !strings.Contains(err.Error(), c.at) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := mesh.Peer{Node: c.mesh.Node("b"), AllowedIPs: prefixes(c.want...), Endpoint: c.at, Protocol: v1.ConnectProtocol_CONNECT_ICE}
			if diff := cmp.Diff(want.AllowedIPs, p.AllowedIPs, comparable); diff != "" || p.Node != want.Node || p.Endpoint != want.Endpoint || p.Protocol != want.Protocol {
				t.Errorf("got %s at %q by %s: %s", p.Node.ID, p.Endpoint, p.Protocol, diff)
			}
		})
	}
}

func inZone(n *mesh.Node) { n.Zone = "east" }

// routers makes the group of that name.
func (b builder) routers(ids ...string) builder {
	b.Groups = []mesh.Group{group("routers", ids...)}
	return b
}

func TestPair_SaysWhyNot(t *testing.T) {
	for name, c := range map[string]struct {
		mesh builder
		b    mesh.NodeID
		kind error
		text string
	}{
		"itself":              {leaves(), "a", mesh.ErrPrecondition, `"a" is the node itself`},
		"nobody":              {leaves(), "x", mesh.ErrNotFound, `no node "x" in the mesh`},
		"a gateway":           {leaves(), "hub", mesh.ErrPrecondition, `node "hub" takes no part in pairs`},
		"a stock peer":        {leaves(), "stock", mesh.ErrPrecondition, `node "stock" takes no part in pairs`},
		"a placeholder":       {leaves().change("b", func(n *mesh.Node) { n.PublicKey = mesh.PublicKey{} }), "b", mesh.ErrPrecondition, `node "b" has no key yet`},
		"an older node asks":  {leaves().change("a", func(n *mesh.Node) { n.Paths = false }), "b", mesh.ErrPrecondition, `node "a" takes no part in pairs`},
		"neighbours":          {leaves().link("a", "b", 1).endpoints("b", "203.0.113.7"), "b", mesh.ErrPrecondition, `nodes "a" and "b" are neighbours`},
		"no ACL":              {leaves().acls(), "b", mesh.ErrDenied, `no network ACL lets nodes "a" and "b" reach each other`},
		"an ACL that denies":  {leaves().acls(between(false, "b", "a"), between(true, "*", "*")), "b", mesh.ErrDenied, `no network ACL lets nodes "a" and "b" reach each other`},
		"no family in common": {leaves().change("a", func(n *mesh.Node) { n.IPv6 = netip.Prefix{} }).change("b", func(n *mesh.Node) { n.IPv4 = netip.Prefix{} }), "b", mesh.ErrDenied, `no network ACL lets nodes`},
	} {
		t.Run(name, func(t *testing.T) {
			p := topology.New(c.mesh.Snapshot, nil)
			peer, err := p.Pair("a", c.b)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || peer.Node != nil {
				t.Errorf("got %v, %v", peer, err)
			}
			if err := p.MaySignal("a", c.b); !errors.Is(err, c.kind) {
				t.Errorf("may signal: %v", err)
			}
		})
	}
}

func TestMaySignal_PairsAndNeighboursByICE(t *testing.T) {
	for name, c := range map[string]struct {
		mesh builder
		may  bool
	}{
		"a pair":                       {leaves(), true},
		"neighbours by ICE":            {leaves().link("a", "b", 1, "ICE"), true},
		"neighbours by ICE, public":    {leaves().link("a", "b", 1, "ICE").endpoints("b", "203.0.113.7"), true},
		"neighbours by plain UDP":      {leaves().link("a", "b", 1).endpoints("b", "203.0.113.7"), false},
		"a pair that stands, unasked":  {leaves().link("a", "b", 1), true},
		"neighbours by ICE, kept away": {leaves().link("a", "b", 1, "ICE").acls(), false},
	} {
		if err := topology.New(c.mesh.Snapshot, nil).MaySignal("a", "b"); (err == nil) != c.may {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHolder_FindsWhoHasAnAddress(t *testing.T) {
	b := leaves().route("wide", "b", "10.0.0.0/8").route("long", "c", "10.1.0.0/16")
	for addr, want := range map[string]mesh.NodeID{
		"172.16.0.3": "b", "::ffff:172.16.0.3": "b", "fd00:0:0:4::": "c", "fd00:0:0:4::9": "c", "10.2.0.1": "b", "10.1.0.1": "c",
		"172.16.9.9": "", "fd00:0:0:99::1": "", "11.0.0.1": "", "8.8.8.8": "", "172.16.0.2": "a",
	} {
		got, err := topology.New(b.Snapshot, nil).Holder("a", netip.MustParseAddr(addr))
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, mesh.ErrNotFound) {
			t.Errorf("%s: %q, %v; want %q", addr, got, err, want)
		}
	}
	if _, err := topology.New(b.Snapshot, nil).Holder("x", netip.MustParseAddr("10.2.0.1")); !errors.Is(err, mesh.ErrNotFound) {
		t.Errorf("asked by nobody: %v", err)
	}
}

// samples are addresses in and at the edges of a network.
func samples(t *rapid.T, network netip.Prefix) []netip.Addr {
	first := network.Masked().Addr()
	raw := first.AsSlice()
	for i := network.Bits(); i < len(raw)*8; i++ {
		raw[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(raw)
	for i := network.Bits(); i < len(raw)*8; i++ {
		if rapid.Bool().Draw(t, "bit") {
			raw[i/8] &^= 0x80 >> (i % 8)
		}
	}
	middle, _ := netip.AddrFromSlice(raw)
	return []netip.Addr{first, last, middle}
}

// Whatever the ACLs and routes: what a pair allows, a gateway between the two
// would forward, in both families. Both ends say the same, and a planner with a
// past says what one without does.
func TestPair_NeverMoreThanAGatewayForwards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawMesh(t)
		for _, id := range b.ids() {
			if b.Node(id).RunsMeshgate() {
				b.paths(id)
			}
		}
		for i, id := range b.ids() {
			if rapid.IntRange(0, 3).Draw(t, "more") == 0 {
				b.route(string(rune('a'+i)), string(id), rapid.SampledFrom([]string{"10.1.2.0/24", "10.0.0.0/9", "168.0.0.0/5", "fc00::/7", "2001:db8:1::/48"}).Draw(t, "longer"))
			}
		}
		planner := topology.New(b.Snapshot, nil)
		check := func() {
			filter := policy.ForwardFilter(b.Snapshot, policy.NewFlows())
			planner = topology.New(b.Snapshot, planner)
			for _, from := range b.ids() {
				for _, to := range b.ids() {
					peer, err := planner.Pair(from, to)
					fresh, freshErr := topology.New(b.Snapshot, nil).Pair(from, to)
					if (err == nil) != (freshErr == nil) || !slices.Equal(peer.AllowedIPs, fresh.AllowedIPs) {
						t.Fatalf("%s and %s: %v, %v; anew %v, %v", from, to, peer.AllowedIPs, err, fresh.AllowedIPs, freshErr)
					}
					back, backErr := planner.Pair(to, from)
					if (err == nil) != (backErr == nil) {
						t.Fatalf("%s has %s: %v; the other way %v", from, to, err, backErr)
					}
					if err != nil {
						continue
					}
					if len(peer.AllowedIPs) == 0 || len(back.AllowedIPs) == 0 {
						t.Fatalf("%s and %s have nothing of each other", from, to)
					}
					for _, allowed := range peer.AllowedIPs {
						src := b.Node(from).IPv4.Addr()
						if allowed.Addr().Is6() {
							src = b.Node(from).IPv6.Addr()
						}
						for _, dst := range samples(t, allowed) {
							if !filter.Allow(mesh.Packet{Src: src, Dst: dst, Protocol: 6, DstPort: 80, Kind: mesh.PacketOpens}) {
								t.Fatalf("%s has %v of %s, and a gateway forwards no packet from %s to %s", from, allowed, to, src, dst)
							}
						}
					}
				}
			}
		}
		check()
		b.acls(drawACLs(t, b)...)
		b.Version++
		check()
	})
}
