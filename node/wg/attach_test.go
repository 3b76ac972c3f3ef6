// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
	"github.com/prometheus/client_golang/prometheus"
)

// withoutEndpoint is a peer that nobody can find by UDP.
func withoutEndpoint(p wg.Peer) wg.Peer {
	p.Endpoint = ""
	return p
}

func TestAttach_CarriesHandshakeAndStream(t *testing.T) {
	a, b := wgtest.New(t, 1, wg.Options{}), wgtest.New(t, 2, wg.Options{})
	a.SetPeers(withoutEndpoint(b.Peer()))
	b.SetPeers(withoutEndpoint(a.Peer()))
	x, y := wgtest.Pipe()
	detachA, err := a.AttachPeer(b.Key(), x) // a knows who is there
	if err != nil {
		t.Fatal(err)
	}
	detachB, err := b.Attach(y) // b finds out
	if err != nil {
		t.Fatal(err)
	}
	client, server := connect(t, a, b, b.IPv4)
	transfer(t, client, server, 3<<20)
	transfer(t, server, client, 3<<20)
	if got := only(t, b).Endpoint; !strings.HasPrefix(got, "attached:") {
		t.Errorf("endpoint %q, want the connection", got)
	}
	// A Set of the same keeps the path.
	a.Apply()
	b.Apply()
	ping(t, b, a)
	detachA()
	detachB()
	if _, err := x.ReadPacket(make([]byte, 2000)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestAttach_FallsBackToTheConfiguredEndpoint(t *testing.T) {
	a, b := wgtest.Pair(t)
	x, y := wgtest.Pipe()
	if _, err := b.Attach(y); err != nil {
		t.Fatal(err)
	}
	detach, err := a.AttachPeer(b.Key(), x)
	if err != nil {
		t.Fatal(err)
	}
	ping(t, a, b)
	if got := only(t, a).Endpoint; !strings.HasPrefix(got, "attached:") {
		t.Errorf("endpoint %q, want the connection", got)
	}
	detach()
	a.Apply()
	if got := only(t, a).Endpoint; got != b.Peer().Endpoint {
		t.Errorf("endpoint %q after the connection is gone, want %q", got, b.Peer().Endpoint)
	}
	ping(t, a, b)
}

func TestAttachPeer_UnknownPeer(t *testing.T) {
	a := wgtest.New(t, 1, wg.Options{})
	x, y := wgtest.Pipe()
	if _, err := a.AttachPeer(mesh.WireGuardKey{1}, x); !errors.Is(err, mesh.ErrNotFound) {
		t.Errorf("AttachPeer = %v, want ErrNotFound", err)
	}
	if err := y.WritePacket([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestAttach_AfterCloseClosesTheConnection(t *testing.T) {
	a := wgtest.New(t, 1, wg.Options{})
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for _, attach := range []func(wg.PacketConn) (func(), error){
		a.Attach, func(c wg.PacketConn) (func(), error) { return a.AttachPeer(mesh.WireGuardKey{1}, c) },
	} {
		x, y := wgtest.Pipe()
		if _, err := attach(x); !errors.Is(err, net.ErrClosed) {
			t.Errorf("attach = %v, want ErrClosed", err)
		}
		if err := y.WritePacket([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the connection is still open: %v", err)
		}
	}
}

func TestClose_ClosesAttachedConnections(t *testing.T) {
	a := wgtest.New(t, 1, wg.Options{})
	x, y := wgtest.Pipe()
	detach, err := a.Attach(x)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := y.WritePacket([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still open: %v", err)
	}
	detach()
}

// garbage is a random frame, half of the time one that looks like WireGuard.
func garbage(random *rand.Rand) []byte {
	b := make([]byte, random.IntN(2000))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	if len(b) >= 4 && random.IntN(2) == 0 {
		binary.LittleEndian.PutUint32(b, 1+random.Uint32N(4))
		if sizes := []int{148, 92, 64, len(b)}; random.IntN(2) == 0 {
			b = append(b, make([]byte, 148)...)[:sizes[b[0]-1]]
		}
	}
	return b
}

func TestAttach_GarbageHasNoEffect(t *testing.T) {
	reg := prometheus.NewRegistry()
	a, b := wgtest.New(t, 1, wg.Options{Registerer: reg}), wgtest.New(t, 2, wg.Options{})
	a.SetPeers(b.Peer())
	b.SetPeers(a.Peer())
	client, server := connect(t, a, b, b.IPv4)
	x, y := wgtest.Pipe()
	detach, err := a.Attach(x)
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		random := rand.New(rand.NewPCG(1, 2))
		for range 10_000 {
			if err := y.WritePacket(garbage(random)); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	transfer(t, client, server, 1<<20)
	transfer(t, server, client, 1<<20)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	eventually(t, "all frames to be looked at", func() bool {
		dropped := metric(t, reg, "meshgate_wg_dropped_packets_total", "attached_garbage") +
			metric(t, reg, "meshgate_wg_dropped_packets_total", "attached_handshake_rate")
		return dropped > 4000
	})
	if got := only(t, a); got.Endpoint != b.Peer().Endpoint {
		t.Errorf("peer's endpoint became %q", got.Endpoint)
	}
	detach()
	if got := metric(t, reg, "meshgate_wg_attached_conns", ""); got != 0 {
		t.Errorf("%v connections attached, want 0", got)
	}
	ping(t, a, b)
}

func TestAttach_HubServesAttachedLeaves(t *testing.T) {
	hub, a, b := wgtest.Star(t, func(mesh.Packet) bool { return true })
	// Leaf b moves from UDP to a connection, as a browser would come.
	b.SetPeers(withoutEndpoint(hub.Peer(netip.MustParsePrefix("10.99.0.0/16"))))
	hub.SetPeers(a.Peer(), withoutEndpoint(b.Peer()))
	x, y := wgtest.Pipe()
	if _, err := hub.Attach(x); err != nil {
		t.Fatal(err)
	}
	if _, err := b.AttachPeer(hub.Key(), y); err != nil {
		t.Fatal(err)
	}
	client, server := connect(t, b, a, a.IPv4)
	transfer(t, client, server, 1<<20)
	transfer(t, server, client, 1<<20)
}
