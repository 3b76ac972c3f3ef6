// SPDX-License-Identifier: Apache-2.0

//go:build linux && !android

package wg

import (
	"bytes"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// meetBind opens the bind of a device, and a socket at an address of this host that
// has called it at another one. It returns the endpoint that the bind got for it.
func meetBind(t *testing.T, caller, called string) (f *fragmenting, c *net.UDPConn, ep conn.Endpoint) {
	t.Helper()
	f = newNative().(*fragmenting)
	fns, port, err := f.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(caller), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr(called), port)
	if _, err := c.WriteToUDPAddrPort([]byte("call"), at); err != nil {
		t.Fatal(err)
	}
	receive := fns[0]
	if at.Addr().Is6() {
		receive = fns[len(fns)-1]
	}
	bufs, sizes := buffers(conn.IdealBatchSize, 1<<16)
	eps := make([]conn.Endpoint, len(bufs))
	if n, err := receive(bufs, sizes, eps); n != 1 || err != nil {
		t.Fatalf("received %d datagrams, %v", n, err)
	}
	ours := eps[0].(*conn.StdNetEndpoint)
	if called != caller {
		leaveFrom(ours, at.Addr())
	}
	return f, c, ours
}

// leaveFrom makes an endpoint one whose packets leave from an IPv4 address of ours.
// Where the kernel joins what arrives, the library does not note that itself.
func leaveFrom(ep *conn.StdNetEndpoint, from netip.Addr) {
	src, data := controlMessage(make([]byte, 0, controlBytes), unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
	copy(data[4:], from.AsSlice())
	field := reflect.ValueOf(ep).Elem().FieldByName("src")
	*(*[]byte)(unsafe.Pointer(field.UnsafeAddr())) = src
}

// All datagrams arrive as they were, in their order, from the address that was
// called, whatever their sizes.
func TestGatherer_SendsBursts(t *testing.T) {
	for _, at := range []struct{ caller, called string }{{"127.0.0.1", "127.0.0.2"}, {"::1", "::1"}} {
		f, c, ep := meetBind(t, at.caller, at.called)
		for name, sizes := range map[string][]int{
			"two":                    {100, 100},
			"more than the kernel":   slices.Repeat([]int{500}, 70),
			"more than a link takes": slices.Repeat([]int{1452}, 50),
			"a smaller one":          {900, 900, 100, 100, 900, 50},
			"growing":                {100, 200, 200, 300},
			"large":                  {40000, 30000, 30000},
		} {
			var packets [][]byte
			for i, size := range sizes {
				packets = append(packets, randomBytes(size, uint64(i)))
			}
			if n := f.gather.Load().send(packets, ep); n != len(packets) {
				t.Fatalf("%s, %s: sent %d datagrams of %d", at.called, name, n, len(packets))
			}
			buf := make([]byte, 1<<16)
			for i, want := range packets {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil || !bytes.Equal(buf[:n], want) || from.Addr().Unmap().String() != at.called {
					t.Fatalf("%s, %s: datagram %d has %d bytes from %v, %v; want %d", at.called, name, i, n, from, err, len(want))
				}
			}
		}
	}
}

// What the kernel refuses is left to the library, with what comes after.
func TestGatherer_LeavesTheRest(t *testing.T) {
	f, c, ep := meetBind(t, "127.0.0.1", "127.0.0.1")
	packets := [][]byte{{1}, {2}, make([]byte, 65535), {3}}
	if n := f.gather.Load().send(packets, ep); n != 2 {
		t.Errorf("sent %d packets, want the first two", n)
	}
	buf := make([]byte, 10)
	for want := range byte(2) {
		if n, err := c.Read(buf); n != 1 || err != nil || buf[0] != want+1 {
			t.Errorf("read %d bytes %v, %v", n, buf[:n], err)
		}
	}
	for _, other := range []conn.Endpoint{nil, &path{}} {
		if n := f.gather.Load().send(packets, other); n != 0 {
			t.Errorf("sent %d packets to what is no address", n)
		}
	}
	g := f.gather.Load()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n := g.send(packets[:2], ep); n != 0 || f.gather.Load() != nil {
		t.Errorf("sent %d packets after the end", n)
	}
}

// Through a network card that cannot, the library sends from then on.
func TestGatherer_StopsWhereCardsCannot(t *testing.T) {
	f, _, ep := meetBind(t, "127.0.0.1", "127.0.0.1")
	g := f.gather.Load()
	b := gathered.Get().(*gathering)
	b.put = func(uintptr) bool { b.errno = unix.EIO; return true }
	at := &g.four
	if n := b.through(at, [][]byte{{1}, {2}}, ep.(*conn.StdNetEndpoint)); n != 0 || !at.off.Load() {
		t.Errorf("sent %d, off is %t", n, at.off.Load())
	}
	if n := g.send([][]byte{{1}, {2}}, ep); n != 0 {
		t.Errorf("sent %d afterwards", n)
	}
}
