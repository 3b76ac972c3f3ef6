// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// way is what the kernel says of a packet: the interface, or that it refuses it.
func (h *host) way(to string, mark bool) string {
	h.tb.Helper()
	args := []string{"-o", "route", "get", to}
	if mark {
		args = append(args, "mark", "0xd47")
	}
	out, err := output("ip", args...)
	if err != nil {
		if strings.Contains(out, "unreachable") || strings.Contains(out, "No route to host") {
			return "refused"
		}
		h.tb.Fatalf("route to %s: %v: %s", to, err, out)
	}
	_, rest, _ := strings.Cut(out, " dev ")
	name, _, _ := strings.Cut(rest, " ")
	return name
}

// withUplink gives the host a way to the Internet, and a network behind it.
func withUplink(h *host) {
	h.tb.Helper()
	h.run("ip", "route", "add", "default", "dev", "lan0")
	h.run("ip", "route", "add", "10.20.0.0/16", "dev", "lan0")
	h.run("ip", "addr", "add", "2001:db8::1/64", "dev", "lan0", "nodad")
	h.run("ip", "-6", "route", "add", "default", "dev", "lan0")
	// The kernel makes the route to the address itself a moment later.
	for deadline := time.Now().Add(10 * time.Second); ; {
		if strings.Contains(h.run("ip", "-6", "route", "show", "table", "local"), "local 2001:db8::1 ") {
			return
		}
		if time.Now().After(deadline) {
			h.tb.Fatal("the kernel makes no route to the address of lan0")
		}
	}
}

func user(exit *Exit) Config {
	return Config{Addresses: prefixes("172.16.0.1/32", "fd00::1:0/112"), Routes: prefixes("172.16.0.0/12", "fd00::/32"), Exit: exit}
}

func TestSet_LeadsEverythingElseToTheExit(t *testing.T) {
	k, h := newHost(t), New(nil)
	withUplink(k)
	before := k.dump()
	type ways map[string]string
	near := ways{"192.0.2.9": "lan0", "10.20.3.4": "lan0", "2001:db8::9": "lan0", "172.16.0.9": "mesh0", "fd00::9": "mesh0"}
	tests := []struct {
		name   string
		exit   *Exit
		public ways
	}{
		{"both", &Exit{IPv4: true, IPv6: true, Block: true}, ways{"8.8.8.8": "mesh0", "2a00::1": "mesh0"}},
		{"IPv4 only", &Exit{IPv4: true}, ways{"8.8.8.8": "mesh0", "2a00::1": "refused"}},
		{"none", &Exit{Block: true}, ways{"8.8.8.8": "refused", "2a00::1": "refused"}},
		{"both again", &Exit{IPv4: true, IPv6: true}, ways{"8.8.8.8": "mesh0", "2a00::1": "mesh0"}},
		{
			"but for its own addresses", &Exit{IPv4: true, Block: true, Beside: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2a00::9")}},
			ways{"8.8.8.8": "mesh0", "9.9.9.9": "lan0", "2a00::1": "refused", "2a00::9": "lan0"},
		},
		{"with them", &Exit{IPv4: true, Block: true}, ways{"8.8.8.8": "mesh0", "9.9.9.9": "mesh0", "2a00::9": "refused"}},
		{"no exit", nil, ways{"8.8.8.8": "lan0", "2a00::1": "lan0"}},
	}
	for _, test := range tests {
		set(t, h, user(test.exit))
		got, marked := ways{}, ways{}
		for to := range test.public {
			got[to], marked[to] = k.way(to, false), k.way(to, true)
		}
		if diff := cmp.Diff(test.public, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		for to, way := range marked {
			if way != "lan0" {
				t.Errorf("%s: packets of the tunnel to %s go to %s", test.name, to, way)
			}
		}
		for to, want := range near {
			if got := k.way(to, false); got != want {
				t.Errorf("%s: %s goes to %s, want %s", test.name, to, got, want)
			}
		}
	}
	set(t, h, user(&Exit{IPv4: true, Block: true}))
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, k.dump()); diff != "" {
		t.Errorf("closed (-want +got):\n%s", diff)
	}
}

// What a network manager takes away comes back.
func TestSet_PutsBackRulesOfTheExit(t *testing.T) {
	k, h := newHost(t), New(nil)
	withUplink(k)
	c := user(&Exit{IPv4: true, IPv6: true, Block: true})
	set(t, h, c)
	table := exitTable("mesh0")
	look := func() string {
		return k.run("ip", "rule") + k.run("ip", "-6", "rule") + k.run("ip", "route", "show", "table", number(table)) + k.run("ip", "-6", "route", "show", "table", number(table))
	}
	want := look()
	changes, err := h.Changes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"ip rule del priority " + number(exitPriority(table)+1), "ip -6 rule del priority " + number(exitPriority(table)),
		"ip route flush table " + number(table),
	} {
		words := strings.Fields(args)
		k.run(words[0], words[1:]...)
		if _, ok := <-changes; !ok {
			t.Fatal("no more changes")
		}
		set(t, h, c)
		if diff := cmp.Diff(want, look()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", args, diff)
		}
	}
}

// Nothing goes beside the tunnel when the node is killed, until it is there again.
func TestCleanFor_KeepsTheBlock(t *testing.T) {
	k := newHost(t)
	withUplink(k)
	before := k.dump()
	for name, c := range map[string]struct {
		exit *Exit
		want string
	}{
		"blocked": {&Exit{IPv4: true, Block: true}, "refused"},
		"open":    {&Exit{IPv4: true}, "lan0"},
	} {
		set(t, New(nil), user(c.exit))
		if err := k.nl.LinkDel(k.link("mesh0")); err != nil {
			t.Fatal(err)
		}
		if got := k.way("8.8.8.8", false); got != c.want {
			t.Errorf("%s: killed: goes to %s, want %s", name, got, c.want)
		}
		k.add("mesh0")
		next := New(nil)
		if err := next.CleanFor("mesh0", true); err != nil {
			t.Fatal(err)
		}
		if got := k.way("8.8.8.8", false); got != c.want {
			t.Errorf("%s: begun: goes to %s, want %s", name, got, c.want)
		}
		// It may end before it comes to Set.
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, k.dump()); diff != "" {
			t.Errorf("%s: closed (-want +got):\n%s", name, diff)
		}
	}
}

// A host that drops what comes in where answers would not go out is told not to
// do so where the tunnel runs.
func TestSet_LoosensTheReversePathFilter(t *testing.T) {
	const path = "ipv4/conf/lan0/rp_filter"
	k := newHost(t)
	withUplink(k)
	for _, test := range []struct{ all, lan, want string }{
		{"0", "1", "2"}, {"1", "0", "2"}, {"1", "1", "2"}, {"0", "0", "0"}, {"2", "1", "2"}, {"1", "2", "2"},
	} {
		k.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter="+test.all, "net.ipv4.conf.lan0.rp_filter="+test.lan)
		h := New(nil)
		set(t, h, user(&Exit{IPv4: true}))
		if got := k.setting(path); got != test.want {
			t.Errorf("all %s, lan0 %s: became %s, want %s", test.all, test.lan, got, test.want)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if got := k.setting(path); got != test.lan {
			t.Errorf("all %s, lan0 %s: left at %s", test.all, test.lan, got)
		}
	}
}

// Of a host with other networks an exit opens those that lead to the Internet.
func TestSet_AnExitForwardsAtTheUplinkOnly(t *testing.T) {
	k, h := newHost(t), New(nil)
	withUplink(k)
	k.add("lan1")
	k.run("ip", "addr", "add", "10.9.0.1/24", "dev", "lan1")
	k.run("ip", "link", "set", "lan1", "up")
	c := router()
	c.Serve = prefixes("0.0.0.0/0", "::/0")
	set(t, h, c)
	if lan0, lan1 := k.setting("ipv4/conf/lan0/forwarding"), k.setting("ipv4/conf/lan1/forwarding"); lan0 != "1" || lan1 != "0" {
		t.Errorf("lan0 forwards: %s, lan1: %s; want 1 and 0", lan0, lan1)
	}
	if rules := k.run("nft", "list", "table", "inet", "meshgate_mesh0"); strings.Count(rules, "masquerade") != 2 {
		t.Errorf("no address translation for everything:\n%s", rules)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestExitTable_AndItsRulesBelongTogether(t *testing.T) {
	for _, name := range []string{"meshgate0", "mesh0", "a"} {
		table := exitTable(name)
		for i := range rulesPerTable {
			if got, ok := ruleTable(exitPriority(table) + i); !ok || got != table {
				t.Errorf("%s: rule %d is of table %#x, %v; want %#x", name, i, got, ok, table)
			}
		}
	}
	for _, priority := range []int{0, exitRules - 1, exitRules + rulesPerTable*exitHashes, 32766} {
		if _, ok := ruleTable(priority); ok {
			t.Errorf("a rule of priority %d is ours", priority)
		}
	}
}
