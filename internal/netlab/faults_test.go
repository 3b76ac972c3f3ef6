// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package netlab_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

// accept takes connections at a server and sends each size bytes.
func accept(t testing.TB, server *netlab.Side, at netip.AddrPort, size int) {
	t.Helper()
	var l net.Listener
	err := server.Run(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(late))
			_, _ = c.Write(make([]byte, size))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

// fetch connects from a host and reads size bytes.
func fetch(s *netlab.Side, to netip.AddrPort, size int, within time.Duration) error {
	var c net.Conn
	end := time.Now().Add(within)
	err := s.Run(func() (err error) {
		c, err = (&net.Dialer{Deadline: end}).Dial("tcp", to.String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(end)
	raw, err := io.ReadAll(c)
	if err == nil && len(raw) != size {
		return fmt.Errorf("got %d bytes of %d", len(raw), size)
	}
	return err
}

// Who may use which port of TCP, whatever happens to UDP.
func TestKinds_LetTCPOut(t *testing.T) {
	lab := netlab.New(t)
	server := lab.Server("web")
	for _, port := range []uint16{443, 3478} {
		accept(t, server, netip.AddrPortFrom(server.Addr4(), port), 10)
		accept(t, server, netip.AddrPortFrom(server.Addr6(), port), 10)
	}
	for _, kind := range netlab.Kinds() {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			side := lab.Side(kind.String(), kind)
			to := server.Addr4()
			if kind == netlab.IPv6Only {
				to = server.Addr6()
			}
			if err := fetch(side, netip.AddrPortFrom(to, 443), 10, late); err != nil {
				t.Errorf("port 443: %v", err)
			}
			within := late
			if kind == netlab.Only443 {
				within = quiet
			}
			if err := fetch(side, netip.AddrPortFrom(to, 3478), 10, within); (err == nil) != (kind != netlab.Only443) {
				t.Errorf("port 3478: %v", err)
			}
		})
	}
}

// A host of one IP version has no way to the other one.
func TestKinds_OneIPVersion(t *testing.T) {
	lab := netlab.New(t)
	server := lab.Server("web")
	accept(t, server, netip.AddrPortFrom(server.Addr4(), 443), 10)
	accept(t, server, netip.AddrPortFrom(server.Addr6(), 443), 10)
	for _, c := range []struct {
		kind netlab.Kind
		to   netip.Addr
	}{{netlab.PortRestricted, server.Addr6()}, {netlab.Open, server.Addr6()}, {netlab.IPv6Only, server.Addr4()}} {
		if err := fetch(lab.Side(c.kind.String(), c.kind), netip.AddrPortFrom(c.to, 443), 10, quiet); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("%s to %s: %v", c.kind, c.to, err)
		}
	}
}

func TestBlackout_LosesAllUntilRestore(t *testing.T) {
	lab := netlab.New(t)
	server, side, other := lab.Server("mirror"), lab.Side("a", netlab.DualStack), lab.Side("b", netlab.Open)
	for _, v := range []struct{ server, side netip.Addr }{{server.Addr4(), side.Addr4()}, {server.Addr6(), side.Addr6()}} {
		m := newMirror(t, server, v.server)
		c := listen(t, side, netip.AddrPortFrom(v.side, 0))
		before, err := ask(c, m.first, late)
		if err != nil {
			t.Fatal(err)
		}
		if err := side.Blackout(); err != nil {
			t.Fatal(err)
		}
		if _, err := ask(c, m.first, quiet); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s in the dark: %v", v.side, err)
		}
		if v.side.Is4() {
			if _, err := ask(listen(t, other, netip.AddrPortFrom(other.Addr4(), 0)), m.first, late); err != nil {
				t.Errorf("another side in the meantime: %v", err)
			}
		}
		if err := side.Restore(); err != nil {
			t.Fatal(err)
		}
		if after, err := ask(c, m.first, late); err != nil || after != before {
			t.Errorf("%s looked like %s before and like %s after: %v", v.side, before, after, err)
		}
	}
}

// Two sides that are parted reach all but each other.
func TestPart_LosesWhatGoesBetweenTwo(t *testing.T) {
	lab := netlab.New(t)
	a, b, other := lab.Side("a", netlab.DualStack), lab.Server("b"), lab.Server("other")
	for _, v := range []struct{ a, b, other netip.Addr }{{a.Addr4(), b.Addr4(), other.Addr4()}, {a.Addr6(), b.Addr6(), other.Addr6()}} {
		to, elsewhere := newMirror(t, b, v.b), newMirror(t, other, v.other)
		c := listen(t, a, netip.AddrPortFrom(v.a, 0))
		for range 2 { // again is harmless
			if err := a.Part(b); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := ask(c, to.first, quiet); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s and %s are parted: %v", v.a, v.b, err)
		}
		if _, err := ask(c, elsewhere.first, late); err != nil {
			t.Errorf("%s to another side: %v", v.a, err)
		}
		if err := b.Meet(a); err != nil {
			t.Fatal(err)
		}
		if _, err := ask(c, to.first, late); err != nil {
			t.Errorf("%s and %s meet: %v", v.a, v.b, err)
		}
	}
}

// Of 1000 packets each of which gets lost on the way there or back with a
// chance of 3 in 10, 490 come back; that it is less than 400 or more than 580
// happens once in 10^8 runs.
func TestLoss_LosesSoMany(t *testing.T) {
	lab := netlab.New(t)
	server, side := lab.Server("mirror"), lab.Side("a", netlab.PortRestricted)
	m := newMirror(t, server, server.Addr4())
	c := listen(t, side, netip.AddrPortFrom(side.Addr4(), 0))
	if _, err := ask(c, m.first, late); err != nil {
		t.Fatal(err)
	}
	if err := side.Loss(30); err != nil {
		t.Fatal(err)
	}
	back := 0
	b := make([]byte, 64)
	for range 20 {
		for range 50 { // fewer than fit into the buffers of sockets
			if _, err := c.WriteToUDPAddrPort([]byte("?"), place(m.first)); err != nil {
				t.Fatal(err)
			}
		}
		for {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if _, _, err := c.ReadFromUDPAddrPort(b); err != nil {
				break
			}
			back++
		}
	}
	if back < 400 || back > 580 {
		t.Errorf("%d of 1000 packets came back, want about 490", back)
	}
	if err := side.Restore(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := ask(c, m.first, late); err != nil {
			t.Fatal(err)
		}
	}
}

// Of a narrow link hosts are told, unless ICMP gets lost: then large packets
// vanish without a word, as in networks that filter it all.
func TestMTU_IsToldUnlessICMPGetsLost(t *testing.T) {
	const size = 200_000
	for _, kind := range []netlab.Kind{netlab.Open, netlab.PortRestricted, netlab.CGNATSymmetric, netlab.IPv6Only} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			lab := netlab.New(t)
			server, side := lab.Server("web"), lab.Side("a", kind)
			to := netip.AddrPortFrom(server.Addr4(), 443)
			if kind == netlab.IPv6Only {
				to = netip.AddrPortFrom(server.Addr6(), 443)
			}
			accept(t, server, to, size)
			if err := side.MTU(1280); err != nil {
				t.Fatal(err)
			}
			if err := fetch(side, to, size, late); err != nil {
				t.Errorf("with ICMP: %v", err)
			}
			// The server remembers what it was told of the host, so another one asks.
			other := lab.Side("b", kind)
			if err := errors.Join(other.MTU(1280), other.DropICMP()); err != nil {
				t.Fatal(err)
			}
			if err := fetch(other, to, size, 500*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("without ICMP: %v", err)
			}
			if err := other.MTU(1500); err != nil {
				t.Fatal(err)
			}
			if err := fetch(other, to, size, late); err != nil {
				t.Errorf("with a wide link: %v", err)
			}
		})
	}
}

// A host that gets another address goes on with it, and not with the old one.
func TestSetAddr_MovesTheHost(t *testing.T) {
	lab := netlab.New(t)
	server, side := lab.Server("mirror"), lab.Side("a", netlab.DualStack)
	for i, at := range []netip.Addr{server.Addr4(), server.Addr6()} {
		m := newMirror(t, server, at)
		old := []netip.Addr{side.Addr4(), side.Addr6()}[i]
		c := listen(t, side, netip.AddrPortFrom(old, 0))
		if _, err := ask(c, m.first, late); err != nil {
			t.Fatal(err)
		}
		next := old.Next()
		for range 2 { // the second time it has it already
			if err := side.SetAddr(next); err != nil {
				t.Fatal(err)
			}
		}
		if now := []netip.Addr{side.Addr4(), side.Addr6()}[i]; now != next || !side.Networks()[i].Contains(next) {
			t.Errorf("the address is %s in %s, want %s", now, side.Networks()[i], next)
		}
		if _, err := ask(c, m.first, quiet); err == nil {
			t.Errorf("%s still works", old)
		}
		if _, err := ask(listen(t, side, netip.AddrPortFrom(next, 0)), m.first, late); err != nil {
			t.Errorf("%s: %v", next, err)
		}
	}
}

// Programs see the host and nothing of the machine around it.
func TestExec_RunsOnTheHost(t *testing.T) {
	lab := netlab.New(t)
	side := lab.Side("a", netlab.PortRestricted)
	out, err := side.Exec(t.Context(), "ip", "-o", "-4", "address").Output()
	if err != nil || !strings.Contains(string(out), side.Addr4().String()+"/24") || strings.Count(string(out), "\n") != 2 {
		t.Errorf("the host has other addresses than lo and %s: %v\n%s", side.Addr4(), err, out)
	}
	out, err = side.Exec(t.Context(), "sh", "-c", "echo $$").Output()
	if err != nil || len(out) == 0 {
		t.Errorf("a shell on the host: %v", err)
	}
}

// What runs in a lab may end its goroutine without hanging the caller.
func TestRun_EndsWithItsFunction(t *testing.T) {
	lab := netlab.New(t)
	side := lab.Side("a", netlab.Open)
	want := errors.New("asked for")
	if err := side.Run(func() error { return want }); err != want {
		t.Errorf("got %v", err)
	}
	if err := side.Run(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that did not return counts as done")
	}
}
