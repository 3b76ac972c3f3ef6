// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// spellings are the ways in which an IPv4 address can be written as one that a
// client may name.
func spellings(a netip.Addr) map[string]netip.Addr {
	v := a.As4()
	in := func(prefix [16]byte, at int) netip.Addr { copy(prefix[at:], v[:]); return netip.AddrFrom16(prefix) }
	teredo := [16]byte{0x20, 0x01, 12: ^v[0], 13: ^v[1], 14: ^v[2], 15: ^v[3]}
	return map[string]netip.Addr{
		"itself":            a,
		"IPv4-mapped":       in([16]byte{10: 0xff, 11: 0xff}, 12),
		"IPv4-compatible":   in([16]byte{}, 12),
		"NAT64":             in([16]byte{1: 0x64, 2: 0xff, 3: 0x9b}, 12),
		"NAT64 of its own":  in([16]byte{1: 0x64, 2: 0xff, 3: 0x9b, 5: 1}, 12),
		"NAT64 inside 48":   in([16]byte{1: 0x64, 2: 0xff, 3: 0x9b, 5: 1}, 6),
		"6to4":              in([16]byte{0x20, 0x02}, 2),
		"6to4 with a host":  in([16]byte{0x20, 0x02, 15: 1}, 2),
		"Teredo":            netip.AddrFrom16(teredo),
		"IPv4-mapped, zone": in([16]byte{10: 0xff, 11: 0xff}, 12).WithZone("eth0"),
	}
}

// forbiddenAddresses are one or two of each network that no relay should reach.
func forbiddenAddresses() []string {
	return []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "127.0.0.1", "127.255.255.254", "168.63.129.16",
		"169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.9", "192.168.0.1", "192.168.255.255",
		"198.18.0.1", "203.0.113.77", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
	}
}

// TestPolicy_NoSpellingReachesAForbiddenPeer names each forbidden address in
// each spelling in each kind of request, by a policy that knows IPv4 alone.
func TestPolicy_NoSpellingReachesAForbiddenPeer(t *testing.T) {
	denied := map[netip.Addr]bool{}
	for _, s := range append(forbiddenAddresses(), "fe80::1", "fc00::1", "ff02::1") {
		denied[netip.MustParseAddr(s)] = true
	}
	w := newWorld(t)
	w.forbidden = func(a netip.AddrPort) bool { return denied[a.Addr()] }
	udp, tcp := w.client(udp4, 1), w.client(tcp4, 2).as("bob", "builder")
	udp.allocate(word(attrRequestedTransport, byte(UDP)), additional(IPv6))
	tcp.allocate(word(attrRequestedTransport, byte(TCP)), family(IPv6))
	tries := 0
	try := func(spelling string, a netip.Addr) {
		at := fmt.Sprintf("%v", netip.AddrPortFrom(a.WithZone(""), 80))
		for name, got := range map[string]string{
			"permission": udp.ask(methodCreatePermission, peerAt(at)),
			"channel":    udp.ask(methodChannelBind, channel(0x4000), peerAt(at)),
			"connection": tcp.ask(methodConnect, peerAt(at)),
		} {
			tries++
			if got != "403" && !(got == "443" && name == "connection" && a.Is4()) {
				t.Errorf("%s to %v (%s): %s", name, a, spelling, got)
			}
		}
		if got := udp.indication(peerAt(at), data("x")); got != "none" {
			t.Errorf("send to %v (%s): %s", a, spelling, got)
		}
	}
	for _, s := range forbiddenAddresses() {
		for spelling, a := range spellings(netip.MustParseAddr(s)) {
			try(spelling, a)
		}
	}
	for _, s := range []string{"::", "::1", "fe80::1", "fc00::1", "ff02::1"} {
		denied[Canonical(netip.MustParseAddr(s))] = true
		try("itself", netip.MustParseAddr(s))
	}
	if tries < 600 {
		t.Errorf("only %d tries", tries)
	}
}

func TestPolicy_ServerItselfIsNoPeer(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.allocate(udp(), additional(IPv6))
	for _, addr := range []string{"203.0.113.1:3478", "[2001:db8::1]:3478", "[2002:cb00:7101::]:3478"} {
		if got := c.ask(methodCreatePermission, peerAt(addr)); got != "403" {
			t.Errorf("%s: %s", addr, got)
		}
	}
}

// TestPolicy_SeesWhatHides checks what Permit is told of an address in another.
func TestPolicy_SeesWhatHides(t *testing.T) {
	var seen []Peer
	c := newWorld(t, func(cfg *Config) { cfg.Permit = func(_ string, p Peer) bool { seen = append(seen, p); return true } }).client(udp4, 1)
	c.allocate(udp(), additional(IPv6))
	c.must(methodCreatePermission, peerAt("[64:ff9b::c000:209]:5"), peerAt(peer4))
	want := []Peer{
		{Wire: netip.MustParseAddrPort("[64:ff9b::c000:209]:5"), Canonical: netip.MustParseAddrPort("192.0.2.9:5")},
		{Wire: netip.MustParseAddrPort(peer4), Canonical: netip.MustParseAddrPort(peer4)},
	}
	if !slices.Equal(seen, want) || !seen[0].Embedded() || seen[1].Embedded() {
		t.Errorf("%v, want %v", seen, want)
	}
}

func TestPolicy_NilDeniesAll(t *testing.T) {
	c := newWorld(t, func(cfg *Config) { cfg.Permit = nil }).client(udp4, 1)
	c.allocate()
	if got := c.ask(methodCreatePermission, peerAt(peer4)); got != "403" {
		t.Error(got)
	}
}

// TestPolicy_JudgesEachPort checks that a permission, which is for an address,
// opens no port that the policy does not.
func TestPolicy_JudgesEachPort(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.forbidden = func(a netip.AddrPort) bool { return a.Port() == 22 }
	c.permitted()
	if got := c.indication(peerAt("198.51.100.77:22"), data("x")); got != "none" {
		t.Errorf("send: %s", got)
	}
	if got := c.receive("198.51.100.77:22", "x"); got != nil {
		t.Errorf("receive: %x", got)
	}
	if got := c.core.Stats().Dropped[DropForbidden]; got != 2 {
		t.Errorf("%d packets were counted as forbidden", got)
	}
}

// TestPolicy_ChangeHoldsForWhatIsThere changes the policy under a permission
// and a channel, and back.
func TestPolicy_ChangeHoldsForWhatIsThere(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.bound()
	ways := func() string {
		return fmt.Sprint(c.emit(channelData(0x4000, "x")) != "none", c.indication(peerAt(peer4), data("x")) != "none", c.receive(peer4, "x") != nil)
	}
	if got := ways(); got != "true true true" {
		t.Fatal(got)
	}
	c.forbid("198.51.100.77/32")
	c.core.PolicyChanged(&c.out)
	if got := ways(); got != "false false false" {
		t.Error(got)
	}
	c.forbidden = nil
	c.core.PolicyChanged(&c.out)
	if got := ways(); got != "true true true" {
		t.Error(got)
	}
}

// TestPolicy_ChangeForOneUser leaves others alone, whose verdicts are kept: neither
// are they asked about, nor is a path beside the core told of them.
func TestPolicy_ChangeForOneUser(t *testing.T) {
	w := newWorld(t, func(cfg *Config) { cfg.Offload = true })
	a, b, tcp := w.client(udp4, 1), w.client(udp4, 2).as("bob", "builder"), w.client(tcp4, 3)
	a.bound()
	b.bound()
	connection := tcp.connected()
	passes := func() string {
		return fmt.Sprint(a.emit(channelData(0x4000, "x")) != "none", b.emit(channelData(0x4000, "x")) != "none", w.core.connections[connection] != nil)
	}
	if got := passes(); got != "true true true" {
		t.Fatal(got)
	}
	w.forbid("198.51.100.77/32")
	for _, step := range []struct {
		name   string
		change func()
		want   string
		told   int
	}{
		{"of nobody here", func() { w.core.PolicyChangedFor("carol", &w.out) }, "true true true", 0},
		{"of alice", func() { w.core.PolicyChangedFor("alice", &w.out) }, "false true false", 1},
		{"of all", func() { w.core.PolicyChanged(&w.out) }, "false false false", 2},
		{"of bob, back", func() { w.forbidden = nil; w.core.PolicyChangedFor("bob", &w.out) }, "false true false", 1},
	} {
		step.change()
		told := 0
		for _, action := range w.out.Actions {
			if action.Kind == ChannelsChanged {
				told++
			}
		}
		w.drive()
		if got := passes(); got != step.want || told != step.told {
			t.Errorf("%s: passes %s, told %d times; want %s, %d", step.name, got, told, step.want, step.told)
		}
	}
}

// TestPolicy_VerdictsAreBounded talks to more ports than verdicts are kept of.
func TestPolicy_VerdictsAreBounded(t *testing.T) {
	c := newWorld(t).client(udp4, 1)
	c.permitted()
	for port := range 3 * maxVerdicts {
		if got := c.receive(fmt.Sprintf("198.51.100.77:%d", port+1), "x"); got == nil {
			t.Fatalf("port %d was not heard", port+1)
		}
	}
	a := c.core.flows[c.flow.key()]
	if len(a.peers) != maxVerdicts {
		t.Errorf("%d verdicts are kept", len(a.peers))
	}
	c.pass(5 * time.Minute)
	if len(a.peers) != 0 || a.verdicts != 0 || len(a.permissions) != 0 {
		t.Errorf("%d verdicts, counted as %d, are left without permission", len(a.peers), a.verdicts)
	}
}

func TestCanonical_FindsWhatHides(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1":                            "192.0.2.1",
		"::ffff:192.0.2.1":                     "192.0.2.1",
		"::192.0.2.1":                          "192.0.2.1",
		"::":                                   "0.0.0.0",
		"::1":                                  "0.0.0.1",
		"64:ff9b::192.0.2.1":                   "192.0.2.1",
		"64:ff9b:1::192.0.2.1":                 "invalid IP",
		"64:ff9b:1:c000:2:100::":               "invalid IP",
		"64:ff9b:2::1":                         "64:ff9b:2::1",
		"2002:c000:201::5":                     "192.0.2.1",
		"2001::3fff:fdfe":                      "192.0.2.1",
		"2001:0:4136:e378:8000:63bf:3fff:fdd2": "192.0.2.45",
		"2001:db8::1":                          "2001:db8::1",
		"fe80::1%eth0":                         "fe80::1",
	} {
		if got := Canonical(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("Canonical(%s) = %s, want %s", in, got, want)
		}
	}
}
