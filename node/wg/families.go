// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"net"
	"reflect"
	"sync/atomic"
	"unsafe"

	"golang.zx2c4.com/wireguard/conn"
)

// families is the library's UDP bind with a sender of its own for IPv6.
//
// The library keeps the memory for the addresses that it sends to, of IPv4 and of
// IPv6 in one pool. It copies an IPv6 address into the four bytes that one of IPv4
// has left, and makes it sixteen after that: what it sends to has the first four
// bytes of the address and twelve of another one. A bind that sends to IPv6 alone
// does it right.
type families struct {
	*conn.StdNetBind
	// six has the sockets of StdNetBind for IPv6, and a pool of its own; nil while
	// it is closed.
	six atomic.Pointer[conn.StdNetBind]
}

// withFamilies returns a bind that is right for both families, or b itself where
// it is another one.
func withFamilies(b conn.Bind) conn.Bind {
	if std, ok := b.(*conn.StdNetBind); ok {
		return &families{StdNetBind: std}
	}
	return b
}

// Open implements conn.Bind.
func (f *families) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := f.StdNetBind.Open(port)
	if err == nil {
		f.six.Store(sender6(f.StdNetBind))
	}
	return fns, actual, err
}

// Close implements conn.Bind.
func (f *families) Close() error {
	f.six.Store(nil)
	return f.StdNetBind.Close()
}

// Send implements conn.Bind.
func (f *families) Send(packets [][]byte, ep conn.Endpoint) error {
	if ep.DstIP().Is6() {
		if six := f.six.Load(); six != nil {
			return six.Send(packets, ep)
		}
	}
	return f.StdNetBind.Send(packets, ep)
}

// control6 calls do for the IPv6 socket, if there is one.
func (f *families) control6(do func(fd int)) {
	six := f.six.Load()
	if six == nil {
		return
	}
	field := reflect.ValueOf(six).Elem().FieldByName("ipv6")
	c := *(**net.UDPConn)(unsafe.Pointer(field.UnsafeAddr()))
	if c == nil {
		return
	}
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { do(int(fd)) }) // it fails when it is closed
	}
}

// sender6 returns a bind that sends on the IPv6 sockets of an open one. Nothing of
// it is ever opened or closed. It is nil for a version of the library that keeps
// its sockets elsewhere, which a test would notice.
func sender6(of *conn.StdNetBind) *conn.StdNetBind {
	six, ok := conn.NewStdNetBind().(*conn.StdNetBind)
	if !ok {
		return nil
	}
	from, to := reflect.ValueOf(of).Elem(), reflect.ValueOf(six).Elem()
	for _, name := range []string{"ipv6", "ipv6PC", "ipv6TxOffload", "blackhole6"} {
		a, b := from.FieldByName(name), to.FieldByName(name)
		if !a.IsValid() {
			return nil
		}
		// The library has no other way to its sockets.
		reflect.NewAt(b.Type(), unsafe.Pointer(b.UnsafeAddr())).Elem().Set(reflect.NewAt(a.Type(), unsafe.Pointer(a.UnsafeAddr())).Elem())
	}
	return six
}
