// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/meshgate/meshgate/node/mesh"
)

// hostTUN is a network interface of the host. The kernel delivers and
// forwards; packets that it may not forward never reach it.
type hostTUN struct {
	tun.Device
	filter  *filter
	metrics *metrics
	events  chan tun.Event
	relayed chan struct{} // closed when relayEvents is done
}

var _ plane = (*hostTUN)(nil)

// newHostTUN creates an interface. It has neither addresses nor routes, and is down.
func newHostTUN(name string, mtu int, f *filter, m *metrics) (*hostTUN, error) {
	dev, err := createTUN(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("create interface %q: %w", name, err)
	}
	h := &hostTUN{
		Device: dev, filter: f, metrics: m,
		events: make(chan tun.Event), relayed: make(chan struct{}),
	}
	go h.relayEvents() // wait waits for it
	return h, nil
}

// relayEvents passes on that the MTU changed. That the interface went up or
// down does not matter: Set and Close say when WireGuard runs, and the library
// reports the state before the first change late.
func (h *hostTUN) relayEvents() {
	defer close(h.relayed)
	defer close(h.events)
	for e := range h.Device.Events() {
		if e &= tun.EventMTUUpdate; e != 0 {
			h.events <- e
		}
	}
}

// Events implements tun.Device.
func (h *hostTUN) Events() <-chan tun.Event { return h.events }

// wait implements plane.
func (h *hostTUN) wait() { <-h.relayed }

// Read implements tun.Device.
func (h *hostTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := h.Device.Read(bufs, sizes, offset)
	h.filter.load().observe(bufs, sizes[:n], offset)
	return n, err
}

// Write implements tun.Device: it passes on what the kernel may have. The
// device makes no use of bufs afterwards, so it is filtered in place.
func (h *hostTUN) Write(bufs [][]byte, offset int) (int, error) {
	rules := h.filter.load()
	pass := bufs[:0]
	for _, buf := range bufs {
		switch v := rules.judge(buf[offset:]); v {
		case deliver:
			pass = append(pass, buf)
		case forward:
			pass = append(pass, buf)
			h.metrics.forwarded.Inc()
		default:
			h.metrics.drop(v.reason())
		}
	}
	if len(pass) == 0 {
		return 0, nil
	}
	return h.Device.Write(pass, offset)
}

// setMTU implements plane. An interface of the host is its administrator's.
func (*hostTUN) setMTU(int) error {
	return fmt.Errorf("%w: the MTU of an interface is set on the host", mesh.ErrUnsupported)
}

// setAddresses implements plane. The interface's addresses are up to others.
func (*hostTUN) setAddresses([]netip.Addr) error { return nil }

// dial implements plane.
func (h *hostTUN) dial(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	src, ok := h.filter.load().source(dst.Addr())
	if !ok {
		return nil, syscall.EADDRNOTAVAIL
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	}
	return d.DialContext(ctx, network, dst.String())
}

// listen implements plane.
func (*hostTUN) listen(ctx context.Context, local netip.AddrPort) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", local.String())
}

// listenPacket implements plane.
func (*hostTUN) listenPacket(ctx context.Context, local netip.AddrPort) (net.PacketConn, error) {
	return new(net.ListenConfig).ListenPacket(ctx, "udp", local.String())
}
