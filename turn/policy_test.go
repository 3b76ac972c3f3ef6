// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/turn/core"
)

// specials are addresses that no relay may reach unless the hook says so: one or
// two from each special-purpose block.
func specials() []string {
	return []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
		"168.63.129.16", "169.254.169.254", "169.254.0.1", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192",
		"192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.1", "192.168.255.255", "192.175.48.1",
		"198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
		"255.255.255.255",
	}
}

// deniedSpellings are addresses with ports that the default policy denies, in
// every notation in which an IPv4 address hides in an IPv6 one.
func deniedSpellings() []string {
	spellings := []string{
		"[::]:80", "[::1]:80", "[fd00:ec2::254]:80", "[fd20:ce::254]:80", "[fc00::1]:80", "[fe80::1]:80", "[febf::1]:80",
		"[fec0::1]:80", "[ff02::1]:80", "[ff0e::1]:80", "[100::1]:80", "[2001:db8::1]:80", "[3fff::1]:80", "[5f00::1]:80",
		"[2001:2::1]:80", "[2001:10::1]:80", "[2001:20::1]:80", "[64:ff9b:1::a00:1]:80", "[::ffff:0:127.0.0.1]:80",
		"[2620:4f:8000::1]:80", "[4000::1]:80", "[1fff::1]:80",
	}
	for _, s := range specials() {
		a := netip.MustParseAddr(s).As4()
		spellings = append(spellings, s+":80")
		for _, hidden := range hide(a) {
			spellings = append(spellings, netip.AddrPortFrom(hidden, 80).String())
		}
	}
	return spellings
}

// hide returns the IPv6 addresses that lead to a.
func hide(a [4]byte) []netip.Addr {
	mapped := netip.AddrFrom16(netip.AddrFrom4(a).As16())
	compatible := [16]byte{12: a[0], a[1], a[2], a[3]}
	nat64 := [16]byte{0, 0x64, 0xff, 0x9b, 12: a[0], a[1], a[2], a[3]}
	sixToFour := [16]byte{0x20, 0x02, a[0], a[1], a[2], a[3], 15: 1}
	teredo := [16]byte{0x20, 0x01, 0, 0, 8, 8, 8, 8, 12: ^a[0], ^a[1], ^a[2], ^a[3]}
	return []netip.Addr{
		mapped, netip.AddrFrom16(compatible), netip.AddrFrom16(nat64), netip.AddrFrom16(sixToFour), netip.AddrFrom16(teredo),
	}
}

// newPolicy returns a policy of a host that has own addresses, a relay at
// 11.9.9.9:5000 and listeners at port 3478 of everything and 11.9.9.9:3479.
func newPolicy(t testing.TB, own ...string) *policy {
	t.Helper()
	p := &policy{
		special: newBlocks(specialPurpose()), shut: newBlocks(slices.Concat(neverOpen(), metadata())), relays: newRelays(Relay{Public: netip.MustParseAddr("11.9.9.9")}, nil),
		listeners: []netip.AddrPort{
			netip.MustParseAddrPort("[::]:3478"), netip.MustParseAddrPort("11.9.9.9:3479"),
		},
	}
	p.relays.sides[0].open[0][5000].Add(1)
	addrs := p.relays.public()
	for _, o := range own {
		addrs = append(addrs, netip.MustParseAddr(o))
	}
	p.own.Store(&addrs)
	if err := p.setOpen(everywhere()); err != nil {
		t.Fatal(err)
	}
	return p
}

// allows asks a policy as core does, for a packet.
func (p *policy) allows(user string, wire netip.AddrPort) bool {
	addr := core.Canonical(wire.Addr())
	if !addr.IsValid() {
		return false
	}
	wire = netip.AddrPortFrom(wire.Addr().Unmap().WithZone(""), wire.Port())
	return p.permit(user, core.Peer{Wire: wire, Canonical: netip.AddrPortFrom(addr, wire.Port()), Traffic: true})
}

// everywhere are networks that open the Internet, and nothing else.
func everywhere() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
}

func TestPolicy_DeniesSpecialPurposeInEverySpelling(t *testing.T) {
	p := newPolicy(t)
	spellings := deniedSpellings()
	if len(spellings) < 120 {
		t.Fatalf("only %d spellings", len(spellings))
	}
	for _, s := range spellings {
		if p.allows("u", netip.MustParseAddrPort(s)) {
			t.Errorf("%s is allowed", s)
		}
	}
}

func TestPolicy_PublicUnicastPasses(t *testing.T) {
	p := newPolicy(t)
	for _, s := range []string{
		"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.1",
		"169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.1", "192.167.255.255",
		"192.169.0.0", "198.17.255.255", "198.20.0.0", "203.0.114.0", "223.255.255.255", "168.63.129.17",
		"2606:4700::1111", "2a00:1450::1", "2400:cb00::1", "2001:4860:4860::8888",
	} {
		a := netip.MustParseAddr(s)
		spellings := []netip.Addr{a}
		if a.Is4() {
			spellings = append(spellings, hide(a.As4())...)
		}
		for _, a := range spellings {
			for _, port := range []uint16{0, 1, 65535} { // a permission may come without a port
				if !p.allows("u", netip.AddrPortFrom(a, port)) {
					t.Errorf("%s port %d is denied", a, port)
				}
			}
		}
	}
}

func TestPolicy_PublicIsDeniedByDefault(t *testing.T) {
	p := newPolicy(t)
	_ = p.setOpen(nil)
	peer := netip.MustParseAddrPort("8.8.8.8:53")
	if p.allows("u", peer) {
		t.Error("allowed without a hook")
	}
	p.allow = func(string, netip.AddrPort) bool { return true }
	if !p.allows("u", peer) {
		t.Error("denied although the hook allows it")
	}
}

// An open network opens what an operator means by it.
func TestPolicy_OpenNetworks(t *testing.T) {
	for network, peers := range map[string]map[string]bool{
		"0.0.0.0/0":      {"8.8.8.8:53": true, "10.0.0.1:53": false, "127.0.0.1:53": false, "169.254.169.254:80": false, "[2a00::6]:1": false},
		"::/0":           {"[2a00::6]:1": true, "[fd00::1]:1": false, "8.8.8.8:53": false},
		"10.1.0.0/16":    {"10.1.2.3:53": true, "10.1.2.3:0": true, "10.2.0.1:53": false, "[::ffff:10.1.2.3]:53": true, "10.1.9.9:53": false, "8.8.8.8:53": false},
		"8.8.8.0/24":     {"8.8.8.8:53": true, "8.8.8.8:0": true, "8.8.9.8:53": false, "[64:ff9b::808:808]:53": true},
		"fd00:1::/32":    {"[fd00:1::1]:53": true, "[fd00:2::1]:53": false},
		"8.0.0.0/5":      {"8.8.8.8:53": true, "10.0.0.1:53": false}, // holds 10.0.0.0/8, and more
		"198.18.0.0/15":  {"198.19.0.1:53": true},
		"203.0.113.7/32": {"203.0.113.7:9": true, "203.0.113.8:9": false},
		"2001:4860::/32": {"[2001:4860::1]:1": true},
		"172.16.0.0/12":  {"172.17.0.1:1": true, "172.15.0.1:1": false},
		"100.64.0.0/10":  {"100.64.1.1:1": true, "100.100.100.200:80": false, "[::ffff:100.100.100.200]:80": false},
		"192.0.0.0/24":   {"192.0.0.9:1": true, "192.0.0.192:80": false},
		"fc00::/7":       {"[fd00:1::1]:53": true, "[fd00:ec2::254]:80": false, "[fd20:ce::254]:80": false},
		"fd00:ec2::/32":  {"[fd00:ec2::1]:53": true, "[fd00:ec2::254]:80": false},
		"fc00::/6":       {"[fd00:1::1]:53": true, "[fe80::1]:53": false, "[fd00:ec2::254]:80": false},
		"8000::/1": {
			"[fd00:1::1]:53": true, "[fe80::1]:53": false, "[ff0e::1]:53": false, "[ff02::1]:5353": false, "[ff05::fb]:5353": false,
		},
		"::/3": {"[::1]:53": false, "[64:ff9b::7f00:1]:53": false},
		// Who names the address itself means it.
		"100.100.100.200/32": {"100.100.100.200:80": true},
		"fd00:ec2::254/128":  {"[fd00:ec2::254]:80": true, "[fd20:ce::254]:80": false},
		"11.0.0.0/8":         {"11.0.0.6:22": true, "11.0.0.5:22": false, "11.9.9.9:22": false},
		"192.168.0.0/24":     {"192.168.0.1:1": true, "192.168.1.1:1": false},
		"168.63.129.0/24":    {"168.63.129.16:80": false, "168.63.129.17:80": true},
	} {
		p := newPolicy(t, "11.0.0.5", "10.1.9.9")
		if err := p.setOpen([]netip.Prefix{netip.MustParsePrefix(network)}); err != nil {
			t.Errorf("%s: %v", network, err)
		}
		for peer, want := range peers {
			if got := p.allows("u", netip.MustParseAddrPort(peer)); got != want {
				t.Errorf("%s with %s open: %t", peer, network, got)
			}
		}
	}
	for _, network := range []string{
		"127.0.0.0/8", "127.0.0.1/32", "169.254.0.0/16", "169.254.169.254/32", "224.0.0.0/4", "240.0.0.0/4", "0.0.0.0/8",
		"255.255.255.255/32", "168.63.129.16/32", "::1/128", "fe80::/10", "ff02::/16", "::ffff:10.0.0.0/104", "64:ff9b::/96", "2002::/16",
	} {
		cfg := Config{
			UDP: []netip.AddrPort{netip.AddrPortFrom(loopback, 0)}, Secrets: &Secrets{}, Relay: Relay{Public: loopback},
			AllowNetworks: []netip.Prefix{netip.MustParsePrefix(network)},
		}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), network) {
			t.Errorf("%s: %v", network, err)
		}
	}
	if _, err := openNetworks([]netip.Prefix{{}}, newBlocks(specialPurpose())); err == nil {
		t.Error("no network was taken for one")
	}
}

func TestIsPublic(t *testing.T) {
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "::ffff:8.8.8.8": true, "2a00::1": true,
		"10.0.0.1": false, "127.0.0.1": false, "::ffff:127.0.0.1": false, "64:ff9b::7f00:1": false, "169.254.169.254": false, "fd00::1": false,
	} {
		if IsPublic(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s is public: %t", addr, !want)
		}
	}
	if IsPublic(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func TestPolicy_OwnAddresses(t *testing.T) {
	p := newPolicy(t, "11.0.0.5", "2a00::5", "10.0.0.5")
	tests := []struct {
		peer string
		want bool // with a hook that allows everything
		def  bool // without a hook
	}{
		{"11.0.0.5:22", true, false},
		{"[::ffff:11.0.0.5]:22", true, false},
		{"[2a00::5]:22", true, false},
		{"11.9.9.9:22", true, false},
		{"11.0.0.6:22", true, true},
		{"11.9.9.9:5000", true, true}, // a relay
		{"[::ffff:11.9.9.9]:5000", true, true},
		{"11.0.0.5:5000", true, false}, // a relay's port on another address
		{"11.0.0.5:3478", false, false},
		{"10.0.0.5:3478", false, false},
		{"[2a00::5]:3478", false, false},
		{"11.9.9.9:3479", false, false},
		{"11.0.0.5:3479", true, false}, // that listener has one address
		{"11.0.0.6:3478", true, true},  // somebody else's server
		{"127.0.0.1:80", true, false},
		{"127.0.0.1:0", false, false},
		{"[64:ff9b::7f00:1]:80", false, false}, // the hook speaks of 127.0.0.1, not of a detour to it
		{"[2002:7f00:1::]:80", false, false},
		{"[::127.0.0.1]:80", false, false},
		{"[fe80::1%eth0]:80", true, false},
	}
	for _, tc := range tests {
		peer := netip.MustParseAddrPort(tc.peer)
		p.allow = nil
		if got := p.allows("u", peer); got != tc.def {
			t.Errorf("%s by default: %t", tc.peer, got)
		}
		if tcp := (core.Peer{Wire: peer, Canonical: peer, TCP: true, Traffic: true}); !peer.Addr().Is6() {
			p.allow = func(string, netip.AddrPort) bool { return true }
			if got, want := p.permit("u", tcp), tc.def && peer.Port() != 5000; got != want { // the relay is one of UDP
				t.Errorf("%s over TCP: %t", tc.peer, got)
			}
		}
		p.allow = func(_ string, asked netip.AddrPort) bool {
			if a := asked.Addr(); a.Is4In6() || a.Zone() != "" {
				t.Errorf("the hook was asked about %s", asked)
			}
			return true
		}
		if got := p.allows("u", peer); got != tc.want {
			t.Errorf("%s with the hook: %t", tc.peer, got)
		}
	}
	if p.allows("u", netip.AddrPort{}) {
		t.Error("the zero address is allowed")
	}
}

func TestPolicy_HookLearnsTheUser(t *testing.T) {
	p := newPolicy(t)
	p.allow = func(user string, peer netip.AddrPort) bool {
		return user == "a" && peer == netip.MustParseAddrPort("10.1.1.1:99")
	}
	for peer, want := range map[string]bool{"10.1.1.1:99": true, "[::ffff:10.1.1.1]:99": true, "10.1.1.1:98": false, "10.1.1.2:99": false} {
		if got := p.allows("a", netip.MustParseAddrPort(peer)); got != want {
			t.Errorf("a to %s: %t", peer, got)
		}
		if p.allows("b", netip.MustParseAddrPort(peer)) {
			t.Errorf("b to %s", peer)
		}
	}
}

func TestPolicy_RefreshFindsTheHost(t *testing.T) {
	p := newPolicy(t)
	if changed, err := p.refresh(); err != nil || !changed {
		t.Fatal(err, changed)
	}
	if changed, _ := p.refresh(); changed {
		t.Error("the host has other addresses all the time")
	}
	own := *p.own.Load()
	found := map[netip.Addr]bool{}
	for _, a := range own {
		found[a] = true
	}
	if !found[loopback] || !found[p.relays.public()[0]] {
		t.Errorf("own addresses are %v", own)
	}
}

// FuzzCanonical holds the two things that the policy builds on: nothing hides in
// a canonical address, and no spelling of a special address is public.
func FuzzCanonical(f *testing.F) {
	for _, s := range deniedSpellings() {
		a := netip.MustParseAddrPort(s).Addr().As16()
		f.Add(a[:])
	}
	special := newBlocks(specialPurpose())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 16 {
			return
		}
		a := core.Canonical(netip.AddrFrom16([16]byte(b)))
		if again := core.Canonical(a); again != a && a.IsValid() {
			t.Fatalf("canonical(%s) is %s", a, again)
		}
		v4 := netip.AddrFrom4([4]byte(b))
		for _, hidden := range hide(v4.As4()) {
			if got := core.Canonical(hidden); got != v4 {
				t.Fatalf("canonical(%s) is %s, want %s", hidden, got, v4)
			}
		}
		if n := binary.BigEndian.Uint32(b); special.public(v4) && (n>>24 == 0 || n>>24 == 10 || n>>24 == 127 || n>>28 >= 14) {
			t.Fatalf("%s is public", v4)
		}
	})
}

func BenchmarkPolicy_Allows(b *testing.B) {
	p := newPolicy(b, "127.0.0.1", "11.0.0.5", "fe80::1")
	peer := netip.MustParseAddrPort("8.8.8.8:4000")
	b.ReportAllocs()
	for b.Loop() {
		if !p.allows("u", peer) {
			b.Fatal("denied")
		}
	}
}
