// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	xdplink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// cable adds an interface with an address, whose cable leads nowhere.
func cable(tb testing.TB, name string, addrs ...string) {
	tb.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(tb, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "-end"}))
	must(tb, netlink.LinkSetUp(linkOf(tb, name+"-end")))
	dress(tb, name, addrs...)
}

// TestFollow_TakesWhatComes: a server may be there before its interfaces are, and
// they may go and come again, under other names.
func TestFollow_TakesWhatComes(t *testing.T) {
	newNamespace(t)
	var log journal
	e, err := Open(Config{Mode: Auto, Listeners: listeners(), Relays: []netip.Addr{farServer4}, Logger: log.logger()})
	must(t, err)
	defer e.Close()
	ports := func() (n int) {
		var index, known uint32
		for i := e.programs.Maps["ports"].Iterate(); i.Next(&index, &known); n++ {
		}
		return n
	}
	for _, step := range []struct {
		name   string
		change func()
		want   string
		log    string
	}{
		{"nothing", func() {}, "[]", ""},
		{"the interface of a listener", func() { cable(t, "near", "192.0.2.1/24") }, "[near (generic)]", "another interface"},
		{"nothing new", func() {}, "[near (generic)]", ""},
		{"one that nobody means", func() { cable(t, "other", "203.0.113.1/24") }, "[near (generic)]", ""},
		{"the interface of relays", func() { cable(t, "far", "198.51.100.1/24") }, "[near (generic) far (generic)]", "far (generic)"},
		{"it has no address any more", func() {
			addrs, err := netlink.AddrList(linkOf(t, "far"), netlink.FAMILY_V4)
			must(t, err)
			must(t, netlink.AddrDel(linkOf(t, "far"), &addrs[0]))
		}, "[near (generic) far (generic)]", ""},
		{"it is gone", func() { must(t, netlink.LinkDel(linkOf(t, "far"))) }, "[near (generic)]", "is gone"},
		{"another name", func() {
			must(t, netlink.LinkSetDown(linkOf(t, "near")))
			must(t, netlink.LinkSetName(linkOf(t, "near"), "close"))
			must(t, netlink.LinkSetName(linkOf(t, "near-end"), "close-end"))
			dress(t, "close")
		}, "[close (generic)]", ""},
		{"another one with its name", func() { cable(t, "near", "198.51.100.1/24") }, "[close (generic) near (generic)]", "near (generic)"},
	} {
		log.Reset()
		step.change()
		must(t, e.Follow())
		if got := fmt.Sprint(e.Interfaces()); got != step.want || ports() != len(e.Interfaces()) {
			t.Errorf("%s: %s and %d ports, want %s", step.name, got, ports(), step.want)
		}
		if s := e.Stats(); (s.Idle == Nowhere) != (step.want == "[]") {
			t.Errorf("%s: idle for %v", step.name, s.Idle)
		}
		if lines := strings.Count(log.String(), "\n"); !strings.Contains(log.String(), step.log) || lines > 1 || step.log == "" && lines > 0 {
			t.Errorf("%s: the log has no %q, or more:\n%s", step.name, step.log, &log)
		}
	}
	must(t, e.Close())
	must(t, e.Follow())
	if attached(t, "near") || attached(t, "close") {
		t.Error("Close left something")
	}
}

// TestFollow_TriesAgainWhatHasChanged: an interface that cannot is told of once.
func TestFollow_TriesAgainWhatHasChanged(t *testing.T) {
	newHost(t)
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, actionPass), asm.Return()},
	})
	must(t, err)
	defer other.Close()
	busy, err := xdplink.AttachXDP(xdplink.XDPOptions{Program: other, Interface: linkOf(t, "far").Attrs().Index, Flags: xdplink.XDPGenericMode})
	must(t, err)
	var log journal
	e, err := Open(Config{Mode: Auto, Listeners: listeners(), Interfaces: []string{"near", "far", "later"}, Logger: log.logger()})
	must(t, err)
	defer e.Close()
	log.contains(t, "later", "near (generic)", "busy")
	log.Reset()
	must(t, e.Follow())
	must(t, netlink.LinkSetMTU(linkOf(t, "far"), 1400))
	must(t, e.Follow())
	must(t, e.Follow())
	if n := strings.Count(log.String(), "busy"); n != 1 {
		t.Errorf("the log tells %d times of what is busy:\n%s", n, &log)
	}
	must(t, busy.Close())
	must(t, netlink.LinkSetMTU(linkOf(t, "far"), 1500))
	cable(t, "later")
	must(t, e.Follow())
	if got := fmt.Sprint(e.Interfaces()); got != "[near (generic) far (generic) later (generic)]" {
		t.Error(got)
	}
}

// TestFollow_KnowsTheHostsAddress: a listener at all addresses is served while the
// host has one, at that.
func TestFollow_KnowsTheHostsAddress(t *testing.T) {
	newNamespace(t)
	e, err := Open(Config{Mode: Auto, Listeners: map[uint16]netip.AddrPort{0: netip.MustParseAddrPort("0.0.0.0:3478")}})
	must(t, err)
	defer e.Close()
	until := time.Now().Add(time.Hour)
	changed := func(want ...string) {
		t.Helper()
		must(t, e.Follow())
		e.Changed(flowOf(client4), slices.Values([]core.Binding{{
			Channel: 0x4000, Relayed: netip.MustParseAddrPort("0.0.0.0:50000"), Peer: peer4, ToPeer: until, FromPeer: until,
		}}))
		var got []string
		for _, b := range e.table.bindings() {
			got = append(got, b.back.relay().Addr().String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("relays at %v, want %v", got, want)
		}
	}
	changed()
	cable(t, "near", "192.0.2.1/24")
	changed("192.0.2.1")
	cable(t, "far", "198.51.100.1/24")
	changed()
	must(t, netlink.LinkDel(linkOf(t, "near")))
	changed("198.51.100.1")
	addr, err := netlink.ParseAddr("198.51.100.7/24")
	must(t, err)
	old, err := netlink.AddrList(linkOf(t, "far"), unix.AF_INET)
	must(t, err)
	must(t, netlink.AddrDel(linkOf(t, "far"), &old[0]))
	must(t, netlink.AddrAdd(linkOf(t, "far"), addr))
	changed("198.51.100.7")
}

// bindings are all that a table holds.
func (t *table) bindings() (all []*binding) {
	for _, f := range t.flows {
		for _, b := range f.bindings {
			all = append(all, b)
		}
	}
	return all
}
