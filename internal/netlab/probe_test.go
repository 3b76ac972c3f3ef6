// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package netlab_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/meshgate/meshgate/internal/netlab"
)

const (
	// late is when an answer that should come is given up.
	late = 10 * time.Second
	// quiet is how long nothing has to come until nothing is expected. A packet
	// crosses the lab in microseconds.
	quiet = 150 * time.Millisecond
)

// open makes a UDP socket at a host.
func open(s *netlab.Side, at netip.AddrPort) (c *net.UDPConn, err error) {
	err = s.Run(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	return c, err
}

// listen is open for a test.
func listen(t testing.TB, s *netlab.Side, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := open(s, at)
	if err != nil {
		t.Fatalf("listen at %s: %v", s.Name(), err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// mirror tells who asks what address they come from, at four places: two ports
// of two addresses (RFC 5780 section 3).
type mirror struct {
	first, otherPort, other, otherBoth *net.UDPConn
}

func newMirror(t testing.TB, server *netlab.Side, addr netip.Addr) *mirror {
	t.Helper()
	at := func(addr netip.Addr, port uint16) *net.UDPConn {
		c := listen(t, server, netip.AddrPortFrom(addr, port))
		var wg sync.WaitGroup
		wg.Go(func() { reflect(c) })
		t.Cleanup(func() { _ = c.Close(); wg.Wait() })
		return c
	}
	second := server.Second(addr)
	return &mirror{first: at(addr, 3478), otherPort: at(addr, 3479), other: at(second, 3478), otherBoth: at(second, 3479)}
}

// reflect answers until the socket is closed.
func reflect(c *net.UDPConn) {
	b := make([]byte, 64)
	for {
		_, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteToUDPAddrPort([]byte(from.String()), from)
		}
	}
}

// place is where a socket of this process is.
func place(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// ask returns the address that a mirror sees of the socket.
func ask(c *net.UDPConn, m *net.UDPConn, within time.Duration) (netip.AddrPort, error) {
	if _, err := c.WriteToUDPAddrPort([]byte("?"), place(m)); err != nil {
		return netip.AddrPort{}, err
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return netip.AddrPort{}, err
	}
	b := make([]byte, 64)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return netip.AddrPort{}, err
		}
		if from == place(m) {
			return netip.ParseAddrPort(string(b[:n]))
		}
	}
}

// patience is how long to wait for the mirror behind a NAT.
func patience(nat netlab.NAT) time.Duration {
	if nat == (netlab.NAT{}) {
		return quiet
	}
	return late
}

// measure finds out what is between the socket and the mirror. want says only
// whether it is worth to wait. Of an address of the host itself the mapping is
// endpoint-independent.
func measure(c *net.UDPConn, m *mirror, want netlab.NAT) (nat netlab.NAT, mapped netip.AddrPort, err error) {
	mapped, err = ask(c, m.first, patience(want))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return netlab.NAT{}, mapped, nil
	}
	if err != nil {
		return nat, mapped, err
	}
	// Filtering first: what is sent to others opens it.
	if nat.Filtering, err = filtering(c, m, mapped, late); err != nil {
		return nat, mapped, err
	}
	port, err1 := ask(c, m.otherPort, late)
	both, err2 := ask(c, m.otherBoth, late)
	switch {
	case mapped == port && mapped == both:
		nat.Mapping = netlab.EndpointIndependent
	case mapped == port:
		nat.Mapping = netlab.AddressDependent
	default:
		nat.Mapping = netlab.AddressAndPortDependent
	}
	return nat, mapped, errors.Join(err1, err2)
}

// filtering has the mirrors that were not asked send to the socket, and at last
// the one that was.
func filtering(c *net.UDPConn, m *mirror, mapped netip.AddrPort, within time.Duration) (netlab.Dependence, error) {
	for _, from := range []*net.UDPConn{m.other, m.otherPort, m.first} {
		if _, err := from.WriteToUDPAddrPort([]byte("unasked"), mapped); err != nil {
			return 0, err
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return 0, err
	}
	heard := map[netip.AddrPort]bool{}
	b := make([]byte, 64)
	for {
		_, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return 0, err
		}
		heard[from] = true
		// What was sent earlier is there, unless it took another processor.
		if from == place(m.first) {
			if err := c.SetReadDeadline(time.Now().Add(quiet)); err != nil {
				return 0, err
			}
		}
	}
	switch {
	case !heard[place(m.first)]:
		return 0, fmt.Errorf("not even %s is heard any more", place(m.first))
	case heard[place(m.other)]:
		return netlab.EndpointIndependent, nil
	case heard[place(m.otherPort)]:
		return netlab.AddressDependent, nil
	default:
		return netlab.AddressAndPortDependent, nil
	}
}

// Each kind maps and filters as it says, found out from outside.
func TestKinds_MapAndFilterAsTheySay(t *testing.T) {
	lab := netlab.New(t)
	server := lab.Server("mirror")
	four, six := newMirror(t, server, server.Addr4()), newMirror(t, server, server.Addr6())
	for _, kind := range netlab.Kinds() {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			side := lab.Side(kind.String(), kind)
			for _, v := range []struct {
				addr netip.Addr
				m    *mirror
				want netlab.NAT
			}{{side.Addr4(), four, kind.IPv4()}, {side.Addr6(), six, kind.IPv6()}} {
				if !v.addr.IsValid() {
					if v.want != (netlab.NAT{}) {
						t.Errorf("there is no address for %v", v.want)
					}
					continue
				}
				got, mapped, err := measure(listen(t, side, netip.AddrPortFrom(v.addr, 51820)), v.m, v.want)
				if err != nil || got != v.want {
					t.Errorf("%s: got %v, want %v: %v", v.addr, got, v.want, err)
				}
				if public := v.addr.Is6() || kind == netlab.Open; got.Mapping != netlab.NoUDP && public != (mapped.Addr() == v.addr && mapped.Port() == 51820) {
					t.Errorf("%s looks like %s from outside", v.addr, mapped)
				}
			}
		})
	}
}

// What was just built works, over IPv6 too, for which the kernel may take a
// second when it thinks that nobody waits.
func TestSide_WorksAtOnce(t *testing.T) {
	for range 15 {
		lab := netlab.New(t)
		server, side := lab.Server("mirror"), lab.Side("a", netlab.DualStack)
		began := time.Now()
		for _, v := range []struct{ server, side netip.Addr }{{server.Addr4(), side.Addr4()}, {server.Addr6(), side.Addr6()}} {
			c, m := listen(t, side, netip.AddrPortFrom(v.side, 0)), newMirror(t, server, v.server)
			for {
				_, err := ask(c, m.first, quiet)
				if err == nil {
					break
				}
				if time.Since(began) > late {
					t.Fatalf("%s: %v", v.side, err)
				}
			}
		}
		if took := time.Since(began); took > 900*time.Millisecond {
			t.Errorf("the first answers took %s", took)
		}
	}
}

// Of two NATs the outer one is seen, and there is one router more on the way.
func TestCGNAT_IsTwoNATs(t *testing.T) {
	lab := netlab.New(t)
	server := lab.Server("mirror")
	m := newMirror(t, server, server.Addr4())
	for _, c := range []struct {
		kind netlab.Kind
		nat  uint16 // the lower byte of the first port that the outer NAT gives
		hops int    // to the mirror: the boxes, the middle, the box of the server, the server
	}{{netlab.PortRestricted, 1, 4}, {netlab.CGNAT, 2, 5}} {
		side := lab.Side(c.kind.String(), c.kind)
		socket := listen(t, side, netip.AddrPortFrom(side.Addr4(), 0))
		mapped, err := ask(socket, m.first, late)
		if err != nil || mapped.Port()&0xff != c.nat || mapped.Port() < 1024 {
			t.Errorf("%s looks like %s from outside, want a port of NAT %d: %v", c.kind, mapped, c.nat, err)
		}
		for _, hops := range []int{c.hops - 1, c.hops} {
			if err := ipv4.NewConn(socket).SetTTL(hops); err != nil {
				t.Fatal(err)
			}
			within := quiet
			if hops == c.hops {
				within = late
			}
			if _, err := ask(socket, m.first, within); (err == nil) != (hops == c.hops) {
				t.Errorf("%s with %d hops: %v", c.kind, hops, err)
			}
		}
	}
}

// After Rebind NATs give other ports, and nobody gets in at the old ones.
func TestRebind_GivesOtherPorts(t *testing.T) {
	lab := netlab.New(t)
	server := lab.Server("mirror")
	m := newMirror(t, server, server.Addr4())
	for _, kind := range []netlab.Kind{netlab.FullCone, netlab.AddressRestricted, netlab.PortRestricted, netlab.Symmetric, netlab.CGNAT, netlab.CGNATSymmetric} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			side := lab.Side(kind.String(), kind)
			c := listen(t, side, netip.AddrPortFrom(side.Addr4(), 0))
			before, err := ask(c, m.first, late)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ask(c, m.first, late); again != before {
				t.Errorf("%s became %s by itself: %v", before, again, err)
			}
			if err := side.Rebind(); err != nil {
				t.Fatal(err)
			}
			if _, err := filtering(c, m, before, quiet); err == nil {
				t.Errorf("%s still leads to the host", before)
			}
			if after, err := ask(c, m.first, late); err != nil || after == before {
				t.Errorf("before %s, after %s: %v", before, after, err)
			}
		})
	}
}

// A firewall without translation keeps the port and forgets who may come in.
func TestRebind_ClosesAFirewall(t *testing.T) {
	lab := netlab.New(t)
	server, side := lab.Server("mirror"), lab.Side("six", netlab.IPv6Only)
	m := newMirror(t, server, server.Addr6())
	c := listen(t, side, netip.AddrPortFrom(side.Addr6(), 0))
	mapped, err := ask(c, m.first, late)
	if err != nil {
		t.Fatal(err)
	}
	if err := side.Rebind(); err != nil {
		t.Fatal(err)
	}
	if _, err := filtering(c, m, mapped, quiet); err == nil {
		t.Error("the mirror still gets in")
	}
	if again, err := ask(c, m.first, late); err != nil || again != mapped {
		t.Errorf("before %s, after %s: %v", mapped, again, err)
	}
}
