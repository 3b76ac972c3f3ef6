// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// option reads a socket option.
func option(t *testing.T, socket syscall.Conn, level, name int) (v int) {
	t.Helper()
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, name) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return v
}

func TestFitNarrow(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fitNarrow(l)
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in := <-accepted
	if in == nil {
		t.Fatal("no connection")
	}
	defer in.Close()
	for _, c := range []net.Conn{out, in} {
		if v := option(t, c.(syscall.Conn), unix.IPPROTO_TCP, unix.TCP_MAXSEG); v > segment {
			t.Errorf("segments of %d bytes", v)
		}
	}
	fitNarrow(struct{ net.Listener }{l}) // of what is no socket it makes nothing
}
