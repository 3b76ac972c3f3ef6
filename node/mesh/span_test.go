// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// parts cuts all addresses of a family into networks of some length.
func parts(all string, bits int) []netip.Prefix {
	var list []netip.Prefix
	for i := range 1 << bits {
		a := netip.MustParsePrefix(all).Addr().AsSlice()
		a[0] = byte(i << (8 - bits))
		addr, _ := netip.AddrFromSlice(a)
		list = append(list, netip.PrefixFrom(addr, bits))
	}
	return list
}

func TestCheckWidth(t *testing.T) {
	for text, wide := range map[string]bool{
		"0.0.0.0/0": true, "0.0.0.0/1": true, "128.0.0.0/1": true, "64.0.0.0/2": true, "10.0.0.0/7": true,
		"10.0.0.0/8": false, "100.64.0.0/10": false, "192.0.2.1/32": false,
		"::/0": true, "8000::/1": true, "2000::/3": true, "fc00::/7": true, "2001::/15": true,
		"2002::/16": false, "2001:db8::/32": false, "fd00::/64": false, "2001:db8::1/128": false,
	} {
		p := netip.MustParsePrefix(text)
		if err := mesh.CheckWidth(p); errors.Is(err, mesh.ErrInvalid) != wide || mesh.TooWide(p) != wide {
			t.Errorf("%s: %v, want too wide: %v", text, err, wide)
		}
	}
}

// No way to cut a default route up makes it small enough.
func TestCheckSpan(t *testing.T) {
	private := []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
	}
	some := parts("0.0.0.0/0", 8)[16:32]
	for name, tt := range map[string]struct {
		list []netip.Prefix
		ok   bool
	}{
		"none":                  {nil, true},
		"usual":                 {private, true},
		"as many as there may":  {some, true},
		"one address more":      {append(some[:16:16], netip.MustParsePrefix("203.0.113.7/32")), false},
		"the same ones again":   {append(append(some[:16:16], some...), netip.MustParsePrefix("16.1.0.0/16"), netip.MustParsePrefix("16.1.2.0/24")), true},
		"halves":                {parts("0.0.0.0/0", 1), false},
		"256 parts":             {parts("0.0.0.0/0", 8), false},
		"halves of IPv6":        {parts("::/0", 1), false},
		"256 parts of IPv6":     {parts("::/0", 8), false},
		"everything, both ways": {append(parts("::/0", 0), parts("0.0.0.0/0", 0)...), false},
		"IPv6 beside full IPv4": {append(some[:16:16], private[3:]...), true},
		"many single addresses": {singles(10_000), true},
	} {
		for range 3 { // in any order
			rand.Shuffle(len(tt.list), func(i, j int) { tt.list[i], tt.list[j] = tt.list[j], tt.list[i] })
			if err := mesh.CheckSpan(tt.list); (err == nil) != tt.ok || err != nil && !errors.Is(err, mesh.ErrInvalid) {
				t.Errorf("%s: %v, want ok: %v", name, err, tt.ok)
			}
		}
	}
}

func singles(n int) []netip.Prefix {
	var list []netip.Prefix
	for i := range n {
		list = append(list, netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::/128", i)))
	}
	return list
}

// WithinSpan changes nothing that is fine, and cuts down anything else.
func TestWithinSpan(t *testing.T) {
	sorted := func(lists ...[]netip.Prefix) []netip.Prefix {
		return slices.SortedFunc(slices.Values(slices.Concat(lists...)), netip.Prefix.Compare)
	}
	small := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("203.0.113.7/32")}
	some := parts("0.0.0.0/0", 8)[16:32]
	for name, tt := range map[string]struct {
		list []netip.Prefix
		want int
	}{
		"none":                  {nil, 0},
		"usual":                 {sorted(small), 3},
		"as many as there may":  {sorted(some), 16},
		"overlapping ones":      {sorted(some, []netip.Prefix{netip.MustParsePrefix("16.1.0.0/16"), netip.MustParsePrefix("16.1.2.0/24")}), 18},
		"default routes":        {sorted(small, parts("0.0.0.0/0", 0), parts("::/0", 0)), 3},
		"halves":                {sorted(small, parts("0.0.0.0/0", 1), parts("::/0", 1)), 3},
		"256 parts":             {sorted(small, parts("0.0.0.0/0", 8)), 3 + 15},
		"256 parts of IPv6":     {sorted(parts("::/0", 8)), 0},
		"many single addresses": {sorted(singles(10_000)), 10_000},
	} {
		got := mesh.WithinSpan(tt.list)
		if len(got) != tt.want || mesh.CheckSpan(got) != nil || !slices.IsSortedFunc(got, netip.Prefix.Compare) {
			t.Errorf("%s: %d networks, want %d, sorted and within what there may be: %v", name, len(got), tt.want, mesh.CheckSpan(got))
		}
		if tt.want >= 3 && strings.Contains(name, "parts") && slices.Contains(tt.list, small[0]) && !slices.Contains(got, small[0]) {
			t.Errorf("%s: the small ones gave way", name)
		}
	}
}
