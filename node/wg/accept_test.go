// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

func TestDevice_AcceptDecidesAboutItsOwnAddresses(t *testing.T) {
	reg := prometheus.NewRegistry()
	a, b := wgtest.New(t, 1, wg.Options{Registerer: reg}), wgtest.New(t, 2, wg.Options{})
	a.Config.Accept = func(p mesh.Packet) bool {
		return p.Protocol == mesh.ProtocolTCP && (p.DstPort == 443 || p.Kind == mesh.PacketContinues)
	}
	a.SetPeers(b.Peer())
	b.SetPeers(a.Peer())
	for _, c := range []struct {
		addr netip.Addr
		port uint16
		want error
	}{
		{a.IPv4, 443, nil}, {a.IPv6, 443, nil},
		{a.IPv4, 22, context.DeadlineExceeded}, {a.IPv6, 22, context.DeadlineExceeded},
	} {
		at := netip.AddrPortFrom(c.addr, c.port).String()
		l, err := a.Listen(timeout(t), "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := timeout(t), context.CancelFunc(func() {})
		if c.want != nil {
			ctx, cancel = context.WithTimeout(ctx, time.Second)
		}
		conn, err := b.DialContext(ctx, "tcp", at)
		cancel()
		if !errors.Is(err, c.want) {
			t.Errorf("dial %s: %v", at, err)
		} else if err == nil {
			conn.Close()
		}
	}
	if metric(t, reg, "meshgate_wg_dropped_packets_total", "denied") == 0 {
		t.Error("refused packets are not counted")
	}
}

// Sent is told of a packet before an answer to it can come in, of all that the
// device sends itself and of nothing that it forwards.
func TestDevice_SentIsToldOfOwnPackets(t *testing.T) {
	hub, a, b := wgtest.Star(t, nil)
	var mu sync.Mutex
	sent := make(map[netip.AddrPort]bool)
	hub.Config.Sent = func(p mesh.Packet) {
		mu.Lock()
		defer mu.Unlock()
		if p.Src != hub.IPv4 && p.Src != hub.IPv6 {
			t.Errorf("told of a packet of %v", p.Src)
		}
		sent[netip.AddrPortFrom(p.Dst, p.DstPort)] = true
	}
	hub.Config.Accept = func(p mesh.Packet) bool {
		mu.Lock()
		defer mu.Unlock()
		return sent[netip.AddrPortFrom(p.Src, p.SrcPort)]
	}
	hub.Apply()
	forwarded, server := connect(t, a, b, b.IPv4)
	transfer(t, forwarded, server, 1<<16)
	for _, addr := range []netip.Addr{a.IPv4, a.IPv6} {
		client, server := connect(t, hub, a, addr)
		transfer(t, client, server, 1<<20)
		transfer(t, server, client, 1<<20)
	}
}
