// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/ipam"
	"github.com/meshgate/meshgate/node/mesh"
)

// held makes nodes n0, n1 and so on that hold addrs.
func held(addrs ...string) mesh.Nodes {
	var nodes mesh.Nodes
	for i, a := range addrs {
		nodes = nodes.With(&mesh.Node{ID: mesh.NodeID(fmt.Sprint("n", i)), IPv4: netip.MustParsePrefix(a + "/32")})
	}
	return nodes
}

func newPool(t testing.TB, static map[mesh.NodeID]netip.Addr) *ipam.Pool {
	t.Helper()
	p, err := ipam.New(static)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func TestChoose(t *testing.T) {
	static := map[mesh.NodeID]netip.Addr{"printer": addr("10.0.0.2"), "far": addr("192.0.2.1"), "edge": addr("10.0.0.7"), "n1": addr("10.0.0.4")}
	cases := []struct {
		name, network string
		id            mesh.NodeID
		last          string
		held          []string
		want, names   string
		err           error
	}{
		{name: "first of a network", network: "172.16.0.0/12", want: "172.16.0.1/32"},
		{name: "network with host bits", network: "172.16.5.9/12", want: "172.16.0.1/32"},
		{name: "behind the last one", network: "172.16.0.0/12", last: "172.16.0.8", held: []string{"172.16.0.1"}, want: "172.16.0.9/32"},
		{name: "behind held ones", network: "172.16.0.0/12", last: "172.16.0.1", held: []string{"172.16.0.2", "172.16.0.3", "172.16.0.5"}, want: "172.16.0.4/32"},
		{name: "over a border of bytes", network: "172.16.0.0/12", last: "172.16.0.255", want: "172.16.1.0/32"},
		{name: "from the beginning at the end", network: "10.1.0.0/30", last: "10.1.0.2", want: "10.1.0.1/32"},
		{name: "the last one again when no other is free", network: "10.1.0.0/30", last: "10.1.0.1", held: []string{"10.1.0.2"}, want: "10.1.0.1/32"},
		{name: "last of another network", network: "10.1.0.0/24", last: "192.168.0.9", want: "10.1.0.1/32"},
		{name: "last is the broadcast address", network: "10.1.0.0/24", last: "10.1.0.255", want: "10.1.0.1/32"},
		{name: "held addresses of other networks", network: "10.1.0.0/24", held: []string{"10.0.255.255", "10.1.1.0"}, want: "10.1.0.1/32"},
		{name: "not the broadcast address", network: "10.1.0.0/30", held: []string{"10.1.0.1", "10.1.0.2"}, err: mesh.ErrExhausted, names: "10.1.0.0/30"},
		{name: "/31", network: "10.0.0.0/31", err: mesh.ErrExhausted},
		{name: "/32", network: "10.0.0.0/32", err: mesh.ErrExhausted},
		{name: "end of all addresses", network: "255.255.255.255/32", err: mesh.ErrExhausted},
		{name: "held up to the end of all addresses", network: "255.255.255.252/30", held: []string{"255.255.255.253", "255.255.255.254", "255.255.255.255"}, err: mesh.ErrExhausted},
		{name: "every address", network: "0.0.0.0/0", want: "0.0.0.1/32"},
		{name: "IPv6", network: "fd00::/64", err: mesh.ErrInvalid},
		{name: "not somebody's static one", network: "10.0.0.0/29", last: "10.0.0.1", want: "10.0.0.3/32"},
		{name: "only static ones are left", network: "10.0.0.0/29", held: []string{"10.0.0.1", "10.0.0.3", "10.0.0.5", "10.0.0.6"}, err: mesh.ErrExhausted},
		{name: "static", network: "10.0.0.0/24", id: "printer", last: "10.0.0.9", want: "10.0.0.2/32"},
		{name: "static, held by the node itself", network: "10.0.0.0/24", id: "n1", held: []string{"10.0.0.9", "10.0.0.4"}, want: "10.0.0.4/32"},
		{name: "static, held by another node", network: "10.0.0.0/24", id: "printer", held: []string{"10.0.0.2"}, err: mesh.ErrPrecondition, names: `"n0" holds`},
		{name: "static, outside of the network", network: "10.0.0.0/24", id: "far", err: mesh.ErrPrecondition, names: "192.0.2.1"},
		{name: "static, the broadcast address", network: "10.0.0.0/29", id: "edge", err: mesh.ErrPrecondition, names: "10.0.0.7"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.id == "" {
				c.id = "x"
			}
			got, err := newPool(t, static).Choose(netip.MustParsePrefix(c.network), c.id, addr(c.last), held(c.held...))
			if !errors.Is(err, c.err) || (c.err == nil && got.String() != c.want) || (c.err != nil && got.IsValid()) {
				t.Errorf("Choose = %v, %v, want %s, %v", got, err, c.want, c.err)
			}
			if !strings.Contains(fmt.Sprint(err), c.names) {
				t.Errorf("%v does not name %s", err, c.names)
			}
		})
	}
	if _, err := newPool(t, nil).Choose(netip.Prefix{}, "x", netip.Addr{}, held()); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("no network: %v", err)
	}
}

func TestNew_RefusesAssignmentsThatMakeNoSense(t *testing.T) {
	for _, static := range []map[mesh.NodeID]netip.Addr{
		{"b": addr("fd00::1")}, {"b": {}}, {"a": addr("10.0.0.1"), "b": addr("10.0.0.1")},
	} {
		if _, err := ipam.New(static); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), `"b"`) {
			t.Errorf("%v: %v", static, err)
		}
	}
}

// A network is given out as a whole, each address once; addresses that become
// free are given out again in the order in which they come, and only after all
// that were free before.
func TestChoose_GivesOutTheWholeNetwork(t *testing.T) {
	pool := newPool(t, nil)
	rapid.Check(t, func(t *rapid.T) {
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, 0}), rapid.IntRange(23, 32).Draw(t, "bits"))
		size := max(0, 1<<(32-network.Bits())-2)
		var nodes mesh.Nodes
		var last netip.Addr
		next := 0
		take := func() (netip.Prefix, error) {
			p, err := pool.Choose(network, "x", last, nodes)
			if err != nil {
				return p, err
			}
			if _, ok := nodes.ByAddr(p.Addr()); ok || !network.Contains(p.Addr()) || p.Bits() != 32 {
				t.Fatalf("got %v", p)
			}
			nodes = nodes.With(&mesh.Node{ID: mesh.NodeID(fmt.Sprint("n", next)), IPv4: p})
			next++
			last = p.Addr()
			return p, nil
		}
		for range size / 2 {
			if _, err := take(); err != nil {
				t.Fatal(err)
			}
		}
		released := make(map[netip.Addr]bool)
		for range rapid.IntRange(0, size/2).Draw(t, "releases") {
			id := mesh.NodeID(fmt.Sprint("n", rapid.IntRange(0, max(0, next-1)).Draw(t, "node")))
			if n, ok := nodes.Get(id); ok {
				released[n.IPv4.Addr()] = true
				nodes = nodes.Without(id)
			}
		}
		for i := range size - size/2 + len(released) {
			p, err := take()
			if err != nil {
				t.Fatalf("address %d of %d: %v", i, size, err)
			}
			if early := i < size-size/2; released[p.Addr()] && early {
				t.Fatalf("%v was handed out again while others were free", p)
			}
		}
		if _, err := take(); !errors.Is(err, mesh.ErrExhausted) {
			t.Fatalf("%d addresses of %v and one more: %v", nodes.Len(), network, err)
		}
	})
}
