// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/meshgate/meshgate/node/mesh"
)

// ipPacket makes an IP packet without payload.
func ipPacket(src, dst string, ttl uint8) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is4() {
		p := header.IPv4(make([]byte, header.IPv4MinimumSize))
		p.Encode(&header.IPv4Fields{
			TotalLength: uint16(len(p)), TTL: ttl, Protocol: 17,
			SrcAddr: tcpip.AddrFromSlice(s.AsSlice()), DstAddr: tcpip.AddrFromSlice(d.AsSlice()),
		})
		p.SetChecksum(^p.CalculateChecksum())
		return p
	}
	p := header.IPv6(make([]byte, header.IPv6MinimumSize))
	p.Encode(&header.IPv6Fields{
		HopLimit: ttl, TransportProtocol: 17,
		SrcAddr: tcpip.AddrFromSlice(s.AsSlice()), DstAddr: tcpip.AddrFromSlice(d.AsSlice()),
	})
	return p
}

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}

func rulesOf(c *Config) *rules {
	var routes []route
	for i := range c.Peers {
		routes = append(routes, routesTo(new(contact), c.Peers[i].AllowedIPs...)...)
	}
	return newRules(c, newPrefixSet(routes))
}

// routesTo are routes to one peer.
func routesTo(to *contact, prefixes ...netip.Prefix) []route {
	routes := make([]route, 0, len(prefixes))
	for _, p := range prefixes {
		routes = append(routes, route{p, to})
	}
	return routes
}

func TestRules_Judge(t *testing.T) {
	denied := netip.MustParseAddr("10.0.0.66")
	r := rulesOf(&Config{
		Addresses: prefixes("10.0.0.1/24", "fd00::1:0/112"),
		Peers:     []Peer{{AllowedIPs: prefixes("10.0.0.2/32", "10.0.0.66/32", "0.0.0.0/0", "::/0", "fd00::2:0/112", "fd00::1:7/128")}},
		Allow:     func(p mesh.Packet) bool { return p.Dst != denied },
	})
	for _, c := range []struct {
		name     string
		src, dst string
		want     verdict
	}{
		{"own address", "10.0.0.2", "10.0.0.1", deliver},
		{"own address v6", "fd00::2:0", "fd00::1:0", deliver},
		{"another peer", "10.0.0.9", "10.0.0.2", forward},
		{"another peer v6", "fd00::9", "fd00::2:5", forward},
		{"far network", "10.0.0.2", "192.0.2.1", forward},
		{"refused", "10.0.0.2", "10.0.0.66", dropDenied},
		{"unused in our network", "10.0.0.2", "10.0.0.77", dropNoRoute},
		{"unused in our network v6", "fd00::2:0", "fd00::1:1", dropNoRoute},
		{"carved out of our network", "fd00::2:0", "fd00::1:7", forward},
		{"spoofs us", "10.0.0.1", "10.0.0.2", dropMartian},
		{"spoofs us to us", "10.0.0.1", "10.0.0.1", dropMartian},
		{"from loopback", "127.0.0.1", "10.0.0.1", dropMartian},
		{"to loopback", "10.0.0.2", "127.0.0.1", dropMartian},
		{"to loopback v6", "fd00::2:0", "::1", dropMartian},
		{"to metadata", "10.0.0.2", "169.254.169.254", dropMartian},
		{"to multicast", "10.0.0.2", "224.0.0.251", dropMartian},
		{"to multicast v6", "fd00::2:0", "ff02::1", dropMartian},
		{"to broadcast", "10.0.0.2", "255.255.255.255", dropMartian},
		{"from unspecified", "0.0.0.0", "10.0.0.1", dropMartian},
		{"from link local v6", "fe80::1", "fd00::1:0", dropMartian},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := r.judge(ipPacket(c.src, c.dst, 64)); got != c.want {
				t.Errorf("judge = %d, want %d", got, c.want)
			}
		})
	}
	mapped := ipPacket("fd00::2:0", "::1", 64)
	copy(mapped[24:], netip.MustParseAddr("::ffff:10.0.0.1").AsSlice())
	for name, c := range map[string]struct {
		packet []byte
		want   verdict
	}{
		"empty":      {nil, dropMalformed},
		"short v4":   {ipPacket("10.0.0.2", "10.0.0.1", 64)[:19], dropMalformed},
		"short v6":   {ipPacket("fd00::2:0", "fd00::1:0", 64)[:39], dropMalformed},
		"bad IHL":    {append([]byte{0x44}, make([]byte, 30)...), dropMalformed},
		"version 5":  {append([]byte{0x55}, make([]byte, 50)...), dropMalformed},
		"v4 mapped":  {mapped, dropMartian},
		"no payload": {ipPacket("10.0.0.2", "10.0.0.1", 64), deliver},
	} {
		if got := r.judge(c.packet); got != c.want {
			t.Errorf("%s: judge = %d, want %d", name, got, c.want)
		}
	}
}

func TestDecrementTTL_KeepsChecksumValid(t *testing.T) {
	for ttl := 0; ttl < 256; ttl++ {
		p := ipPacket("10.0.0.1", "10.1.2.3", uint8(ttl))
		ok := decrementTTL(p)
		ip := header.IPv4(p)
		switch {
		case ok != (ttl > 1):
			t.Errorf("ttl %d: decrementTTL = %t", ttl, ok)
		case ok && int(ip.TTL()) != ttl-1, !ok && int(ip.TTL()) != ttl:
			t.Errorf("ttl %d became %d", ttl, ip.TTL())
		case !ip.IsChecksumValid():
			t.Errorf("ttl %d: checksum is wrong", ttl)
		}
		p = ipPacket("fd00::1", "fd00::2", uint8(ttl))
		if ok := decrementTTL(p); ok != (ttl > 1) || ok && int(header.IPv6(p).HopLimit()) != ttl-1 {
			t.Errorf("hop limit %d: decrementTTL = %t, %d", ttl, ok, header.IPv6(p).HopLimit())
		}
	}
}

func TestPrefixSet_FindsTheLongestMatch(t *testing.T) {
	s := newPrefixSet(routesTo(new(contact), prefixes("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32", "fd00::/8", "fd00::1/128")...))
	for addr, want := range map[string]int{
		"192.0.2.1": 0, "10.2.0.1": 8, "10.1.0.1": 16, "10.1.1.1": 32, "fd00::2": 8, "fd00::1": 128,
	} {
		if bits, ok := s.match(netip.MustParseAddr(addr)); !ok || bits != want {
			t.Errorf("match(%s) = %d, %t, want %d", addr, bits, ok, want)
		}
	}
	if _, ok := s.match(netip.MustParseAddr("2001:db8::1")); ok {
		t.Error("match of an address in no prefix")
	}
	if _, ok := (*prefixSet)(nil).match(netip.MustParseAddr("10.0.0.1")); ok {
		t.Error("match in the empty set")
	}
}

// FuzzRules_Judge checks that no packet panics, and that one that may go on has
// addresses that Allow was asked about.
func FuzzRules_Judge(f *testing.F) {
	f.Add(ipPacket("10.0.0.2", "10.0.0.3", 64))
	f.Add(ipPacket("fd00::2:0", "fd00::3:0", 64))
	f.Add([]byte{0x45})
	f.Fuzz(func(t *testing.T, p []byte) {
		asked := false
		r := rulesOf(&Config{
			Addresses: prefixes("10.0.0.1/24", "fd00::1:0/112"),
			Allow: func(p mesh.Packet) bool {
				asked = true
				return !martian(p.Src) && !martian(p.Dst) && !netip.MustParsePrefix("10.0.0.0/24").Contains(p.Dst)
			},
		})
		if v := r.judge(p); v == forward && (!asked || ipVersion(p) == 0) {
			t.Errorf("judge = forward, asked %t", asked)
		} else if v == forward {
			decrementTTL(p)
		}
	})
}

func BenchmarkRules_Judge(b *testing.B) {
	r := rulesOf(&Config{
		Addresses: prefixes("10.0.0.1/32", "fd00::1:0/112"),
		Allow:     func(mesh.Packet) bool { return true },
	})
	p := ipPacket("10.0.0.2", "10.0.0.3", 64)
	b.ReportAllocs()
	for range b.N {
		if r.judge(p) != forward {
			b.Fatal("not forwarded")
		}
	}
}
