// SPDX-License-Identifier: Apache-2.0

package wg

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// TestAccept_ProbesIdleConnections shows that a connection whose peer vanished
// ends by itself on either side.
func TestAccept_ProbesIdleConnections(t *testing.T) {
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNetstack("test", 1420, sizesOf(false), new(filter), newFramePool(minFrame), m)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	own := netip.MustParseAddr("10.99.0.1")
	if err := n.setAddresses([]netip.Addr{own}); err != nil {
		t.Fatal(err)
	}
	l, err := n.listen(t.Context(), netip.AddrPortFrom(own, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := n.dial(t.Context(), "tcp", netip.AddrPortFrom(own, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	found := 0
	for _, registered := range n.stack.RegisteredEndpoints() {
		ep, ok := registered.(tcpip.Endpoint)
		if !ok {
			continue
		}
		if _, err := ep.GetRemoteAddress(); err != nil {
			continue // the listener
		}
		found++
		var control tcpip.CongestionControlOption
		if err := ep.GetSockOpt(&control); err != nil || control != "reno" {
			t.Errorf("congestion control %q, %v: that of others may come to a halt", control, err)
		}
		var idle tcpip.KeepaliveIdleOption
		if err := ep.GetSockOpt(&idle); err != nil || !ep.SocketOptions().GetKeepAlive() || int64(idle) != int64(keepaliveIdle) {
			t.Errorf("a connection is probed: %v, after %v, %v", ep.SocketOptions().GetKeepAlive(), idle, err)
		}
	}
	if found != 2 {
		t.Errorf("%d connections found, want both ends", found)
	}
}
