// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// run runs a tool of the system and returns what it prints.
func (h *host) run(name string, args ...string) string {
	h.tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		h.tb.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// output runs a tool that may fail.
func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

func number(n int) string { return strconv.Itoa(n) }

// volatile is what changes by itself in a dump: indices of interfaces that are
// made anew, names of addresses that the kernel draws, and ages.
var volatile = regexp.MustCompile(`(?m)^\d+: |inet6 fe80\S+.*$|fe80::\S+.*$|^multicast .*$|expires \S+|# handle \d+|@\w+`)

// dump is the whole network of the host without mesh interfaces, as the tools of
// the system show it, with all settings.
func (h *host) dump() map[string]string {
	h.tb.Helper()
	d := map[string]string{}
	for name, args := range map[string]string{
		"address": "ip -o addr", "route4": "ip -4 route show table all", "route6": "ip -6 route show table all",
		"rule4": "ip -4 rule", "rule6": "ip -6 rule", "nft": "nft list ruleset",
	} {
		words := strings.Fields(args)
		var lines []string
		for line := range strings.Lines(h.run(words[0], words[1:]...)) {
			if !strings.Contains(line, "mesh") || name == "nft" {
				lines = append(lines, strings.TrimSpace(volatile.ReplaceAllString(line, "")))
			}
		}
		d[name] = strings.Join(lines, "\n")
	}
	for _, dir := range []string{"ipv4/conf", "ipv6/conf"} {
		err := filepath.WalkDir(settingsDir+dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || strings.Contains(path, "/mesh") {
				return err
			}
			if b, err := os.ReadFile(path); err == nil { // some can only be written
				d[strings.TrimPrefix(path, settingsDir)] = strings.TrimSpace(string(b))
			}
			return nil
		})
		if err != nil {
			h.tb.Fatal(err)
		}
	}
	return d
}

// router is a configuration of a node that serves two networks behind lan0.
func router() Config {
	return Config{
		MTU: 1400, Addresses: prefixes("172.16.0.1/32", "fd00::1:0/112"), Routes: prefixes("172.16.0.0/12", "fd00::/32"),
		Forward: true, Serve: prefixes("192.0.2.0/24", "fd77::/64"), Masquerade: prefixes("172.16.0.0/12", "fd00::/32"),
		Networks: prefixes("172.16.0.0/12", "fd00::/32"),
	}
}

func TestSet_ServesNetworks(t *testing.T) {
	k, h := newHost(t), New(nil)
	k.run("nft", "add table inet theirs")
	before := k.dump()
	set(t, h, router())
	got := k.run("nft", "list", "table", "inet", "meshgate_mesh0")
	want := `table inet meshgate_mesh0 {
	chain ledger {
		return comment "interface mesh0"
		return comment "state STATE"
		return comment "setting ipv4/conf/lan0/forwarding 1 0"
		return comment "setting ipv6/conf/lan0/force_forwarding 1 0"
	}

	chain forward {
		type filter hook forward priority mangle; policy accept;
		iifname != "mesh0" iifname != "lo" ip saddr 172.16.0.1 drop
		iifname != "mesh0" iifname != "lo" ip6 saddr fd00::1:0 drop
		iifname != "mesh0" iifname != "lo" ip saddr 172.16.0.0/12 fib saddr oifname "mesh0" drop
		iifname != "mesh0" iifname != "lo" ip6 saddr fd00::/32 fib saddr oifname "mesh0" drop
		iifname "lan0" oifname != "mesh0" meta nfproto ipv4 ct state ! established,related drop
		iifname "lan0" oifname != "mesh0" meta nfproto ipv6 ct state ! established,related drop
		iifname "mesh0" meta nfproto ipv4 tcp flags syn / syn,rst tcp option maxseg size set 1360
		iifname "mesh0" meta nfproto ipv6 tcp flags syn / syn,rst tcp option maxseg size set 1340
		oifname "mesh0" meta nfproto ipv4 tcp flags syn / syn,rst tcp option maxseg size set 1360
		oifname "mesh0" meta nfproto ipv6 tcp flags syn / syn,rst tcp option maxseg size set 1340
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname != "mesh0" iifname != "lo" ip saddr 172.16.0.1 drop
		iifname != "mesh0" iifname != "lo" ip6 saddr fd00::1:0 drop
		iifname != "mesh0" iifname != "lo" ip saddr 172.16.0.0/12 fib saddr oifname "mesh0" drop
		iifname != "mesh0" iifname != "lo" ip6 saddr fd00::/32 fib saddr oifname "mesh0" drop
		iifname "mesh0" ip daddr 172.16.0.1 accept
		iifname "mesh0" ip6 daddr fd00::1:0 accept
		iifname "mesh0" drop
	}

	chain leave {
		type nat hook postrouting priority srcnat; policy accept;
		oifname != "mesh0" ip saddr 172.16.0.0/12 ip daddr 192.0.2.0/24 masquerade
		oifname != "mesh0" ip6 saddr fd00::/32 ip6 daddr fd77::/64 masquerade
	}
}
`
	got = regexp.MustCompile(`state [0-9a-f]{32}`).ReplaceAllString(got, "state STATE")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	for _, path := range []string{"ipv4/conf/lan0/forwarding", "ipv6/conf/lan0/force_forwarding", "ipv4/conf/mesh0/forwarding", "ipv6/conf/mesh0/force_forwarding"} {
		if k.setting(path) != "1" {
			t.Errorf("%s is %s", path, k.setting(path))
		}
	}
	if k.setting("ipv4/ip_forward")+k.setting(allForwarding6) != "00" {
		t.Error("the host forwards for all")
	}
	changes := 0
	h.step = func(string) { changes++ }
	if set(t, h, router()); changes != 0 {
		t.Errorf("the same again made %d changes", changes)
	}
	without := router()
	without.Masquerade = nil
	set(t, h, without)
	if got := k.run("nft", "list", "table", "inet", "meshgate_mesh0"); strings.Contains(got, "masquerade") {
		t.Errorf("without masquerading:\n%s", got)
	}
	without.Serve = nil
	set(t, h, without)
	if diff := cmp.Diff(before, k.dump()); diff != "" {
		t.Errorf("without networks to serve (-want +got):\n%s", diff)
	}
	set(t, h, router())
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, k.dump()); diff != "" {
		t.Errorf("after Close (-want +got):\n%s", diff)
	}
}

// Of two interfaces, whoever goes last gives a setting back.
func TestSet_SharesSettingsWithOtherInterfaces(t *testing.T) {
	k := newHost(t)
	k.add("mesh1")
	before := k.dump()
	const lan = "ipv4/conf/lan0/forwarding"
	for _, last := range []int{0, 1} {
		hosts := []*Host{New(nil), New(nil)}
		for i, name := range []string{"mesh0", "mesh1"} {
			c := router()
			c.Interface, c.Addresses, c.Routes = name, nil, nil
			if err := hosts[i].Set(context.Background(), c); err != nil {
				t.Fatal(err)
			}
		}
		if err := hosts[1-last].Close(); err != nil {
			t.Fatal(err)
		}
		if k.setting(lan) != "1" {
			t.Error("taken away from the other")
		}
		if err := hosts[last].Close(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, k.dump()); diff != "" {
			t.Errorf("after the last of them (-want +got):\n%s", diff)
		}
	}
}

func TestSet_LeavesSettingsThatOthersChanged(t *testing.T) {
	k, h := newHost(t), New(nil)
	const lan = "ipv4/conf/lan0/forwarding"
	if err := os.WriteFile(settingsDir+lan, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	set(t, h, router())
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if k.setting(lan) != "1" {
		t.Error("what was on before is off")
	}
}

// Firewall tools empty all tables when they start.
func TestChanges_TellOfThePacketFilter(t *testing.T) {
	k, h := newHost(t), New(nil)
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := h.Changes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := router()
	c.Interface = "mesh0"
	set(t, h, c)
	want := k.dump()
	for name, take := range map[string]string{
		"all":   "flush ruleset",
		"table": "delete table inet meshgate_mesh0",
		"rules": "flush chain inet meshgate_mesh0 leave",
		"notes": "flush chain inet meshgate_mesh0 ledger",
		"chain": "delete chain inet meshgate_mesh0 input",
	} {
		if name == "chain" {
			k.run("nft", "flush", "chain", "inet", "meshgate_mesh0", "input")
		}
		k.run("nft", strings.Fields(take)...)
		for !cmp.Equal(k.dump(), want) {
			select {
			case <-changes:
			case <-time.After(time.Minute):
				t.Fatalf("%s: nothing is told (-want +got):\n%s", name, cmp.Diff(want, k.dump()))
			}
			if err := h.Set(ctx, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	cancel()
	for range changes { // until it is closed
	}
}

func TestTableOf(t *testing.T) {
	for name, data := range map[string]string{
		"t":  "\x01\x00\x00\x00\x06\x00\x01\x00t\x00\x00\x00",
		"":   "\x01\x00\x00",
		"ab": "\x01\x00\x00\x00\x05\x00\x02\x00x\x00\x00\x00\x07\x00\x01\x00ab\x00",
	} {
		if got := tableOf([]byte(data)); got != name {
			t.Errorf("%q: %q, want %q", data, got, name)
		}
	}
}

func FuzzTableOf(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x06\x00\x01\x00t\x00\x00\x00"))
	f.Add([]byte("\x01\x00\x00\x00\xff\xff\x01\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if name := tableOf(data); len(name) > len(data) {
			t.Errorf("%q in %q", name, data)
		}
	})
}

func TestLeading_FindsTheWaysOut(t *testing.T) {
	to := func(index int, p string) netlink.Route {
		return netlink.Route{LinkIndex: index, Dst: ipNet(netip.MustParsePrefix(p))}
	}
	table := []netlink.Route{
		{LinkIndex: 1}, to(2, "10.0.0.0/8"), to(3, "10.1.0.0/16"), to(4, "10.1.2.0/24"), to(5, "192.0.2.0/24"),
		{MultiPath: []*netlink.NexthopInfo{{LinkIndex: 6}, {LinkIndex: 7}}, Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24"))},
	}
	for networks, want := range map[string][]int{
		"10.1.2.0/24":     {4},
		"10.1.2.128/25":   {4},
		"10.1.0.0/16":     {3, 4},
		"10.0.0.0/9":      {2, 3, 4},
		"192.0.2.0/24":    {5},
		"198.51.100.0/25": {6, 7},
		"203.0.113.0/24":  {1},
	} {
		if got := leading(table, prefixes(networks)); !cmp.Equal(got, want) {
			t.Errorf("%s: %v, want %v", networks, got, want)
		}
	}
	if got := leading(table[1:], prefixes("203.0.113.0/24")); len(got) != 0 {
		t.Errorf("a network without a route: %v", got)
	}
}

func TestPathMTU(t *testing.T) {
	k, h := newHost(t), New(nil)
	at := func(list ...string) (addrs []netip.Addr) {
		for _, a := range list {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		return addrs
	}
	k.run("ip", "link", "set", "lan0", "mtu", "1400")
	k.add("wan0")
	k.run("ip", "addr", "add", "198.51.100.1/24", "dev", "wan0")
	k.run("ip", "link", "set", "wan0", "up")
	k.run("ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.2", "mtu", "1300")
	set(t, h, Config{MTU: 1280, Addresses: prefixes("172.16.0.1/32"), Routes: prefixes("172.16.0.0/12")})
	for _, tt := range []struct {
		addrs []netip.Addr
		want  int
	}{
		{at("192.0.2.9"), 1400}, {at("198.51.100.9"), 1500}, {at("198.51.100.9", "192.0.2.9"), 1400}, {at("203.0.113.9"), 1300},
		{at("172.16.0.9"), 0}, {at("2001:db8::1"), 0}, {nil, 0}, {at("172.16.0.9", "198.51.100.9"), 1500},
	} {
		if got, err := h.PathMTU(tt.addrs); err != nil || got != tt.want {
			t.Errorf("%v: %d, %v, want %d", tt.addrs, got, err, tt.want)
		}
	}
}

func FuzzPriorityOf(f *testing.F) {
	f.Add(append(make([]byte, 12), 8, 0, 6, 0, 0x20, 0x4e, 0, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, ok := priorityOf(data); !ok && n != 0 {
			t.Errorf("%d of none", n)
		}
	})
}
