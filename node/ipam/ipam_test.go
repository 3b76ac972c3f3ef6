// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshgate/meshgate/node/ipam"
	"github.com/meshgate/meshgate/node/mesh"
)

// set makes the taken function of a list of addresses.
func set(addrs ...string) func(netip.Addr) bool {
	taken := make(map[netip.Addr]bool)
	for _, a := range addrs {
		taken[netip.MustParseAddr(a)] = true
	}
	return func(a netip.Addr) bool { return taken[a] }
}

func TestNext(t *testing.T) {
	cases := []struct {
		name   string
		prefix string
		taken  []string
		want   string
		err    error
	}{
		{name: "first of a network", prefix: "172.16.0.0/12", want: "172.16.0.1/32"},
		{name: "network with host bits", prefix: "172.16.5.9/12", want: "172.16.0.1/32"},
		{name: "next", prefix: "172.16.0.0/12", taken: []string{"172.16.0.1", "172.16.0.2"}, want: "172.16.0.3/32"},
		{name: "gap", prefix: "172.16.0.0/12", taken: []string{"172.16.0.1", "172.16.0.3"}, want: "172.16.0.2/32"},
		{name: "last", prefix: "10.0.0.0/30", taken: []string{"10.0.0.1"}, want: "10.0.0.2/32"},
		{name: "not the broadcast address", prefix: "10.0.0.0/30", taken: []string{"10.0.0.1", "10.0.0.2"}, err: mesh.ErrExhausted},
		{name: "/31", prefix: "10.0.0.0/31", err: mesh.ErrExhausted},
		{name: "/32", prefix: "10.0.0.0/32", err: mesh.ErrExhausted},
		{name: "end of all addresses", prefix: "255.255.255.255/32", err: mesh.ErrExhausted},
		{name: "every address", prefix: "0.0.0.0/0", want: "0.0.0.1/32"},
		{name: "IPv6", prefix: "fd00::/64", err: mesh.ErrInvalid},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := ipam.Next(netip.MustParsePrefix(c.prefix), set(c.taken...))
			if !errors.Is(err, c.err) || (c.err == nil && got.String() != c.want) || (c.err != nil && got.IsValid()) {
				t.Errorf("Next = %v, %v, want %s, %v", got, err, c.want, c.err)
			}
		})
	}
	if _, err := ipam.Next(netip.Prefix{}, set()); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("no network: %v", err)
	}
}

// Asked again and again, Next gives out each host of a network once, in order,
// and then no more.
func TestNext_GivesOutTheWholeNetwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, 0}), rapid.IntRange(25, 32).Draw(t, "bits"))
		taken := make(map[netip.Addr]bool)
		previous := prefix.Addr()
		for {
			got, err := ipam.Next(prefix, func(a netip.Addr) bool { return taken[a] })
			if err != nil {
				break
			}
			if !prefix.Contains(got.Addr()) || got.Bits() != 32 || !previous.Less(got.Addr()) {
				t.Fatalf("%v after %v", got, previous)
			}
			previous = got.Addr()
			taken[previous] = true
		}
		if want := max(0, 1<<(32-prefix.Bits())-2); len(taken) != want {
			t.Fatalf("%v gave out %d addresses, want %d", prefix, len(taken), want)
		}
	})
}
