// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// connect returns both ends of a TCP connection from a to addr, which is b's.
func connect(tb testing.TB, a, b *wgtest.Node, addr netip.Addr) (client, server net.Conn) {
	tb.Helper()
	ctx := timeout(tb)
	l, err := b.Listen(ctx, "tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	if client, err = a.DialContext(ctx, "tcp", l.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close(); server.Close() })
	deadline := time.Now().Add(patience)
	if err := errors.Join(client.SetDeadline(deadline), server.SetDeadline(deadline)); err != nil {
		tb.Fatal(err)
	}
	return client, server
}

// noise is an endless stream in which no two blocks are equal.
func noise(seed byte) io.Reader {
	block := make([]byte, 1<<16)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(block) // never fails
	return &noiseReader{block: block}
}

type noiseReader struct {
	block []byte
	read  int
}

func (r *noiseReader) Read(b []byte) (int, error) {
	at := r.read % len(r.block)
	if at == 0 {
		binary.LittleEndian.PutUint64(r.block, uint64(r.read))
	}
	n := copy(b, r.block[at:])
	r.read += n
	return n, nil
}

// transfer sends n random bytes and half-closes; it returns when the other
// side has read them all unchanged.
func transfer(tb testing.TB, from, to net.Conn, n int64) {
	tb.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(from, noise(7), n)
		sent <- errors.Join(err, from.(interface{ CloseWrite() error }).CloseWrite())
	}()
	got, want := sha256.New(), sha256.New()
	read, err := io.Copy(got, to)
	if err := errors.Join(err, <-sent); err != nil || read != n {
		tb.Fatalf("read %d of %d bytes: %v", read, n, err)
	}
	if _, err := io.CopyN(want, noise(7), n); err != nil {
		tb.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		tb.Fatalf("%d bytes arrived changed", n)
	}
}

func TestTCP_BothFamiliesBothWays(t *testing.T) {
	a, b := wgtest.Pair(t)
	for _, addr := range []netip.Addr{b.IPv4, b.IPv6} {
		client, server := connect(t, a, b, addr)
		if got := client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != addr {
			t.Errorf("remote address %v, want %v", got, addr)
		}
		transfer(t, client, server, 1<<20+1)
		transfer(t, server, client, 1<<20+1)
	}
}

func TestTCP_100MiB(t *testing.T) {
	size := int64(100 << 20)
	if raceEnabled {
		size = 10 << 20 // the detector makes each byte ten times dearer
	}
	a, b := wgtest.Pair(t)
	client, server := connect(t, a, b, b.IPv4)
	transfer(t, client, server, size)
}

func TestTCP_DeadlinesAreThoseOfTheHost(t *testing.T) {
	a, b := wgtest.Pair(t)
	client, _ := connect(t, a, b, b.IPv4)
	if err := client.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read = %v, want ErrDeadlineExceeded", err)
	}
}

func TestTCP_ToOurselves(t *testing.T) {
	a := wgtest.New(t, 1, wg.Options{})
	for _, addr := range []netip.Addr{a.IPv4, a.IPv6} {
		client, server := connect(t, a, a, addr)
		transfer(t, client, server, 1<<20)
	}
}

func TestUDP_BothFamilies(t *testing.T) {
	a, b := wgtest.Pair(t)
	ctx := timeout(t)
	for _, addr := range []netip.Addr{b.IPv4, b.IPv6} {
		server, err := b.ListenPacket(ctx, "udp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		client, err := a.DialContext(ctx, "udp", server.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(patience)
		if err := errors.Join(client.SetDeadline(deadline), server.SetDeadline(deadline)); err != nil {
			t.Fatal(err)
		}
		// The larger ones travel in fragments.
		for _, size := range []int{0, 1, 1200, 1400, 1420, 9000} {
			want := make([]byte, size)
			if _, err := noise(1).Read(want); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write(want); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 10000)
			n, from, err := server.ReadFrom(buf)
			if err != nil || !bytes.Equal(buf[:n], want) {
				t.Fatalf("%d bytes: read %d, %v", size, n, err)
			}
			// The 16-byte form of an IPv4 address is as good.
			back := *from.(*net.UDPAddr)
			back.IP = back.IP.To16()
			if _, err := server.WriteTo(want, &back); err != nil {
				t.Fatal(err)
			}
			if n, err = client.Read(buf); err != nil || !bytes.Equal(buf[:n], want) {
				t.Fatalf("%d bytes: read back %d, %v", size, n, err)
			}
		}
		if _, err := server.WriteTo([]byte("x"), &net.IPAddr{}); err == nil {
			t.Error("WriteTo an address that is not UDP succeeded")
		}
		client.Close()
		server.Close()
	}
}

func TestDial_RefusedPort(t *testing.T) {
	a, b := wgtest.Pair(t)
	for _, addr := range []netip.Addr{b.IPv4, b.IPv6} {
		target := netip.AddrPortFrom(addr, 9).String()
		if _, err := a.DialContext(timeout(t), "tcp", target); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial tcp %s = %v, want ECONNREFUSED", target, err)
		}
		c, err := a.DialContext(timeout(t), "udp", target)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		eventually(t, "word that no such port is open", func() bool {
			_, err := c.Write([]byte("anybody?"))
			return err != nil
		})
	}
}

func TestDial_WithoutRouteFailsAtOnce(t *testing.T) {
	a, _ := wgtest.Pair(t)
	for _, network := range []string{"tcp", "udp"} {
		for _, target := range []string{"192.0.2.1:80", "10.99.0.3:80", "[2001:db8::1]:80"} {
			_, err := a.DialContext(context.Background(), network, target)
			if !errors.Is(err, wg.ErrNoRoute) || !errors.Is(err, mesh.ErrUnavailable) {
				t.Errorf("dial %s %s = %v, want ErrNoRoute", network, target, err)
			}
		}
	}
}

func TestDial_BadAddresses(t *testing.T) {
	a, b := wgtest.Pair(t)
	for _, c := range [][2]string{
		{"tcp", "localhost:80"}, {"tcp", "10.99.0.2"}, {"tcp", "10.99.0.2:http"}, {"tcp", "10.99.0.2:70000"},
		{"tcp", ""}, {"unix", "/tmp/x"}, {"tcp44", "10.99.0.2:80"}, {"", "10.99.0.2:80"}, {"ip4:icmp", "10.99.0.2:0"},
		{"tcp6", "10.99.0.2:80"}, {"tcp4", "[" + b.IPv6.String() + "]:80"}, {"udp", "[fd99::%eth0]:1"},
	} {
		if _, err := a.DialContext(timeout(t), c[0], c[1]); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("dial %s %q = %v, want ErrInvalid", c[0], c[1], err)
		}
	}
}

func TestListen_OnlyOnOwnAddresses(t *testing.T) {
	a, b := wgtest.Pair(t)
	ctx := timeout(t)
	for _, addr := range []string{":80", "0.0.0.0:80", "[::]:80", "127.0.0.1:80", netip.AddrPortFrom(b.IPv4, 80).String()} {
		if l, err := a.Listen(ctx, "tcp", addr); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("Listen(%s) = %v, %v, want ErrInvalid", addr, l, err)
		}
		if c, err := a.ListenPacket(ctx, "udp", addr); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("ListenPacket(%s) = %v, %v, want ErrInvalid", addr, c, err)
		}
	}
	own := netip.AddrPortFrom(a.IPv4, 80).String()
	if _, err := a.Listen(ctx, "udp", own); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("Listen on udp = %v, want ErrInvalid", err)
	}
	l, err := a.Listen(ctx, "tcp4", own)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Listen(ctx, "tcp", own); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen on a port in use = %v, want EADDRINUSE", err)
	}
	l.Close()
	again, err := a.Listen(ctx, "tcp", own)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestSockets_SayThatTheyAreClosed(t *testing.T) {
	a, b := wgtest.Pair(t)
	ctx := timeout(t)
	client, _ := connect(t, a, b, b.IPv4)
	l, err := a.Listen(ctx, "tcp", netip.AddrPortFrom(a.IPv4, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.ListenPacket(ctx, "udp", netip.AddrPortFrom(a.IPv6, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]struct {
		wait  func() error
		close func() error
	}{
		"tcp":      {func() error { _, err := client.Read(make([]byte, 1)); return err }, client.Close},
		"listener": {func() error { _, err := l.Accept(); return err }, l.Close},
		"udp":      {func() error { _, _, err := p.ReadFrom(make([]byte, 1)); return err }, p.Close},
	} {
		got := make(chan error)
		go func() { got <- s.wait() }()
		if err := s.close(); err != nil {
			t.Errorf("%s: Close = %v", name, err)
		}
		if err := <-got; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: waiting call = %v, want ErrClosed", name, err)
		}
		if err := s.wait(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: later call = %v, want ErrClosed", name, err)
		}
	}
}

func TestClose_EndsEverythingThatWaits(t *testing.T) {
	a, b := wgtest.Pair(t)
	silent := wgtest.New(t, 9, wg.Options{}) // configured nowhere: it never answers
	a.SetPeers(b.Peer(), silent.Peer())
	client, server := connect(t, a, b, b.IPv4)
	ended := make(chan error, 3)
	go func() { _, err := client.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := io.Copy(client, noise(1)); ended <- err }() // nobody reads: blocks
	dialing := make(chan struct{})
	go func() {
		close(dialing)
		_, err := a.DialContext(context.Background(), "tcp", netip.AddrPortFrom(silent.IPv4, 80).String())
		ended <- err
	}()
	<-dialing
	eventually(t, "bytes at the other side", func() bool {
		s, err := b.Stats()
		return err == nil && s.Peers[0].ReceiveBytes > 100<<10
	})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for range cap(ended) {
		if err := <-ended; err == nil {
			t.Error("a call ended without an error")
		}
	}
	if _, err := a.DialContext(context.Background(), "tcp", server.LocalAddr().String()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial = %v, want ErrClosed", err)
	}
	if err := a.Set(context.Background(), a.Config); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Set = %v, want ErrClosed", err)
	}
	if _, err := a.Stats(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Stats = %v, want ErrClosed", err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func TestDial_ContextEnds(t *testing.T) {
	a, b := wgtest.New(t, 1, wg.Options{}), wgtest.New(t, 2, wg.Options{})
	a.SetPeers(b.Peer()) // b does not know a
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error)
	go func() {
		_, err := a.DialContext(ctx, "tcp", netip.AddrPortFrom(b.IPv4, 80).String())
		got <- err
	}()
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("dial = %v, want Canceled", err)
	}
}
