// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host is an empty network of its own with a TUN interface "mesh0" in it, and
// one named "lan0" that stands for the rest of the host.
type host struct {
	tb testing.TB
	nl *netlink.Handle
}

// newHost moves the test into a new network namespace. The thread is never
// given back, so the namespace ends with it.
func newHost(tb testing.TB) *host {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("needs root for a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatalf("unshare network: %v", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nl.Close)
	h := &host{tb: tb, nl: nl}
	h.add("mesh0")
	lan := h.add("lan0")
	if err := errors.Join(nl.LinkSetUp(lan), nl.AddrAdd(lan, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.0.2.1/24"))})); err != nil {
		tb.Fatal(err)
	}
	return h
}

// add makes an interface.
func (h *host) add(name string) netlink.Link {
	h.tb.Helper()
	err := h.nl.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500}, Mode: netlink.TUNTAP_MODE_TUN})
	if err != nil {
		h.tb.Fatalf("add %s: %v", name, err)
	}
	return h.link(name)
}

func (h *host) link(name string) netlink.Link {
	h.tb.Helper()
	link, err := h.nl.LinkByName(name)
	if err != nil {
		h.tb.Fatal(err)
	}
	return link
}

// state is what the kernel knows about mesh0.
type state struct {
	Up                bool
	MTU               int
	Addresses, Routes []string
}

func (h *host) state() state {
	h.tb.Helper()
	link := h.link("mesh0")
	addrs, err := addresses(h.nl, link)
	if err != nil {
		h.tb.Fatal(err)
	}
	routes, _, err := routes(h.nl, link)
	if err != nil {
		h.tb.Fatal(err)
	}
	// The kernel adds link-local addresses and multicast routes of its own.
	own := func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() }
	return state{
		Up: link.Attrs().Flags&net.FlagUp != 0, MTU: link.Attrs().MTU,
		Addresses: texts(slices.DeleteFunc(addrs, own)), Routes: texts(slices.DeleteFunc(routes, own)),
	}
}

func texts(list []netip.Prefix) []string {
	slices.SortFunc(list, netip.Prefix.Compare)
	out := []string{}
	for _, p := range slices.Compact(list) {
		out = append(out, p.String())
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// setting reads a kernel setting.
func (h *host) setting(path string) string {
	h.tb.Helper()
	b, err := os.ReadFile(settingsDir + path)
	if err != nil {
		h.tb.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (h *host) want(what string, want state) {
	h.tb.Helper()
	if diff := cmp.Diff(want, h.state()); diff != "" {
		h.tb.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func set(tb testing.TB, h *Host, c Config) {
	tb.Helper()
	c.Interface = "mesh0"
	if err := h.Set(context.Background(), c); err != nil {
		tb.Fatal(err)
	}
}

func TestSet_FollowsTheConfiguration(t *testing.T) {
	k, h := newHost(t), New(nil)
	full := Config{
		MTU: 1420, Addresses: prefixes("172.16.0.1/32", "fd00::1:0/112"), Routes: prefixes("172.16.0.0/12", "fd00::/32"),
	}
	wantFull := state{
		Up: true, MTU: 1420, Addresses: []string{"172.16.0.1/32", "fd00::1:0/112"},
		Routes: []string{"172.16.0.0/12", "fd00::/32", "fd00::1:0/112"},
	}
	set(t, h, full)
	k.want("first", wantFull)
	set(t, h, full)
	k.want("the same again", wantFull)

	other := Config{MTU: 1300, Addresses: prefixes("172.16.0.9/32", "fd00::1:0/112"), Routes: prefixes("10.0.0.0/8", "fd00::/32")}
	set(t, h, other)
	k.want("changed", state{
		Up: true, MTU: 1300, Addresses: []string{"172.16.0.9/32", "fd00::1:0/112"},
		Routes: []string{"10.0.0.0/8", "fd00::/32", "fd00::1:0/112"},
	})
	set(t, h, Config{})
	k.want("emptied", state{Up: true, MTU: 1300, Addresses: []string{}, Routes: []string{}})

	set(t, h, full)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	k.want("closed", state{MTU: 1500, Addresses: []string{}, Routes: []string{}})
	if err := h.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func TestSet_PutsBackWhatGotLost(t *testing.T) {
	k, h := newHost(t), New(nil)
	c := Config{Addresses: prefixes("172.16.0.1/32", "fd00::1:0/112"), Routes: prefixes("172.16.0.0/12", "fd00::/32")}
	set(t, h, c)
	want := k.state()
	if err := k.nl.LinkSetDown(k.link("mesh0")); err != nil {
		t.Fatal(err)
	}
	set(t, h, c)
	k.want("after the link was down", want)

	if err := k.nl.LinkDel(k.link("mesh0")); err != nil {
		t.Fatal(err)
	}
	k.add("mesh0")
	set(t, h, c)
	k.want("on another interface of the name", want)
}

func TestSet_LeavesTheWorkOfOthers(t *testing.T) {
	k, h := newHost(t), New(nil)
	link := k.link("mesh0")
	theirs := netip.MustParsePrefix("172.16.0.1/32")
	lan := &netlink.Route{LinkIndex: k.link("lan0").Attrs().Index, Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24")), Scope: netlink.SCOPE_LINK}
	if err := errors.Join(
		k.nl.LinkSetUp(link), k.nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(theirs)}), k.nl.RouteAdd(lan),
		k.nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("10.9.0.0/16")), Scope: netlink.SCOPE_LINK}),
	); err != nil {
		t.Fatal(err)
	}
	before := k.state()
	set(t, h, Config{
		Addresses: []netip.Prefix{theirs, netip.MustParsePrefix("172.16.0.2/32")},
		Routes:    prefixes("10.9.0.0/16", "10.8.0.0/16"),
	})
	set(t, h, Config{})
	k.want("emptied", before)
	set(t, h, Config{Addresses: []netip.Prefix{theirs}, Routes: prefixes("10.9.0.0/16")})
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	k.want("closed", before)
}

func TestSet_LeavesOutDangerousRoutes(t *testing.T) {
	k := newHost(t)
	var log bytes.Buffer
	h := New(slog.New(slog.NewTextHandler(&log, nil)))
	// Network managers give routes a metric, so ours would win.
	lanIndex := k.link("lan0").Attrs().Index
	for _, p := range prefixes("198.51.100.0/24", "fd77::/64") {
		if err := k.nl.RouteAdd(&netlink.Route{LinkIndex: lanIndex, Dst: ipNet(p), Priority: 100, Scope: netlink.SCOPE_LINK}); err != nil {
			t.Fatal(err)
		}
	}
	c := Config{Routes: prefixes("0.0.0.0/0", "::/0", "128.0.0.0/1", "192.0.2.0/24", "198.51.100.0/24", "fd77::/64", "172.16.0.0/12", "169.0.0.0/8", "64:ff9b::/96")}
	set(t, h, c)
	set(t, h, c)
	k.want("interface", state{Up: true, MTU: 1500, Addresses: []string{}, Routes: []string{"172.16.0.0/12"}})
	for _, p := range []string{"169.0.0.0/8", "64:ff9b::/96", "0.0.0.0/0", "::/0", "128.0.0.0/1", "192.0.2.0/24", "198.51.100.0/24", "fd77::/64"} {
		if n := strings.Count(log.String(), "addr="+p); n != 1 {
			t.Errorf("%s logged %d times, want once", p, n)
		}
	}
	lan, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: lanIndex}, netlink.RT_FILTER_OIF)
	if err != nil || len(lan) != 2 {
		t.Errorf("routes of the host: %v, %v", lan, err)
	}
	// When the host gives the network up, the mesh gets it.
	if err := k.nl.LinkDel(k.link("lan0")); err != nil {
		t.Fatal(err)
	}
	set(t, h, c)
	if got := k.state().Routes; !slices.Contains(got, "192.0.2.0/24") {
		t.Errorf("routes %v", got)
	}
}

// A route that was put before the tunnel ran on an address in it gives way, and
// comes back.
func TestSet_KeepsTheTunnelOutOfItself(t *testing.T) {
	k := newHost(t)
	var log bytes.Buffer
	h := New(slog.New(slog.NewTextHandler(&log, nil)))
	c := Config{Routes: prefixes("10.0.0.0/8", "198.18.77.1/32", "fd77::/64", "172.16.0.0/12")}
	set(t, h, c)
	if n := h.LeftOut(); n != 0 {
		t.Errorf("%d left out of harmless routes", n)
	}
	c.Outside = []netip.Addr{netip.MustParseAddr("198.18.77.1"), netip.MustParseAddr("10.2.3.4"), netip.MustParseAddr("fd77::9"), netip.MustParseAddr("203.0.113.1")}
	set(t, h, c)
	set(t, h, c)
	k.want("interface", state{Up: true, MTU: 1500, Addresses: []string{}, Routes: []string{"172.16.0.0/12"}})
	if n := h.LeftOut(); n != 3 || strings.Count(log.String(), "on which the tunnel itself runs") != 3 {
		t.Errorf("%d left out, want 3, each logged once:\n%s", n, &log)
	}
	c.Outside = nil
	set(t, h, c)
	k.want("without", state{Up: true, MTU: 1500, Addresses: []string{}, Routes: []string{"10.0.0.0/8", "172.16.0.0/12", "198.18.77.1/32", "fd77::/64"}})
	if n := h.LeftOut(); n != 0 {
		t.Errorf("%d left out afterwards", n)
	}
}

func TestSet_Forwarding(t *testing.T) {
	k, h := newHost(t), New(nil)
	const v4 = "ipv4/conf/mesh0/forwarding"
	v6 := "ipv6/conf/mesh0/force_forwarding"
	if _, err := os.Stat(settingsDir + v6); err != nil {
		v6 = allForwarding6
	}
	set(t, h, Config{Forward: true})
	set(t, h, Config{Forward: true})
	if k.setting(v4) != "1" || k.setting(v6) != "1" {
		t.Errorf("forwarding is %s and %s", k.setting(v4), k.setting(v6))
	}
	if got := k.setting("ipv4/conf/lan0/forwarding") + k.setting("ipv4/ip_forward"); got != "00" {
		t.Errorf("others forward too: %s", got)
	}
	set(t, h, Config{})
	if k.setting(v4) != "0" || k.setting(v6) != "0" {
		t.Errorf("after Set without: forwarding is %s and %s", k.setting(v4), k.setting(v6))
	}
	// What was on before stays on.
	if err := os.WriteFile(settingsDir+v4, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	set(t, h, Config{Forward: true})
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if k.setting(v4) != "1" || k.setting(v6) != "0" {
		t.Errorf("after Close: forwarding is %s and %s", k.setting(v4), k.setting(v6))
	}
	// An interface that is gone is no reason to fail.
	set(t, h, Config{Forward: true, Addresses: prefixes("172.16.0.1/32")})
	if err := k.nl.LinkDel(k.link("mesh0")); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close without the interface = %v", err)
	}
}

// An older kernel is one in whose settings the new switch is missing.
func TestSet_ForwardingOnKernelsWithoutASwitchPerInterface(t *testing.T) {
	k, h := newHost(t), New(nil)
	before := k.dump()
	old := t.TempDir() + "/"
	for path, value := range map[string]string{allForwarding6: "0", "ipv6/conf/lan0/accept_ra": "1", "ipv6/conf/off0/accept_ra": "0"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(old+path), 0o700), os.WriteFile(old+path, []byte(value+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	set(t, h, Config{})
	wanted := h.forwarding([]string{"lan0", "mesh0", "none"}, old)
	want := []setting{
		{path: "ipv4/conf/lan0/forwarding", value: "1"}, {path: "ipv6/conf/lan0/accept_ra", value: "2"},
		{path: allForwarding6, value: "1"}, {path: "ipv4/conf/mesh0/forwarding", value: "1"}, {path: "ipv4/conf/none/forwarding", value: "1"},
	}
	if !slices.Equal(wanted, want) {
		t.Fatalf("wanted %v, want %v", wanted, want)
	}
	if err := h.claim(&firewall{mesh: "mesh0"}, wanted); err != nil {
		t.Fatal(err)
	}
	for _, s := range wanted {
		if err := h.switchTo(s); err != nil {
			t.Fatal(err)
		}
	}
	if got := k.setting(allForwarding6) + k.setting("ipv6/conf/lan0/accept_ra"); got != "12" {
		t.Errorf("settings %s, want 12", got)
	}
	// It outlives the interface, and goes back with the next Set.
	if got := h.done.outliving(); len(got) != 3 {
		t.Errorf("settings that outlive the interface: %v", got)
	}
	// They stay wanted while they are ours, and are not while somebody else's.
	if err := os.WriteFile(old+allForwarding6, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := h.forwarding([]string{"mesh0"}, old); len(got) != 3 {
		t.Errorf("wanted again: %v", got)
	}
	if got := New(nil).forwarding([]string{"mesh0"}, old); len(got) != 2 {
		t.Errorf("wanted where the host is a router: %v", got)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, k.dump()); diff != "" {
		t.Errorf("not restored (-want +got):\n%s", diff)
	}
}

func TestSet_MovesToAnotherInterface(t *testing.T) {
	k, h := newHost(t), New(nil)
	c := Config{MTU: 1420, Addresses: prefixes("172.16.0.1/32"), Routes: prefixes("172.16.0.0/12"), Forward: true}
	set(t, h, c)
	k.add("mesh1")
	c.Interface = "mesh1"
	if err := h.Set(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	k.want("the old interface", state{MTU: 1500, Addresses: []string{}, Routes: []string{}})
	if k.setting("ipv4/conf/mesh0/forwarding") != "0" || k.setting("ipv4/conf/mesh1/forwarding") != "1" {
		t.Error("forwarding did not move")
	}
}

func TestSet_Refuses(t *testing.T) {
	newHost(t)
	h := New(nil)
	for name, c := range map[string]Config{
		"no interface":    {},
		"mtu":             {Interface: "mesh0", MTU: -1},
		"invalid address": {Interface: "mesh0", Addresses: []netip.Prefix{{}}},
		"mapped address":  {Interface: "mesh0", Addresses: prefixes("::ffff:10.0.0.1/128")},
		"invalid route":   {Interface: "mesh0", Routes: []netip.Prefix{{}}},
		"unmasked route":  {Interface: "mesh0", Routes: prefixes("10.0.0.1/8")},

		"invalid served":      {Interface: "mesh0", Forward: true, Serve: []netip.Prefix{{}}},
		"unmasked served":     {Interface: "mesh0", Forward: true, Serve: prefixes("10.0.0.1/8")},
		"unmasked masquerade": {Interface: "mesh0", Forward: true, Masquerade: prefixes("10.0.0.1/8")},
		"served, no forward":  {Interface: "mesh0", Serve: prefixes("10.0.0.0/8")},
	} {
		if err := h.Set(context.Background(), c); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%s: Set = %v, want ErrInvalid", name, err)
		}
	}
	if err := h.Set(context.Background(), Config{Interface: "nothing0"}); err == nil {
		t.Error("Set on an interface that is not there succeeded")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Set(ctx, Config{Interface: "mesh0"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Set = %v, want Canceled", err)
	}
}

// Whoever takes addresses, routes or the interface itself away is noticed, and
// Set puts back what can be.
func TestChanges_TellOfWhatOthersTakeAway(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := New(nil)
	c := Config{Interface: "mesh0", Addresses: prefixes("10.99.0.1/32", "fd99::1/128"), Routes: prefixes("10.99.0.0/16", "fd99::/32")}
	changes, err := n.Changes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Set(ctx, c); err != nil {
		t.Fatal(err)
	}
	want := h.state()
	mesh0 := h.link("mesh0")
	for name, take := range map[string]func() error{
		"route":   func() error { return h.nl.RouteDel(route(mesh0, prefixes("10.99.0.0/16")[0])) },
		"address": func() error { return h.nl.AddrDel(mesh0, &netlink.Addr{IPNet: ipNet(prefixes("10.99.0.1/32")[0])}) },
		"link":    func() error { return errors.Join(h.nl.LinkSetDown(mesh0), h.nl.LinkSetUp(mesh0)) },
	} {
		if err := take(); err != nil {
			t.Fatalf("take the %s: %v", name, err)
		}
		for !cmp.Equal(h.state(), want) {
			select {
			case <-changes:
			case <-time.After(time.Minute):
				t.Fatalf("%s: nothing is told, and the state is %v, want %v", name, h.state(), want)
			}
			if err := n.Set(ctx, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := h.nl.LinkDel(mesh0); err != nil {
		t.Fatal(err)
	}
	for err = nil; !errors.Is(err, ErrGone); err = n.Set(ctx, c) {
		select {
		case <-changes:
		case <-time.After(time.Minute):
			t.Fatalf("nobody tells that the interface is gone: %v", err)
		}
	}
	cancel()
	for range changes { // until it is closed
	}
}
