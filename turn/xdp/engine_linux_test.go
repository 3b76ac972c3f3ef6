// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	xdplink "github.com/cilium/ebpf/link"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// holder is the argument that makes the test's binary a server that does nothing
// but hold a kernel path at near.
const holder = "hold-a-kernel-path"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == holder {
		e, err := Open(Config{Mode: Generic, Listeners: listeners()})
		fmt.Println(e.Interfaces(), err)
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	goleak.VerifyTestMain(m)
}

func listeners() map[uint16]netip.AddrPort {
	return map[uint16]netip.AddrPort{0: server4, 1: server6}
}

// farServer4 is the host's address in the far network.
var farServer4 = netip.MustParseAddr("198.51.100.1")

// attached reports whether an interface has a program.
func attached(tb testing.TB, name string) bool {
	x := linkOf(tb, name).Attrs().Xdp
	return x != nil && x.Attached
}

// pass attaches a program of somebody else's.
func pass(tb testing.TB, name string, flags xdplink.XDPAttachFlags) {
	tb.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, actionPass), asm.Return()},
	})
	must(tb, err)
	l, err := xdplink.AttachXDP(xdplink.XDPOptions{Program: program, Interface: linkOf(tb, name).Attrs().Index, Flags: flags})
	must(tb, err)
	tb.Cleanup(func() { l.Close(); program.Close() })
}

// askers are the interfaces in whose name routes are looked up.
func askers(tb testing.TB) []string {
	tb.Helper()
	all, err := net.Interfaces()
	must(tb, err)
	var found []string
	for _, i := range all {
		if strings.HasPrefix(i.Name, "meshgatexdp") {
			found = append(found, i.Name)
		}
	}
	return found
}

func TestOpen_SaysWhatIsWrong(t *testing.T) {
	newHost(t)
	nowhere := map[uint16]netip.AddrPort{0: netip.MustParseAddrPort("203.0.113.1:3478")}
	pass(t, "far", xdplink.XDPGenericMode)
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Mode: "fast", Listeners: listeners()}, "Mode"},
		{Config{Listeners: listeners()}, "Mode"},
		{Config{Mode: Auto}, "Listeners"},
		{Config{Mode: Auto, Listeners: map[uint16]netip.AddrPort{3: netip.MustParseAddrPort("192.0.2.1:0")}}, "Listeners[3]"},
		{Config{Mode: Auto, Listeners: map[uint16]netip.AddrPort{3: {}}}, "Listeners[3]"},
		{Config{Mode: Generic, Listeners: nowhere}, "no interface has an address"},
		{Config{Mode: Generic, Listeners: listeners(), Interfaces: []string{"near", "eth7"}}, "eth7"},
		{Config{Mode: Native, Listeners: listeners(), Interfaces: []string{"lo"}}, "lo"},
		{Config{Mode: Generic, Listeners: listeners(), Interfaces: []string{"near", "far"}}, "at far"},
		{Config{Mode: Generic, Listeners: map[uint16]netip.AddrPort{0: netip.MustParseAddrPort("198.51.100.1:3478")}}, "at far"},
	} {
		e, err := Open(c.cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
		must(t, e.Close())
		if attached(t, "near") || len(askers(t)) > 0 {
			t.Fatalf("%+v: a failed Open left something", c.cfg)
		}
	}
}

// TestOpen_FallsBack: of what Auto cannot have it tells the log alone.
func TestOpen_FallsBack(t *testing.T) {
	newHost(t)
	pass(t, "far", xdplink.XDPGenericMode)
	at := func(addr string) map[uint16]netip.AddrPort {
		return map[uint16]netip.AddrPort{0: netip.MustParseAddrPort(addr)}
	}
	for _, c := range []struct {
		name string
		cfg  Config
		want string // interfaces
		log  []string
	}{
		{"off", Config{Mode: Off}, "[]", nil},
		{"a veth pair", Config{Listeners: listeners()}, "[near (generic)]", []string{"in the kernel", "near (generic)"}},
		{"a veth pair, native", Config{Mode: Native, Listeners: listeners()}, "[near (native)]", []string{"near (native)", "level=WARN", "veth", "interfaces=[near]"}},
		{"any address", Config{Listeners: at("0.0.0.0:3478"), Relays: []netip.Addr{server4.Addr()}}, "[near (generic)]", nil},
		{"lo", Config{Listeners: at("127.0.0.1:3478")}, "[]", []string{"in user space", "lo"}},
		{"who has a program", Config{Listeners: at("198.51.100.1:3478")}, "[]", []string{"in user space", "far", "busy"}},
		{"one of two", Config{Listeners: listeners(), Interfaces: []string{"near", "far"}}, "[near (generic)]", []string{"in the kernel", "far", "busy"}},
		{"lo beside others", Config{Mode: Generic, Listeners: map[uint16]netip.AddrPort{
			0: netip.MustParseAddrPort("127.0.0.1:3478"), 1: server4, 2: netip.MustParseAddrPort("0.0.0.0:3478"),
		}}, "[near (generic)]", nil},
		{"one of two, generic", Config{Mode: Generic, Listeners: listeners(), Relays: []netip.Addr{farServer4}}, "[near (generic)]", []string{"in the kernel", "far", "busy"}},
		{"nobody", Config{Listeners: at("203.0.113.1:3478")}, "[]", []string{"in user space", "203.0.113.1"}},
	} {
		var log journal
		c.cfg.Logger = log.logger()
		if c.cfg.Mode == "" {
			c.cfg.Mode = Auto
		}
		e, err := Open(c.cfg)
		if got := fmt.Sprint(e.Interfaces()); err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.name, got, err, c.want)
		}
		idle := Serving
		if c.want == "[]" {
			idle = map[Mode]Reason{Off: Unwanted, Auto: Nowhere}[c.cfg.Mode]
		}
		if s := e.Stats(); s.Idle != idle || e.Serves() != (idle != Unwanted) {
			t.Errorf("%s: idle for %v, serves %t", c.name, s.Idle, e.Serves())
		}
		log.contains(t, c.log...)
		warned := strings.Count(log.String(), "level=WARN")
		if want := c.cfg.Mode == Native; (warned == 1) != want || warned > 1 {
			t.Errorf("%s: %d warnings", c.name, warned)
		}
		if lines := strings.Count(log.String(), "\n") - warned; lines > 1 {
			t.Errorf("%s: %d lines in the log:\n%s", c.name, lines, &log)
		}
		must(t, e.Close())
	}
	if e, err := Open(Config{Mode: Generic, Listeners: at("127.0.0.1:3478")}); err != nil || fmt.Sprint(e.Interfaces()) != "[lo (generic)]" {
		t.Errorf("lo: %v, %v", e.Interfaces(), err)
	} else {
		must(t, e.Close())
	}
}

// TestOpen_WithoutTheRight: most servers may not load programs, and none needs to.
func TestOpen_WithoutTheRight(t *testing.T) {
	newHost(t)
	// Enough is what the package says.
	restrict(t, unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON)
	e, err := Open(Config{Mode: Auto, Listeners: listeners()})
	if err != nil || len(e.Interfaces()) != 1 {
		t.Errorf("%v, %v", e.Interfaces(), err)
	}
	must(t, e.Close())
	restrict(t, unix.CAP_NET_ADMIN, unix.CAP_BPF)
	if _, err := Open(Config{Mode: Generic, Listeners: listeners()}); err == nil || !strings.Contains(err.Error(), "lacks CAP_PERFMON:") {
		t.Errorf("without CAP_PERFMON: %v", err)
	}
	restrict(t, unix.CAP_NET_ADMIN)
	var log journal
	if e, err = Open(Config{Mode: Auto, Listeners: listeners(), Logger: log.logger()}); e.Serves() || e.Stats().Idle != Forbidden || err != nil {
		t.Errorf("%+v, %v", e.Stats(), err)
	}
	if err := e.Follow(); err != nil || len(e.Interfaces()) > 0 {
		t.Errorf("%v, %v", e.Interfaces(), err)
	}
	must(t, e.Close())
	log.contains(t, "level=INFO", "in user space", "not permitted", "lacks CAP_BPF, CAP_PERFMON")
	if _, err := Open(Config{Mode: Generic, Listeners: listeners()}); err == nil || !strings.Contains(err.Error(), "not permitted") {
		t.Errorf("generic: %v", err)
	}
}

// restrict leaves the thread, which ends with the test, no capabilities but these.
func restrict(tb testing.TB, capabilities ...int) {
	tb.Helper()
	var sets [2]unix.CapUserData
	for _, c := range capabilities {
		set := &sets[c/32]
		set.Effective |= 1 << (c % 32)
		set.Permitted |= 1 << (c % 32)
	}
	must(tb, unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]))
}

// TestOpen_AsksInItsOwnName: the kernel tells interfaces that do not forward no
// routes, and those of the host need not.
func TestOpen_AsksInItsOwnName(t *testing.T) {
	newHost(t)
	near := candidate{Interface: net.Interface{Name: "near"}}
	for _, value := range []string{"0", "1", "0"} {
		for _, family := range []string{"ipv4", "ipv6"} {
			must(t, os.WriteFile("/proc/sys/net/"+family+"/conf/near/forwarding", []byte(value), 0))
		}
		if near.forwards() != (value == "1") {
			t.Errorf("forwarding %s: %v", value, near.forwards())
		}
	}
	e, err := Open(Config{Mode: Generic, Listeners: listeners()})
	must(t, err)
	if found := askers(t); len(found) != 1 || !(candidate{Interface: net.Interface{Name: found[0]}}).forwards() || near.forwards() {
		t.Errorf("%v", found)
	}
	must(t, e.Close())
}

func TestClose_LeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.bind(client4, peer4)
	if action, _ := w.run(nativeProgram, received(client4, server4, frame(0x4000, random(10))).marshal()); action != actionTX {
		t.Fatal(describe(action))
	}
	if !attached(t, "near") || !attached(t, "far") || len(askers(t)) != 1 {
		t.Fatal("not open")
	}
	for range 2 {
		must(t, w.engine.Close())
	}
	if attached(t, "near") || attached(t, "far") || len(askers(t)) > 0 || len(w.engine.Interfaces()) > 0 {
		t.Error("Close left something")
	}
	// Late calls of a server do nothing.
	w.engine.Changed(flowOf(client4), w.core.Bindings(w.now, flowOf(client4)))
	if u := w.engine.Counters(flowOf(client4)); u != (core.Usage{}) {
		t.Errorf("%+v", u)
	}
	if s := w.engine.Stats(); s.Packets[Sent] != 1 || s.Bindings != 0 {
		t.Errorf("%+v", s)
	}
}

// TestKill_LeavesNothing: nothing is pinned, and nobody has to clean up.
func TestKill_LeavesNothing(t *testing.T) {
	newHost(t)
	cmd := exec.Command("/proc/self/exe", holder)
	in, err := cmd.StdinPipe()
	must(t, err)
	defer in.Close()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start()) // in the network of this thread
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "[near (generic)] <nil>\n" || !attached(t, "near") || len(askers(t)) != 1 {
		t.Errorf("%q, %v", line, err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it says that it was killed
	for end := time.Now().Add(late); attached(t, "near") || len(askers(t)) > 0; {
		if time.Now().After(end) {
			t.Fatal("a program is still there")
		}
	}
}

// TestEngine_ServesBehindNAT: peers see a relay at another address than its own,
// and what leads back to this host stays in user space.
func TestEngine_ServesBehindNAT(t *testing.T) {
	w := newWorld(t)
	public := netip.MustParseAddr("203.0.113.7")
	w.engine.cfg.Local = func(relayed netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(server4.Addr(), relayed.Port())
	}
	w.engine.cfg.Inside = func(peer netip.AddrPort) netip.AddrPort {
		if peer.Addr() == public {
			return netip.AddrPortFrom(server4.Addr(), peer.Port())
		}
		return peer
	}
	seen := netip.AddrPortFrom(public, 50001)
	until := time.Now().Add(time.Hour)
	w.engine.Changed(flowOf(client4), slices.Values([]core.Binding{
		{Channel: 0x4000, Relayed: seen, Peer: peer4, ToPeer: until, FromPeer: until},
		{Channel: 0x4001, Relayed: seen, Peer: netip.AddrPortFrom(public, 50002), ToPeer: until, FromPeer: until},
	}))
	if s := w.engine.Stats(); s.Bindings != 1 {
		t.Errorf("%+v", s)
	}
	here := netip.AddrPortFrom(server4.Addr(), seen.Port())
	came := received(client4, server4, frame(0x4000, random(10)))
	action, out := w.run(nativeProgram, came.marshal())
	if err := w.compare(action, out, leaving(came, here, peer4, came.data[4:])); err != nil {
		t.Error(err)
	}
	back := received(peer4, here, random(10))
	action, out = w.run(nativeProgram, back.marshal())
	if err := w.compare(action, out, leaving(back, server4, client4, frame(0x4000, back.data))); err != nil {
		t.Error(err)
	}
}

// TestEngine_ServesOnlyWhatItCan: the rest stays in user space, and is no error.
func TestEngine_ServesOnlyWhatItCan(t *testing.T) {
	w := newWorld(t)
	until := time.Now().Add(time.Hour)
	relay4, relay6 := netip.AddrPortFrom(server4.Addr(), 50001), netip.AddrPortFrom(server6.Addr(), 50001)
	good := core.Binding{Channel: 0x4000, Relayed: relay4, Peer: peer4, ToPeer: until, FromPeer: until}
	with := func(change func(b *core.Binding)) core.Binding { b := good; change(&b); return b }
	for _, c := range []struct {
		name string
		flow core.Flow
		b    core.Binding
		want int
	}{
		{"nothing special", flowOf(client4), good, 1},
		{"a stream", core.Flow{Client: client4, Conn: 7}, good, 0},
		{"another listener", core.Flow{Client: client4, Listener: 9}, good, 0},
		{"a listener of the other family", core.Flow{Client: client4, Listener: 1}, good, 0},
		{"a link-local client", core.Flow{Client: netip.MustParseAddrPort("[fe80::1%near]:1"), Listener: 1}, good, 0},
		{"a link-local peer", flowOf(client4), with(func(b *core.Binding) { b.Relayed, b.Peer = relay6, netip.MustParseAddrPort("[fe80::1]:1") }), 0},
		{"a relay of the other family", flowOf(client4), with(func(b *core.Binding) { b.Relayed = relay6 }), 0},
		{"a relay at any address", flowOf(client4), with(func(b *core.Binding) { b.Relayed = netip.MustParseAddrPort("0.0.0.0:50001") }), 0},
	} {
		w.engine.Changed(c.flow, slices.Values([]core.Binding{c.b}))
		if s := w.engine.Stats(); s.Bindings != c.want {
			t.Errorf("%s: %d bindings, want %d", c.name, s.Bindings, c.want)
		}
		w.engine.Changed(c.flow, slices.Values([]core.Binding(nil)))
	}
	if len(w.engine.table.flows) > 0 {
		t.Errorf("%d flows are left", len(w.engine.table.flows))
	}
}

// TestConfig_KeepsDefiniteListeners: one at all addresses is for those that come
// later, if those that are there have their own.
func TestConfig_KeepsDefiniteListeners(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, c := range []struct{ given, want map[uint16]netip.AddrPort }{
		{listeners(), listeners()},
		{map[uint16]netip.AddrPort{0: at("0.0.0.0:1"), 1: at("[::]:1")}, map[uint16]netip.AddrPort{0: at("0.0.0.0:1"), 1: at("[::]:1")}},
		{map[uint16]netip.AddrPort{0: at("0.0.0.0:1"), 1: at("[::]:1"), 2: at("192.0.2.1:1"), 3: at("192.0.2.1:2")},
			map[uint16]netip.AddrPort{1: at("[::]:1"), 2: at("192.0.2.1:1"), 3: at("192.0.2.1:2")}},
	} {
		if got := (Config{Listeners: c.given}).withDefaults().Listeners; !maps.Equal(got, c.want) {
			t.Errorf("%v of %v, want %v", got, c.given, c.want)
		}
	}
}

// TestEngine_OfNobody: a server without a kernel path has a nil Engine.
func TestEngine_OfNobody(t *testing.T) {
	var e *Engine
	e.Changed(flowOf(client4), nil)
	if e.Counters(flowOf(client4)) != (core.Usage{}) || e.Stats().Idle != Unwanted || e.Interfaces() != nil || e.Serves() || e.Follow() != nil || e.Close() != nil {
		t.Error("it did something")
	}
}

func TestModesAndOutcomes_HaveNames(t *testing.T) {
	for _, name := range []string{"off", "auto", "generic", "native"} {
		if m, err := ParseMode(name); err != nil || string(m) != name {
			t.Errorf("%q: %q, %v", name, m, err)
		}
	}
	if _, err := ParseMode("on"); err == nil {
		t.Error("on is a mode")
	}
	seen := map[string]bool{}
	for o := range NumOutcomes {
		seen[o.String()] = true
	}
	for r := range NumReasons {
		seen[r.String()] = true
	}
	if len(seen) != int(NumOutcomes)+int(NumReasons) || seen[""] || NumOutcomes.String() != "outcome 10" || NumReasons.String() != "reason 6" {
		t.Errorf("%v", seen)
	}
}

// TestRehearse_FindsWhatIsWrong: a program that does something else is not used, and
// the test leaves nothing.
func TestRehearse_FindsWhatIsWrong(t *testing.T) {
	w := newWorld(t)
	for action, want := range map[int32]string{actionPass: "returned 2, want 3", actionTX: "made"} {
		wrong, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.XDP, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, action), asm.Return()},
		})
		must(t, err)
		defer wrong.Close()
		programs := &ebpf.Collection{Programs: map[string]*ebpf.Program{nativeProgram: wrong}, Maps: w.engine.programs.Maps}
		if err := rehearse(programs); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), nativeProgram) {
			t.Errorf("a program that returns %d: %v", action, err)
		}
	}
	must(t, rehearse(w.engine.programs))
	if s := w.engine.Stats(); s.Packets != [NumOutcomes]uint64{} || len(w.keys()) > 0 {
		t.Errorf("the test has left %+v and % x", s, w.keys())
	}
}
