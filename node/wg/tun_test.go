// SPDX-License-Identifier: Apache-2.0

//go:build linux

package wg_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// inNamespace moves the test into an empty network of its own. The thread is
// never given back, so the namespace ends with it and the sockets in it.
func inNamespace(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("needs root for a network namespace")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatalf("unshare network: %v", err)
	}
	ip(tb, "link set lo up")
}

// ip runs the tool of that name.
func ip(tb testing.TB, args string) {
	tb.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		tb.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// tunHub makes a hub on a TUN interface with two netstack leaves, all in a
// namespace of their own.
func tunHub(tb testing.TB, reg prometheus.Registerer, allow func(mesh.Packet) bool) (hub, a, b *wgtest.Node) {
	tb.Helper()
	inNamespace(tb)
	hub = wgtest.New(tb, 1, wg.Options{Mode: wg.ModeTUN, InterfaceName: "wgtest0", Registerer: reg})
	a, b = wgtest.New(tb, 2, wg.Options{}), wgtest.New(tb, 3, wg.Options{})
	ip(tb, "link set wgtest0 up")
	ip(tb, "addr add "+hub.IPv4.String()+"/32 dev wgtest0")
	ip(tb, "addr add "+hub.IPv6.String()+"/128 dev wgtest0 nodad")
	ip(tb, "route add 10.99.0.0/16 dev wgtest0")
	ip(tb, "route add fd99::/32 dev wgtest0")
	for _, setting := range []string{"ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"} {
		// The kernel shows the settings of the asking thread's namespace.
		if err := os.WriteFile("/proc/sys/net/"+setting, []byte("1"), 0); err != nil {
			tb.Fatal(err)
		}
	}
	hub.Config.Allow = allow
	hub.SetPeers(a.Peer(), b.Peer())
	all := []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd99::/32")}
	a.SetPeers(hub.Peer(all...))
	b.SetPeers(hub.Peer(all...))
	return hub, a, b
}

func TestTUN_ConnectsTheHost(t *testing.T) {
	hub, a, _ := tunHub(t, nil, nil)
	s, err := hub.Stats()
	if err != nil || s.Type != "tun" || s.Name != "wgtest0" || hub.Name() != "wgtest0" {
		t.Fatalf("Stats = %+v, %v", s, err)
	}
	for i, addr := range []netip.Addr{a.IPv4, a.IPv6} {
		client, server := connect(t, hub, a, addr)
		transfer(t, client, server, 2<<20)
		transfer(t, server, client, 2<<20)
		client, server = connect(t, a, hub, []netip.Addr{hub.IPv4, hub.IPv6}[i])
		transfer(t, client, server, 1<<20)
		client, server = connect(t, hub, hub, []netip.Addr{hub.IPv4, hub.IPv6}[i])
		transfer(t, client, server, 1<<20)
	}
	p, err := hub.ListenPacket(timeout(t), "udp", netip.AddrPortFrom(hub.IPv4, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c, err := a.DialContext(timeout(t), "udp", p.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("datagram")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := p.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "datagram" {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	back, err := hub.DialContext(timeout(t), "udp", from.String())
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if got := netip.MustParseAddrPort(back.LocalAddr().String()).Addr(); got != hub.IPv4 {
		t.Errorf("source address %v, want our own", got)
	}
}

func TestTUN_SameErrorsAsNetstack(t *testing.T) {
	hub, a, _ := tunHub(t, nil, nil)
	if _, err := hub.DialContext(timeout(t), "tcp", "192.0.2.1:80"); !errors.Is(err, wg.ErrNoRoute) {
		t.Errorf("dial = %v, want ErrNoRoute", err)
	}
	if _, err := hub.DialContext(timeout(t), "tcp", netip.AddrPortFrom(a.IPv4, 9).String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial = %v, want ECONNREFUSED", err)
	}
	for _, addr := range []string{":80", "127.0.0.1:80"} {
		if _, err := hub.Listen(timeout(t), "tcp", addr); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("Listen(%s) = %v, want ErrInvalid", addr, err)
		}
	}
}

func TestTUN_HubForwardsWhatIsAllowed(t *testing.T) {
	var open atomic.Bool
	reg := prometheus.NewRegistry()
	open.Store(true)
	hub, a, b := tunHub(t, reg, func(mesh.Packet) bool { return open.Load() })
	for _, addr := range []netip.Addr{b.IPv4, b.IPv6} {
		client, server := connect(t, a, b, addr)
		transfer(t, client, server, 2<<20)
	}
	client, server := connect(t, a, b, b.IPv4)
	transfer(t, server, client, 1)
	if metric(t, reg, "meshgate_wg_forwarded_packets_total", "") == 0 {
		t.Error("no forwarded packets counted")
	}
	open.Store(false)
	if _, err := client.Write([]byte("denied")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a denied packet", func() bool {
		return metric(t, reg, "meshgate_wg_dropped_packets_total", "denied") > 0
	})
	ping(t, a, hub) // what is for the hub itself still gets there
}

func TestTUN_DownAndUpAgain(t *testing.T) {
	hub, a, _ := tunHub(t, nil, nil)
	ping(t, a, hub)
	port := hub.ListenPort()
	hub.Apply()
	if hub.ListenPort() != port {
		t.Errorf("port moved from %d to %d", port, hub.ListenPort())
	}
	if err := hub.Close(); err != nil {
		t.Fatal(err)
	}
	again := wgtest.New(t, 1, wg.Options{Mode: wg.ModeTUN, InterfaceName: "wgtest0"})
	if again.Name() != "wgtest0" {
		t.Errorf("name %q: the first interface is still there", again.Name())
	}
}

func TestTUN_NameTaken(t *testing.T) {
	inNamespace(t)
	ip(t, "tuntap add dev wgtest0 mode tap")
	if _, err := wg.New(wg.Options{Mode: wg.ModeTUN, InterfaceName: "wgtest0", Registerer: prometheus.NewRegistry()}); err == nil {
		t.Error("New with the name of another interface succeeded")
	}
}

func BenchmarkStream_TUN(b *testing.B) {
	hub, a, _ := tunHub(b, nil, nil)
	client, server := connect(b, hub, a, a.IPv4)
	benchmarkStream(b, client, server)
}

func BenchmarkStream_ThroughTUNHub(b *testing.B) {
	_, x, y := tunHub(b, nil, func(mesh.Packet) bool { return true })
	client, server := connect(b, x, y, y.IPv4)
	benchmarkStream(b, client, server)
}

// Where the link has less room than the packets need, by IPv4 and by IPv6, they
// travel in fragments.
func TestUnderlay_SmallerThanThePackets(t *testing.T) {
	for _, mtu := range []int{1280, 1400} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(fmt.Sprintf("%d over %s", mtu, host), func(t *testing.T) {
				inNamespace(t)
				ip(t, fmt.Sprintf("link set lo mtu %d", mtu))
				hub := wgtest.New(t, 1, wg.Options{Mode: wg.ModeTUN, InterfaceName: "wgtest0"})
				a := wgtest.New(t, 2, wg.Options{})
				ip(t, "link set wgtest0 up")
				ip(t, "addr add "+hub.IPv4.String()+"/32 dev wgtest0")
				ip(t, "route add 10.99.0.0/16 dev wgtest0")
				at := a.Peer()
				at.Endpoint = net.JoinHostPort(host, strconv.Itoa(int(a.ListenPort())))
				hub.SetPeers(at)
				a.SetPeers(hub.Peer())
				client, server := connect(t, hub, a, a.IPv4)
				transfer(t, client, server, 4<<20)
				transfer(t, server, client, 4<<20)
			})
		}
	}
}
