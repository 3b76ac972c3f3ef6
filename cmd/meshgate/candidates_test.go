// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

func TestCheckable(t *testing.T) {
	s := &mesh.Snapshot{
		IPv4: netip.MustParsePrefix("172.16.0.0/12"), IPv6: netip.MustParsePrefix("fd00:dead::/48"),
		Nodes: mesh.NodesOf(&mesh.Node{ID: "gw", WireGuardEndpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:40007")}}),
	}
	own := func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.2") }
	for _, tc := range []struct {
		at   string
		want bool
	}{
		{"203.0.113.9:50000", true}, {"192.168.1.20:50000", true}, {"10.0.0.7:50000", true}, {"[2001:db8::7]:50000", true},
		{"192.168.1.20:3479", true},                          // its port, not ours
		{"192.0.2.2:50000", true}, {"127.0.0.1:50000", true}, // a relay, a browser on this host
		{"172.16.0.2:50000", false}, {"[fd00:dead::2]:50000", false}, {"[::ffff:172.16.0.2]:50000", false},
		{"192.0.2.2:3479", false}, {"192.0.2.2:3478", false}, {"192.0.2.2:40007", false},
		{"127.0.0.1:3479", false}, {"127.9.9.9:3478", false}, {"[::1]:3479", false}, {"[::ffff:192.0.2.2]:3479", false},
	} {
		if got := checkable(netip.MustParseAddrPort(tc.at), s, "gw", []uint16{3479, 3478}, own); got != tc.want {
			t.Errorf("%s: %v", tc.at, got)
		}
	}
	if !checkable(netip.MustParseAddrPort("172.16.0.2:50000"), nil, "gw", nil, own) {
		t.Error("no mesh yet, and yet refused")
	}
}
