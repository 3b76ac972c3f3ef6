// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
	"github.com/prometheus/client_golang/prometheus"
)

func TestHub_ForwardsWhatIsAllowed(t *testing.T) {
	_, a, b := wgtest.Star(t, nil)
	for _, addr := range []netip.Addr{b.IPv4, b.IPv6} {
		client, server := connect(t, a, b, addr)
		transfer(t, client, server, 2<<20)
		transfer(t, server, client, 1<<20)
	}
}

func TestHub_AsksForEachDirection(t *testing.T) {
	var asked, allowed atomic.Int64
	reg := prometheus.NewRegistry()
	hub, a, b := wgtest.New(t, 1, wg.Options{Registerer: reg}), wgtest.New(t, 2, wg.Options{}), wgtest.New(t, 3, wg.Options{})
	hub.Config.Allow = func(p mesh.Packet) bool {
		asked.Add(1)
		return p.Src == a.IPv4 && p.Dst == b.IPv4 || p.Src == b.IPv4 && p.Dst == a.IPv4 && allowed.Load() == 1
	}
	hub.SetPeers(a.Peer(), b.Peer())
	all := netip.MustParsePrefix("10.99.0.0/16")
	a.SetPeers(hub.Peer(all))
	b.SetPeers(hub.Peer(all))
	l, err := b.Listen(timeout(t), "tcp", netip.AddrPortFrom(b.IPv4, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	dialled := make(chan error, 1)
	go func() {
		c, err := a.DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	eventually(t, "an answer that is denied", func() bool {
		return metric(t, reg, "meshgate_wg_forwarded_packets_total", "") > 0 && metric(t, reg, "meshgate_wg_dropped_packets_total", "denied") > 0
	})
	cancel()
	if err := <-dialled; !errors.Is(err, context.Canceled) {
		t.Fatalf("dial without answers allowed = %v, want Canceled", err)
	}
	allowed.Store(1)
	c, err := a.DialContext(timeout(t), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// What is for the hub itself is not forwarded.
	before := asked.Load()
	client, server := connect(t, a, hub, hub.IPv4)
	transfer(t, client, server, 1<<16)
	if client, server := connect(t, hub, a, a.IPv4); client != nil {
		transfer(t, client, server, 1<<16)
	}
	if before < 3 {
		t.Errorf("Allow was asked %d times", before)
	}
}

func TestHub_AllowChangesAtOnce(t *testing.T) {
	reg := prometheus.NewRegistry()
	hub, a, b := wgtest.New(t, 1, wg.Options{Registerer: reg}), wgtest.New(t, 2, wg.Options{}), wgtest.New(t, 3, wg.Options{})
	hub.SetPeers(a.Peer(), b.Peer())
	all := netip.MustParsePrefix("10.99.0.0/16")
	a.SetPeers(hub.Peer(all))
	b.SetPeers(hub.Peer(all))
	client, server := connect(t, a, b, b.IPv4)
	if _, err := client.Write([]byte("before")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if _, err := server.Read(buf); err != nil {
		t.Fatal(err)
	}
	hub.Config.Allow = func(mesh.Packet) bool { return false }
	hub.Apply()
	if _, err := client.Write([]byte("after")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a denied packet", func() bool {
		return metric(t, reg, "meshgate_wg_dropped_packets_total", "denied") > 0
	})
	if err := server.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(buf); err == nil {
		t.Errorf("read %q through a hub that denies", buf[:n])
	}
}
