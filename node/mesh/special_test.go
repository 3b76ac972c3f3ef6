// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// A network is judged by all that it holds, not by its first address.
func TestCheckSpecial(t *testing.T) {
	for network, want := range map[string]string{
		"10.0.0.0/8": "", "172.16.0.0/12": "", "192.168.0.0/16": "", "100.64.0.0/10": "", "198.18.0.0/15": "",
		"203.0.113.0/24": "", "192.0.2.0/24": "", "192.0.1.0/24": "", "1.0.0.0/8": "", "223.0.0.0/8": "",
		"2001:db8::/32": "", "2001:470::/32": "", "2600::/16": "", "fd00::/32": "", "fc00::/16": "", "3fff::/20": "",
		"0.0.0.0/0": "this host", "0.0.0.0/8": "this host", "127.0.0.1/32": "loopback", "126.0.0.0/7": "loopback",
		"169.0.0.0/8": "link-local", "169.254.169.254/32": "link-local", "192.0.0.0/8": "protocol assignments",
		"192.0.0.192/32": "protocol assignments", "224.0.0.0/8": "multicast", "255.0.0.0/8": "reserved", "255.255.255.255/32": "broadcast",
		"168.63.129.0/24": "metadata", "fd00:ec2::254/128": "metadata", "fd00::/16": "metadata", "fd20:ce::254/128": "metadata",
		"::/0": "no address", "::/16": "no address", "::1/128": "loopback", "::127.0.0.1/128": "IPv4-compatible",
		"::ffff:10.0.0.0/104": "IPv4-mapped", "64:ff9b::/96": "NAT64", "64::/16": "NAT64", "64:ff9b:1:2::/64": "NAT64", "65::/16": "reserved",
		"100::/16": "discarded", "2001::/16": "Teredo", "2001:0:1::/48": "Teredo", "2002::/16": "6to4", "2002:7f00:1::/48": "6to4",
		"fe80::/64": "link-local", "fe00::/8": "link-local", "fec0::/16": "site-local", "ff02::/16": "multicast",
	} {
		err := mesh.CheckSpecial(netip.MustParsePrefix(network))
		if want == "" && err != nil || want != "" && (!errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", network, err, want)
		}
	}
}

func TestIsSpecial(t *testing.T) {
	for addr, want := range map[string]bool{
		"10.0.0.1": false, "100.64.0.1": false, "198.18.77.1": false, "fd00::1": false, "2001:db8::1": false, "168.63.129.17": false,
		"0.0.0.1": true, "240.0.0.1": true, "255.255.255.255": true, "169.254.0.1": true, "192.0.0.192": true, "168.63.129.16": true,
		"::": true, "::127.0.0.1": true, "64:ff9b::7f00:1": true, "2002:7f00:1::": true, "fd00:ec2::254": true, "::ffff:10.0.0.1": true,
	} {
		if got := mesh.IsSpecial(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

func TestEmbedsIPv4(t *testing.T) {
	for addr, want := range map[string]bool{
		"10.0.0.1": false, "2001:db8::1": false, "fd00::1": false, "fe80::1": false, "::ffff:10.0.0.1": true, "::10.0.0.1": true,
		"::ffff:0:10.0.0.1": true, "64:ff9b::a00:1": true, "64:ff9b:1::a00:1": true, "64:ff9b:2::a00:1": false, "2002:a00:1::": true,
		"2001:0:a00:1::": true, "2001:db8::5efe:10.0.0.1": true, "2001:db8::200:5efe:10.0.0.1": true,
	} {
		if got := mesh.EmbedsIPv4(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

func TestIsInternet(t *testing.T) {
	for text, want := range map[string]bool{
		"8.8.8.8": true, "203.0.113.9": true, "2a00::1": true, "2001:db8::1": true,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.7.1": false, "100.64.0.1": false, "fd00::1": false, "fc00::1": false,
		"127.0.0.1": false, "169.254.169.254": false, "224.0.0.1": false, "255.255.255.255": false, "0.0.0.0": false, "168.63.129.16": false,
		"::1": false, "fe80::1": false, "ff02::1": false, "::ffff:8.8.8.8": false, "64:ff9b::808:808": false, "2002:808:808::1": false,
	} {
		if got := mesh.IsInternet(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	if mesh.IsInternet(netip.Addr{}) {
		t.Error("no address is one")
	}
}
