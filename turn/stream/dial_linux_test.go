// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"
	"golang.org/x/sys/unix"
)

// An attempt to connect ends with its allocation, and with the server.
func TestRelay_GivesUpToConnect(t *testing.T) {
	to := deaf(t)
	w := newTCPWorld(t, "tcp", func(cfg *Config) { cfg.Inside = func(netip.AddrPort) netip.AddrPort { return to } })
	w.control.send(w.control.signed(stun.MethodConnect, peerAt(somebody)).Raw)
	w.left(1)
	w.control.must(stun.MethodRefresh, raw(stun.AttrLifetime, 0, 0, 0, 0))
	w.left(0)
	w.control.allocate(6)
	w.control.send(w.control.signed(stun.MethodConnect, peerAt(somebody)).Raw)
	w.left(1)
	start := time.Now()
	w.server.Close()
	if took := time.Since(start); took > connectTimeout/3 {
		t.Errorf("the server closes after %s", took)
	}
}

// deaf is an address that answers no calls: its queue is full.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback.As4()}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(loopback, uint16(sa.(*unix.SockaddrInet4).Port))
	for range 10 {
		c, err := net.DialTimeout("tcp4", at.String(), 300*time.Millisecond)
		if isTimeout(err) {
			return at
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatalf("%v answers", at)
	return at
}
