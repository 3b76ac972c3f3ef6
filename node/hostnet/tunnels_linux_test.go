// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestTunnelsBeside_AreThoseOfOtherNodes(t *testing.T) {
	h := newHost(t)
	add := func(link netlink.Link, addr, network string, protocol netlink.RouteProtocol) {
		t.Helper()
		if err := h.nl.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		if err := h.nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(addr))}); err != nil {
			t.Fatal(err)
		}
		r := route(link, netip.MustParsePrefix(network))
		r.Protocol = protocol
		if err := h.nl.RouteAdd(r); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := TunnelsBeside("mesh0"); err != nil || got.Lead(netip.MustParseAddr("192.0.2.1")) {
		t.Fatalf("without other nodes: %v, %v", got, err)
	}
	add(h.link("mesh0"), "172.16.0.2/32", "172.16.0.0/12", routeProtocol)
	add(h.add("mesh1"), "10.200.0.3/32", "10.0.0.0/8", routeProtocol)
	if err := h.nl.RouteAdd(route(h.link("mesh1"), netip.MustParsePrefix("fde1::/64"))); err != nil {
		t.Fatal(err)
	}
	add(h.add("vpn0"), "10.99.0.1/32", "10.99.0.0/16", 4)
	for _, c := range []struct {
		own, addr string
		want      bool
	}{
		{"mesh0", "10.200.0.3", true},
		{"mesh0", "::ffff:10.1.2.3", true},
		{"mesh0", "fde1::7", true},
		{"mesh0", "10.99.0.7", false}, // the host has a closer route
		{"mesh0", "10.99.0.1", false},
		{"mesh0", "172.16.0.2", false}, // it is the node's own
		{"mesh0", "192.0.2.1", false},
		{"mesh1", "172.16.0.2", true},
		{"mesh1", "172.16.0.3", true},
		{"mesh1", "10.200.0.3", false},
		{"", "10.200.0.3", true}, // a node that has no interface
	} {
		got, err := TunnelsBeside(c.own)
		if err != nil {
			t.Fatal(err)
		}
		if got.Lead(netip.MustParseAddr(c.addr)) != c.want {
			t.Errorf("beside %q, %s: got %v", c.own, c.addr, !c.want)
		}
	}
}
