// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// A lean device is like any other to its peers.
func TestLean_CarriesStreams(t *testing.T) {
	for _, lean := range []bool{true, false} {
		t.Run(fmt.Sprintf("to a lean one %t", lean), func(t *testing.T) {
			a, b := wgtest.New(t, 1, wg.Options{Lean: true}), wgtest.New(t, 2, wg.Options{Lean: lean})
			a.SetPeers(b.Peer())
			b.SetPeers(a.Peer())
			for _, addr := range []netip.Addr{b.IPv4, b.IPv6} {
				client, server := connect(t, a, b, addr)
				transfer(t, client, server, 1<<20)
				transfer(t, server, client, 1<<20)
			}
			if at := only(t, a).Endpoint; at != loopback(b).String() {
				t.Errorf("the peer is at %s", at)
			}
		})
	}
}

// It moves to another port, and keeps its connections.
func TestLean_MovesThePort(t *testing.T) {
	a, b := wgtest.New(t, 1, wg.Options{Lean: true}), wgtest.New(t, 2, wg.Options{})
	a.SetPeers(b.Peer())
	b.SetPeers(withoutEndpoint(a.Peer()))
	client, server := connect(t, a, b, b.IPv4)
	before, spare := a.ListenPort(), wgtest.New(t, 3, wg.Options{})
	port := spare.ListenPort()
	if err := spare.Close(); err != nil {
		t.Fatal(err)
	}
	a.Config.ListenPort = port
	a.Apply()
	if a.ListenPort() == before {
		t.Fatalf("still at port %d", before)
	}
	transfer(t, client, server, 1<<16)
	transfer(t, server, client, 1<<16)
	if at := only(t, b).Endpoint; at != loopback(a).String() {
		t.Errorf("the peer knows it at %s", at)
	}
}

// Many of them have room in a process.
func TestLean_IsSmall(t *testing.T) {
	const count = 8
	cost := func(o wg.Options) int {
		before := used()
		for i := range byte(count) {
			wgtest.New(t, i+1, o)
		}
		return (used() - before) / count
	}
	lean, usual := cost(wg.Options{Lean: true}), cost(wg.Options{})
	t.Logf("a lean device takes %d KiB, a usual one %d KiB", lean>>10, usual>>10)
	if lean > 1<<20 || lean*8 > usual {
		t.Errorf("a lean device takes %d KiB, a usual one %d KiB", lean>>10, usual>>10)
	}
}
