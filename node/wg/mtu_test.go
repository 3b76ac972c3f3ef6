// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/meshgate/meshgate/node/mesh"
)

// offered is the segment size that a connection over IPv4 begins with.
func offered(t *testing.T, n *netstack) uint16 {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = n.dial(ctx, "tcp", netip.MustParseAddrPort("172.16.0.2:80")) // nobody answers
	}()
	defer func() { cancel(); <-done }()
	bufs, sizes := [][]byte{make([]byte, 2048)}, []int{0}
	for {
		if _, err := n.Read(bufs, sizes, 0); err != nil {
			t.Fatal(err)
		}
		segment := header.TCP(header.IPv4(bufs[0][:sizes[0]]).Payload())
		if segment.Flags() == header.TCPFlagSyn {
			return header.ParseSynOptions(segment.Options(), false).MSS
		}
	}
}

func TestNetstack_ChangesItsMTU(t *testing.T) {
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNetstack("mesh", 1420, sizesOf(false), new(filter), newFramePool(minFrame), m)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.setAddresses([]netip.Addr{netip.MustParseAddr("172.16.0.1")}); err != nil {
		t.Fatal(err)
	}
	for _, mtu := range []int{1420, 1300, 1280, 1400} {
		if err := n.setMTU(mtu); err != nil {
			t.Fatal(err)
		}
		if got, _ := n.MTU(); got != mtu {
			t.Errorf("mtu %d, want %d", got, mtu)
		}
		if got := offered(t, n); int(got) != mtu-40 {
			t.Errorf("mtu %d: a segment size of %d", mtu, got)
		}
	}
	// However often it changed, the library is told once, and does not hold it up.
	if event := <-n.Events(); event != tun.EventMTUUpdate || len(n.Events()) != 0 {
		t.Errorf("told of %v, and %d more", event, len(n.Events()))
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.setMTU(1300); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestDevice_SetMTU(t *testing.T) {
	d, err := New(Options{Mode: ModeNetstack, MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, mtu := range []int{1279, 1401} {
		if err := d.SetMTU(mtu); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%d: %v", mtu, err)
		}
	}
	if err := d.SetMTU(1280); err != nil {
		t.Error(err)
	}
}
