// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshgate/meshgate/node/hostnet"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/policy"
	"github.com/meshgate/meshgate/node/wg"
)

// exitMesh is what a node knows that may use "nas" as its exit: accepted are the
// networks beyond it that network ACLs let the node reach.
func exitMesh(accepted ...string) (*Node, *mesh.Snapshot, mesh.Plan) {
	self := &mesh.Node{ID: "laptop", IPv4: netip.MustParsePrefix("172.16.0.2/32"), IPv6: netip.MustParsePrefix("fd00:0:0:1::/112")}
	nas := &mesh.Node{ID: "nas", IPv4: netip.MustParsePrefix("172.16.0.3/32"), IPv6: netip.MustParsePrefix("fd00:0:0:2::/112"), Exit: true}
	tv := &mesh.Node{ID: "tv", IPv4: netip.MustParsePrefix("172.16.0.4/32")}
	s := &mesh.Snapshot{
		IPv4: netip.MustParsePrefix("172.16.0.0/12"), IPv6: netip.MustParsePrefix("fd00::/48"), Nodes: mesh.NodesOf(self, nas, tv),
		ACLs: []mesh.ACL{{Name: "mesh", Accept: true, SourceCIDRs: networks("172.16.0.0/12", "fd00::/48"), DestinationCIDRs: networks("172.16.0.0/12", "fd00::/48")}},
	}
	for _, network := range accepted {
		s.ACLs = append(s.ACLs, mesh.ACL{Name: network, Accept: true, SourceNodes: []string{"laptop"}, DestinationNodes: []string{"nas"}, DestinationCIDRs: networks(network)})
	}
	plan := mesh.Plan{Self: self, Routes: append(s.Networks(), networks("11.7.0.0/16")...)}
	for _, o := range []*mesh.Node{nas, tv} {
		plan.Peers = plan.Peers.With(mesh.Peer{Node: o, AllowedIPs: o.Prefixes()})
	}
	key, err := mesh.GenerateKey()
	if err != nil {
		panic(err)
	}
	n := &Node{cfg: Config{ID: "laptop", Key: key, Outbound: new(hostnet.Outbound)}, flows: policy.NewFlows(), log: slog.New(slog.DiscardHandler)}
	return n, s, plan
}

func TestExit_GetsWhatACLsGrant(t *testing.T) {
	tests := []struct {
		name, exit string
		accepted   []string
		change     func(*mesh.Plan)
		want       []string // behind nas, beside its own
		host       *hostnet.Exit
		why        string
	}{
		{name: "nobody chose one", accepted: []string{"0.0.0.0/0", "::/0"}},
		{name: "all", exit: "nas", accepted: []string{"0.0.0.0/0", "::/0"}, want: []string{"0.0.0.0/0", "::/0"}, host: &hostnet.Exit{IPv4: true, IPv6: true, Block: true}},
		{name: "IPv4", exit: "nas", accepted: []string{"0.0.0.0/0"}, want: []string{"0.0.0.0/0"}, host: &hostnet.Exit{IPv4: true, Block: true}},
		{name: "a part", exit: "nas", accepted: []string{"8.0.0.0/8"}, want: []string{"8.0.0.0/8"}, host: &hostnet.Exit{IPv4: true, Block: true}},
		{name: "nothing", exit: "nas", host: &hostnet.Exit{Block: true}, why: "no network ACL"},
		{name: "no exit", exit: "tv", accepted: []string{"0.0.0.0/0"}, host: &hostnet.Exit{Block: true}, why: `"tv" does not offer to be an exit`},
		{name: "unknown", exit: "car", host: &hostnet.Exit{Block: true}, why: "there is no path"},
		{
			name: "its path is broken", exit: "nas", accepted: []string{"0.0.0.0/0"}, host: &hostnet.Exit{Block: true}, why: "there is no path",
			change: func(p *mesh.Plan) {
				nas, _ := p.Peers.Get("nas")
				nas.AllowedIPs = nil
				p.Peers = p.Peers.With(nas)
			},
		},
	}
	for _, test := range tests {
		n, s, plan := exitMesh(test.accepted...)
		if test.change != nil {
			test.change(&plan)
		}
		before, _ := plan.Peers.Get("nas")
		n.exit.begin(mesh.NodeID(test.exit), false)
		after, _ := n.exit.apply(s, plan, n).Peers.Get("nas")
		got := []string(nil)
		for _, p := range after.AllowedIPs {
			if !slices.Contains(before.AllowedIPs, p) {
				got = append(got, p.String())
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		if diff := cmp.Diff(test.host, n.exit.host(), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s: the host (-want +got):\n%s", test.name, diff)
		}
		use := n.ExitUse()
		if string(use.Node) != test.exit || use.Works != (len(test.want) > 0) || !strings.Contains(use.Why, test.why) || use.Why == "" != (test.why == "") {
			t.Errorf("%s: %+v", test.name, use)
		}
		if peer, _ := plan.Peers.Get("nas"); !slices.Equal(peer.AllowedIPs, before.AllowedIPs) {
			t.Errorf("%s: the plan that all share has changed", test.name)
		}
	}
}

// The exit takes no packets to its own addresses, as to a gateway's console: those
// leave beside the tunnel.
func TestExit_ItsOwnAddressesAreBesideIt(t *testing.T) {
	n, s, plan := exitMesh("0.0.0.0/0")
	nas, _ := plan.Peers.Get("nas")
	record := *nas.Node
	record.PrimaryEndpoint = "8.8.4.4"
	for i := range 20 {
		record.WireGuardEndpoints = append(record.WireGuardEndpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 9, 9, byte(20 - i)}), 51820))
	}
	record.WireGuardEndpoints = append(record.WireGuardEndpoints, netip.MustParseAddrPort("192.168.1.7:51820"))
	nas.Node = &record
	plan.Peers = plan.Peers.With(nas)
	n.exit.begin("nas", false)
	n.exit.apply(s, plan, n)
	beside := n.exit.host().Beside
	if len(beside) != maxBeside || beside[0] != netip.MustParseAddr("8.8.4.4") || beside[1] != netip.MustParseAddr("9.9.9.1") {
		t.Errorf("%v", beside)
	}
	n.exit.begin("tv", false)
	if beside := n.exit.host().Beside; len(beside) != 0 {
		t.Errorf("another exit: %v", beside)
	}
}

// While the way to the exit is broken, an open node takes away what leads there. One
// that blocks keeps it, so that connections live on.
func TestExit_BrokenWay(t *testing.T) {
	for _, open := range []bool{false, true} {
		n, s, plan := exitMesh("0.0.0.0/0")
		n.exit.begin("nas", open)
		n.exit.apply(s, plan, n)
		if host := n.exit.host(); host == nil || host.Block == open || !host.IPv4 {
			t.Fatalf("open %v: %+v", open, host)
		}
		nas, _ := plan.Peers.Get("nas")
		nas.AllowedIPs = nil
		broken := plan
		broken.Peers = plan.Peers.With(nas)
		n.exit.apply(s, broken, n)
		if host := n.exit.host(); open != (host == nil) || host != nil && !host.IPv4 {
			t.Errorf("open %v, without a way: %+v", open, host)
		}
		n.exit.apply(s, plan, n)
		if use, host := n.ExitUse(), n.exit.host(); !use.Works || use.Why != "" || host == nil {
			t.Errorf("open %v, with a way again: %+v, %+v", open, use, host)
		}
	}
}

// From the other side of the exit only answers come in.
func TestExit_OnlyAnswersComeIn(t *testing.T) {
	n, s, plan := exitMesh("0.0.0.0/0")
	packet := func(src, dst string, protocol mesh.Protocol, kind mesh.PacketKind, sport, dport uint16) mesh.Packet {
		return mesh.Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: protocol, Kind: kind, SrcPort: sport, DstPort: dport}
	}
	const own, far = "172.16.0.2", "8.8.8.8"
	opens := packet(far, own, mesh.ProtocolTCP, mesh.PacketOpens, 443, 22)
	dns := packet(far, own, mesh.ProtocolUDP, mesh.PacketUnclear, 53, 5000)
	if cfg := n.deviceConfig(s, plan); cfg.Accept != nil {
		t.Fatal("without an exit there is a filter already")
	}
	n.exit.begin("nas", false)
	cfg := n.deviceConfig(s, n.exit.apply(s, plan, n))
	if cfg.Accept(opens) || cfg.Accept(dns) {
		t.Error("a packet that nobody asked for comes in")
	}
	cfg.Sent(packet(own, far, mesh.ProtocolUDP, mesh.PacketUnclear, 5000, 53))
	for name, p := range map[string]mesh.Packet{
		"an answer over UDP":      dns,
		"an answer over TCP":      packet(far, own, mesh.ProtocolTCP, mesh.PacketContinues, 443, 5000),
		"an error":                packet(far, own, mesh.ProtocolICMP, mesh.PacketReports, 0, 0),
		"a call of a node":        packet("172.16.0.4", own, mesh.ProtocolTCP, mesh.PacketOpens, 5000, 22),
		"a call from behind some": packet("11.7.0.1", own, mesh.ProtocolTCP, mesh.PacketOpens, 5000, 22),
	} {
		if !cfg.Accept(p) {
			t.Errorf("%s does not come in", name)
		}
	}
}

// An exit takes packets for the Internet from nodes that ACLs let there, and opens
// no network of its own.
func TestExit_TakesPacketsForTheInternet(t *testing.T) {
	_, s, plan := exitMesh("0.0.0.0/0", "::/0")
	s.Routes = []mesh.Route{{Name: "nas-auto", Node: "nas", Destinations: networks("192.168.7.0/24")}}
	nas, _ := s.Nodes.Get("nas")
	laptop, _ := s.Nodes.Get("laptop")
	plan = mesh.Plan{Self: nas}
	plan.Peers = plan.Peers.With(mesh.Peer{Node: laptop, AllowedIPs: laptop.Prefixes()})
	n, _, _ := exitMesh()
	n.cfg.ID, n.cfg.Exit, n.host = "nas", true, &hostNetwork{}
	allow := n.deviceConfig(s, plan).Allow
	for _, test := range []struct {
		src, dst string
		want     bool
	}{
		{"172.16.0.2", "8.8.8.8", true}, {"fd00:0:0:1::", "2a00::1", true}, {"172.16.0.2", "192.168.7.9", true},
		{"172.16.0.4", "8.8.8.8", false},     // no ACL
		{"172.16.9.9", "8.8.8.8", false},     // nobody
		{"172.16.0.2", "192.168.8.9", false}, // a network that it does not offer
		{"172.16.0.2", "10.0.0.1", false}, {"172.16.0.2", "100.64.0.1", false}, {"172.16.0.2", "169.254.169.254", false},
		{"172.16.0.2", "127.0.0.1", false}, {"172.16.0.2", "172.16.0.4", false}, {"fd00:0:0:1::", "fd77::1", false},
		{"fd00:0:0:1::", "64:ff9b::a00:1", false}, {"172.16.0.2", "224.0.0.5", false},
	} {
		p := mesh.Packet{Src: netip.MustParseAddr(test.src), Dst: netip.MustParseAddr(test.dst), Protocol: mesh.ProtocolTCP, Kind: mesh.PacketOpens, DstPort: 443}
		if got := allow(p); got != test.want {
			t.Errorf("%s to %s: %v, want %v", test.src, test.dst, got, test.want)
		}
	}
	c := n.hostConfig(s, &plan)
	if !c.Forward || c.Exit != nil || !slices.Contains(c.Serve, everything[0]) || !slices.Contains(c.Serve, everything[1]) || len(c.Masquerade) != 2 {
		t.Errorf("the host of an exit: %+v", c)
	}
	n.cfg.Exit = false
	if n.deviceConfig(s, plan).Allow(mesh.Packet{Src: laptop.Addrs()[0], Dst: netip.MustParseAddr("8.8.8.8"), Protocol: mesh.ProtocolTCP, Kind: mesh.PacketOpens, DstPort: 443}) {
		t.Error("a node that is no exit takes packets for the Internet")
	}
}

func TestConfig_Exit(t *testing.T) {
	for name, test := range map[string]struct {
		cfg  Config
		want string
	}{
		"netstack":          {Config{Follow: &Follow{}, Exit: true, Mode: wg.ModeNetstack}, "TUN"},
		"without addresses": {Config{Follow: &Follow{}, Exit: true, Mode: wg.ModeTUN, KeepSources: true}, "--masquerade"},
		"a gateway uses":    {Config{Hold: &Hold{}, ExitNode: "b"}, "gateway"},
		"both":              {Config{Follow: &Follow{}, Exit: true, Mode: wg.ModeTUN, ExitNode: "b"}, "uses none"},
		"itself":            {Config{Follow: &Follow{}, ExitNode: "a"}, "is this node"},
		"an exit":           {Config{Follow: &Follow{}, Exit: true, Mode: wg.ModeTUN}, ""},
		"a gateway":         {Config{Hold: &Hold{}, Exit: true, Mode: wg.ModeTUN}, ""},
		"a user":            {Config{Follow: &Follow{}, ExitNode: "b"}, ""},
	} {
		test.cfg.ID = "a"
		err := test.cfg.Validate()
		if test.want == "" && err != nil || test.want != "" && (!errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestUseExit_OnlyWhereThereMayBeOne(t *testing.T) {
	n := &Node{cfg: Config{ID: "a", Hold: &Hold{}, Outbound: new(hostnet.Outbound)}, source: &holder{}, members: &holder{}}
	if err := n.UseExit(t.Context(), "b", false); !errors.Is(err, mesh.ErrUnsupported) {
		t.Errorf("a gateway: %v", err)
	}
	if err := n.UseExit(t.Context(), "", false); err != nil {
		t.Errorf("a gateway, none: %v", err)
	}
}
