// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// markOf is the mark of a connection's socket.
func markOf(tb testing.TB, c net.Conn) int {
	tb.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	mark := 0
	if e := raw.Control(func(fd uintptr) { mark, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) }); errors.Join(err, e) != nil {
		tb.Fatal(err, e)
	}
	return mark
}

func TestOutbound_Marks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var none *Outbound
	plain, apart, used := new(Outbound), new(Outbound), new(Outbound)
	apart.Apart()
	used.Apart()
	used.Exit(true)
	for name, test := range map[string]struct {
		o    *Outbound
		want int
	}{"none": {none, 0}, "plain": {plain, 0}, "apart": {apart, Mark}, "with an exit": {used, Mark}} {
		c, err := test.o.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := markOf(t, c); got != test.want {
			t.Errorf("%s: mark %#x, want %#x", name, got, test.want)
		}
		_ = c.Close()
	}
}

// While an exit is used, names that cannot be looked up mean what they meant.
func TestOutbound_RemembersNames(t *testing.T) {
	o := new(Outbound)
	found, err := o.LookupNetIP(t.Context(), "ip", "localhost")
	if err != nil || !slices.ContainsFunc(found, netip.Addr.IsLoopback) {
		t.Fatal(found, err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	o.mu.Lock()
	o.found["gate.invalid"] = found
	o.mu.Unlock()
	if got, err := o.LookupNetIP(over, "ip", "gate.invalid"); err == nil {
		t.Errorf("without an exit: %v", got)
	}
	o.Exit(true)
	if got, err := o.LookupNetIP(over, "ip", "gate.invalid"); err != nil || !slices.Equal(got, found) {
		t.Errorf("with an exit: %v, %v", got, err)
	}
	if got, err := o.LookupNetIP(over, "ip", "other.invalid"); err == nil {
		t.Errorf("a name that never meant anything: %v", got)
	}
}
