// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/device"
)

// What is padded fits no link of the MTU, and as little more as WireGuard allows.
func TestPaddedTo_IsMoreThanTheLinkHasRoomFor(t *testing.T) {
	for _, mtu := range []int{1280, 1281, 1400, 1499, 1500, 1501, 9000, largestMTU} {
		size := paddedTo(mtu)
		outer := outerHeaders + device.MessageTransportSize + size
		if outer <= mtu || outer > mtu+device.PaddingMultiple || size%device.PaddingMultiple != 0 {
			t.Errorf("MTU %d: %d bytes make packets of %d", mtu, size, outer)
		}
	}
	if got, want := paddedTo(1000), paddedTo(minMTU); got != want {
		t.Errorf("below the least: %d, want %d", got, want)
	}
	if got := paddedTo(65536); got != 0 {
		t.Errorf("loopback: %d, want none", got)
	}
}

// largePlane has packets of some sizes for one destination.
type largePlane struct {
	plane
	to    netip.Addr
	sizes []int
}

func (l *largePlane) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, n := range l.sizes {
		copy(bufs[i][offset:], packetTo(l.to))
		sizes[i] = n
	}
	return len(l.sizes), nil
}

func TestGate_PadsWhatHasNoRoom(t *testing.T) {
	dst := netip.MustParseAddr("10.1.0.1")
	g := testGate(t, false, nil)
	p := &path{bind: new(bind)}
	_, to := g.filter.load().routes.find(dst)
	to.leads.Store(p)
	g.paths = &p.bind.paths
	bufs, sizes := make([][]byte, 4), make([]int, 4)
	for i := range bufs {
		bufs[i] = make([]byte, 16+1424+32)
	}
	bufs[3] = bufs[3][:16+1424+31] // no room for WireGuard behind it
	read := func(dst netip.Addr, want ...int) {
		t.Helper()
		for _, b := range bufs {
			copy(b, bytes.Repeat([]byte{0xFF}, len(b)))
		}
		g.plane = &largePlane{to: dst, sizes: []int{1200, 1201, 1424, 1300}}
		if _, err := g.Read(bufs, sizes, 16); err != nil {
			t.Fatal(err)
		}
		for i, n := range want {
			if sizes[i] != n {
				t.Errorf("packet %d has %d bytes, want %d", i, sizes[i], n)
			}
		}
	}
	read(dst, 1200, 1201, 1424, 1300)
	p.pad(paddedTo(1500))
	read(dst, 1200, 1424, 1424, 1300)
	if pad := bufs[1][16+1201 : 16+1424]; len(bytes.Trim(pad, "\x00")) > 0 {
		t.Error("the padding says something")
	}
	read(netip.MustParseAddr("10.1.0.2"), 1200, 1201, 1424, 1300) // another peer
	read(netip.MustParseAddr("192.0.2.1"), 1200, 1201, 1424, 1300)
	p.pad(0)
	read(dst, 1200, 1201, 1424, 1300)
	if n := g.paths.narrow.Load(); n != 0 {
		t.Errorf("%d narrow paths are left", n)
	}
}

// Nothing is padded on loopback, nor on a path that is closed or leads nowhere.
func TestPath_IsNarrowWhereItLeads(t *testing.T) {
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := newBind(newNative(), sizesOf(false), newFramePool(minFrame), nil, m)
	p, err := b.openPath([32]byte{1}, netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	want := func(narrow bool) {
		t.Helper()
		if got := p.padded.Load() != 0; got != narrow || b.paths.narrow.Load() != map[bool]int32{true: 1}[narrow] {
			t.Errorf("narrow is %v, and %d of all", got, b.paths.narrow.Load())
		}
	}
	p.setNarrow(true)
	want(false) // it leads nowhere
	for _, to := range []struct {
		addr   string
		narrow bool
	}{{"192.0.2.1:9", true}, {"[2001:db8::1]:9", true}, {"[::1]:9", false}, {"[2001:db8::1]:9", true}} {
		p.route(Route{NativeSocket, netip.MustParseAddrPort(to.addr)})
		p.setNarrow(true)
		want(to.narrow)
	}
	p.setNarrow(false)
	want(false)
	p.setNarrow(true)
	p.end(netip.AddrPort{})
	want(false)
	p.setNarrow(true)
	want(false)
}
