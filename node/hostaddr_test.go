// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
)

// interfaces lists addresses as net.InterfaceAddrs does.
func interfaces(list ...string) func() ([]net.Addr, error) {
	return func() ([]net.Addr, error) {
		var out []net.Addr
		for _, text := range list {
			ip, network, err := net.ParseCIDR(text)
			if err != nil {
				return nil, err
			}
			out = append(out, &net.IPNet{IP: ip, Mask: network.Mask})
		}
		return out, nil
	}
}

// router is the gateway of a world in which it routes the networks that it is
// in itself, and more than it should.
func router(t *testing.T, expose string) *Node {
	t.Helper()
	s := world(t)
	r := mesh.Route{Name: "gate-auto", Node: "gate"}
	for _, p := range []string{
		"192.0.2.0/24", "10.0.0.0/8", "203.0.113.0/24", "198.51.100.4/31", "2001:db8:1::/64", "2001:db8:2::/48",
		"64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "::ffff:0:0:0/96",
	} {
		r.Destinations = append(r.Destinations, netip.MustParsePrefix(p))
	}
	s.Routes = append(s.Routes, r)
	n := self(t, s, "gate", true)
	n.cfg.PrimaryEndpoint = "203.0.113.9"
	n.cfg.InterfaceAddrs = interfaces("127.0.0.1/8", "192.0.2.2/24", "10.0.0.5/30", "192.168.7.3/24",
		"::1/128", "2001:db8:1::2/64", "2001:db8:2:5::7/64", "fe80::1/64")
	n.cfg.Expose[0].Target = expose
	return n
}

func TestDestination_RouteOverTheHostItself(t *testing.T) {
	for _, tc := range []struct {
		name   string
		target mesh.NodeID
		tun    bool
		host   string
		port   uint16
		want   string // address, or a part of the error
	}{
		{"another machine", "gate", false, "192.0.2.9", 18443, "192.0.2.9:18443"},
		{"another machine in IPv6", "gate", false, "2001:db8:1::9", 22, "[2001:db8:1::9]:22"},
		{"an exposed port of the host", "gate", false, "192.0.2.2", 80, "192.0.2.2:80"},
		{"another port of the host", "gate", false, "192.0.2.2", 18443, "does not expose tcp port 18443"},
		{"of its second address", "gate", false, "10.0.0.5", 22, "does not expose"},
		{"of its IPv6 address", "gate", false, "2001:db8:1::2", 22, "does not expose"},
		{"of its public address", "gate", false, "203.0.113.9", 22, "does not expose"},
		{"the host's address mapped", "gate", false, "::ffff:192.0.2.2", 22, "stands for an IPv4 address"},
		{"an exposed port of it mapped", "gate", false, "::ffff:192.0.2.2", 80, "stands for an IPv4 address"},
		{"broadcast of the route", "gate", false, "192.0.2.255", 80, "network or broadcast address of the route"},
		{"network of the route", "gate", false, "192.0.2.0", 80, "network or broadcast address of the route"},
		{"broadcast of a link", "gate", false, "10.0.0.7", 80, "network or broadcast address of a link"},
		{"network of a link", "gate", false, "10.0.0.4", 80, "network or broadcast address of a link"},
		{"routers of an IPv6 route", "gate", false, "2001:db8:1::", 80, "network or broadcast address of the route"},
		{"routers of an IPv6 link", "gate", false, "2001:db8:2:5::", 80, "network or broadcast address of a link"},
		{"the last IPv6 address", "gate", false, "2001:db8:1::ffff:ffff:ffff:ffff", 80, "[2001:db8:1:0:ffff:ffff:ffff:ffff]:80"},
		{"a link of two", "gate", false, "198.51.100.4", 80, "198.51.100.4:80"},
		{"limited broadcast", "gate", false, "255.255.255.255", 80, "not reachable through"},
		{"NAT64", "gate", false, "64:ff9b::192.0.2.2", 22, "stands for an IPv4 address"},
		{"NAT64 of a network", "gate", false, "64:ff9b:1::c000:202", 22, "stands for an IPv4 address"},
		{"6to4", "gate", false, "2002:c000:202::1", 22, "stands for an IPv4 address"},
		{"Teredo", "gate", false, "2001:0:c000:202::1", 22, "stands for an IPv4 address"},
		{"IPv4-compatible", "gate", false, "::192.0.2.2", 22, "stands for an IPv4 address"},
		{"IPv4-translated", "gate", false, "::ffff:0:192.0.2.2", 22, "stands for an IPv4 address"},
		{"ISATAP", "gate", false, "2001:db8:1::5efe:192.0.2.2", 22, "stands for an IPv4 address"},
		{"behind a peer, in a network of its own", "phone", false, "192.168.7.3", 22, "192.168.7.3:22"},
		{"behind a peer, when the kernel connects", "phone", true, "192.168.7.3", 22, "does not expose"},
		{"broadcast behind a peer", "phone", false, "192.168.7.255", 22, "network or broadcast address of the route"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := router(t, "127.0.0.1:1")
			if tc.tun {
				n.cfg.Mode = wg.ModeTUN
			}
			for _, network := range []string{"tcp", "udp"} {
				got, err := n.Destination("alice", tc.target, network, tc.host, tc.port)
				if err != nil && network == "udp" && tc.want == tc.host+":80" && strings.Contains(err.Error(), "does not expose udp port 80") {
					continue // exposed for tcp only
				}
				if got.IsValid() && got.String() == tc.want {
					continue
				}
				if !errors.Is(err, mesh.ErrDenied) || !strings.Contains(strings.ReplaceAll(err.Error(), "udp", "tcp"), tc.want) {
					t.Errorf("%s: got %v, %v; want %q", network, got, err, tc.want)
				}
			}
		})
	}
}

// TestDestination_HostAddressAsksTheRules shows that the host under a routed
// address is still this node to the ACLs.
func TestDestination_HostAddressAsksTheRules(t *testing.T) {
	n := router(t, "127.0.0.1:1")
	if _, err := n.Destination("mallory", "gate", "tcp", "192.0.2.2", 80); !errors.Is(err, mesh.ErrDenied) || !strings.Contains(err.Error(), "no network ACL") {
		t.Errorf("got %v, want a refusal by the ACLs", err)
	}
}

func TestDestination_WithoutTheHostsAddressesNothingIsRouted(t *testing.T) {
	n := router(t, "127.0.0.1:1")
	n.cfg.InterfaceAddrs = func() ([]net.Addr, error) { return nil, errors.New("netlink is gone") }
	if got, err := n.Destination("alice", "gate", "tcp", "192.0.2.9", 80); !errors.Is(err, mesh.ErrUnavailable) || got.IsValid() {
		t.Errorf("got %v, %v; want ErrUnavailable", got, err)
	}
	if _, err := n.DialContext(t.Context(), "tcp", "192.0.2.9:80"); !errors.Is(err, mesh.ErrUnavailable) {
		t.Errorf("dial: %v, want ErrUnavailable", err)
	}
	if _, err := n.Destination("alice", "gate", "tcp", "gate", 80); err != nil {
		t.Errorf("its mesh address: %v", err)
	}
}

// TestDialContext_ChecksTheHostAgain shows that what Destination said is not
// believed: the host may have got the address since.
func TestDialContext_ChecksTheHostAgain(t *testing.T) {
	n := router(t, "127.0.0.1:1")
	for _, at := range []string{
		"192.0.2.2:18443", "[::ffff:192.0.2.2]:22", "203.0.113.9:22", "192.0.2.255:80", "10.0.0.4:80", "[2001:db8:1::]:80",
		"[64:ff9b::c000:202]:22", "127.0.0.1:22", "169.254.169.254:80",
	} {
		for _, network := range []string{"tcp", "udp"} {
			if c, err := n.DialContext(t.Context(), network, at); !errors.Is(err, mesh.ErrDenied) {
				t.Errorf("dial %s %s = %v, %v; want ErrDenied", network, at, c, err)
			}
		}
	}
	n.cfg.Mode = wg.ModeTUN // the kernel would take the host's own address
	if _, err := n.DialContext(t.Context(), "tcp", "192.168.7.3:22"); !errors.Is(err, mesh.ErrDenied) {
		t.Errorf("an address of the host behind a peer: %v, want ErrDenied", err)
	}
}

func TestDialContext_ExposedPortUnderAnAddressOfTheHost(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := router(t, l.Addr().String())
	c, err := n.DialContext(t.Context(), "tcp", "192.0.2.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.RemoteAddr().String() != l.Addr().String() {
		t.Errorf("connected to %v, want the service", c.RemoteAddr())
	}
}

// TestDialRouted_SeesWhatTheKernelTakesForLocal stands for networks that are
// routed to the host as a whole, which no interface shows.
func TestDialRouted_SeesWhatTheKernelTakesForLocal(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	for _, network := range []string{"tcp", "udp"} {
		if c, err := dialRouted(t.Context(), network, at); !errors.Is(err, mesh.ErrDenied) || c != nil {
			t.Errorf("%s: got %v, %v; want ErrDenied", network, c, err)
		}
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the service read %v, want the end", err)
	}
}

func TestHostAddrs_AreAskedForOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h hostAddrs
		asked := 0
		ask := func() ([]net.Addr, error) { asked++; return interfaces("192.0.2.2/24")() }
		for i, want := range []int{1, 1, 2} {
			v, err := h.load(ask)
			if err != nil || asked != want || !v.holds(netip.MustParseAddr("192.0.2.2")) {
				t.Errorf("call %d: %v, asked %d times, want %d", i, err, asked, want)
			}
			time.Sleep(hostAddrsAge / 2)
		}
		time.Sleep(hostAddrsAge)
		broken := errors.New("broken")
		if _, err := h.load(func() ([]net.Addr, error) { return nil, broken }); !errors.Is(err, broken) {
			t.Errorf("got %v, want what went wrong and no old addresses", err)
		}
	})
}

func TestHostAddrs_OfThisHost(t *testing.T) {
	var h hostAddrs
	v, err := h.load(nil)
	if err != nil || !v.holds(netip.MustParseAddr("127.0.0.1")) || v.holds(netip.MustParseAddr("127.0.0.2")) {
		t.Errorf("got %+v, %v", v, err)
	}
}

func TestDestination_SaysWhoseAddressItIs(t *testing.T) {
	s := world(t)
	partial := *s
	partial.Nodes = mesh.NodesOf(s.Node("nas"), s.Node("gate"))
	for _, tc := range []struct {
		name     string
		snapshot *mesh.Snapshot
		id       mesh.NodeID
		holds    bool
		host     string
		want     string
		err      error
	}{
		{"a peer by id", s, "nas", false, "phone", `that is node "phone"; connect to phone itself`, mesh.ErrDenied},
		{"a peer by address", s, "nas", false, "172.16.0.2", `that is node "phone"; connect to phone itself`, mesh.ErrDenied},
		{"an address that a follower does not know", &partial, "nas", false, "172.16.0.2", "knows only its peers; if that is the address of another node, connect to that node itself", mesh.ErrDenied},
		{"a name that a follower does not know", &partial, "nas", false, "phone", "if it is another node of the mesh, connect to it itself", mesh.ErrInvalid},
		{"an address that nobody has", s, "gate", true, "172.16.9.9", "no node of the mesh has that address", mesh.ErrDenied},
		{"an address outside", s, "gate", true, "192.0.2.1", "neither a node of the mesh nor in a route", mesh.ErrDenied},
		{"a network that a node does not offer", s, "nas", false, "192.0.2.1", `node "nas" does not forward to it`, mesh.ErrDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := self(t, tc.snapshot, tc.id, tc.holds).Destination("alice", tc.id, "tcp", tc.host, 80)
			if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %v with %q", err, tc.err, tc.want)
			}
		})
	}
}

// FuzzEmbeddedAndEdges holds isEdge to what it means: the first or last address.
func FuzzEmbeddedAndEdges(f *testing.F) {
	for _, a := range []string{"192.0.2.255", "2002::1", "::1.2.3.4", "::ffff:1.2.3.4"} {
		f.Add(netip.MustParseAddr(a).AsSlice(), uint8(24))
	}
	f.Fuzz(func(t *testing.T, raw []byte, bits uint8) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok {
			return
		}
		if mesh.EmbedsIPv4(addr) && addr.Is4() {
			t.Errorf("%v is IPv4 and embeds an address", addr)
		}
		p, err := addr.Prefix(int(bits))
		if err != nil {
			return
		}
		if isEdge(p, addr) && addr != p.Addr() && p.Contains(addr.Next()) {
			t.Errorf("%v is in the middle of %v", addr, p)
		}
	})
}
