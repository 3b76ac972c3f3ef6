// SPDX-License-Identifier: Apache-2.0

// Package wgtest makes WireGuard devices for tests: netstack devices that are
// peers over the loopback interface, and packet connections in memory.
package wgtest

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
)

// Node is a device that is closed with its test.
type Node struct {
	*wg.Device
	// IPv4 and IPv6 are its addresses: 10.99.0.N and fd99::N:0.
	IPv4, IPv6 netip.Addr
	// Config is what the device runs; Apply puts changes of it in force.
	Config wg.Config
	tb     testing.TB
}

// lazy is true while nodes are to have idle peers only.
var lazy atomic.Bool

// Lazy makes all nodes of a test and its subtests from now on keep no more peers
// ready than they must, unless their options say how many. No other test may run
// beside it.
func Lazy(tb testing.TB) {
	tb.Helper()
	lazy.Store(true)
	tb.Cleanup(func() { lazy.Store(false) })
}

// New makes a node without peers. Numbers tell nodes of one test apart.
func New(tb testing.TB, number byte, o wg.Options) *Node {
	tb.Helper()
	if o.Resident == 0 && lazy.Load() {
		o.Resident = -1
	}
	key, err := mesh.GenerateKey()
	if err != nil {
		tb.Fatalf("generate key: %v", err)
	}
	n := &Node{
		tb:   tb,
		IPv4: netip.AddrFrom4([4]byte{10, 99, 0, number}),
		IPv6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 13: number}),
	}
	n.Config = wg.Config{
		PrivateKey: key.WireGuard(),
		Addresses:  []netip.Prefix{netip.PrefixFrom(n.IPv4, 32), netip.PrefixFrom(n.IPv6, 112)},
	}
	if n.Device, err = wg.New(o); err != nil {
		tb.Fatalf("new device: %v", err)
	}
	tb.Cleanup(func() {
		if err := n.Close(); err != nil {
			tb.Errorf("close device: %v", err)
		}
	})
	n.Apply()
	return n
}

// Key returns the node's public key.
func (n *Node) Key() mesh.WireGuardKey { return n.Config.PrivateKey.Public() }

// Apply sets Config.
func (n *Node) Apply() {
	n.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Set(ctx, n.Config); err != nil {
		n.tb.Fatalf("set device: %v", err)
	}
}

// Peer returns the node as its peers configure it: at its UDP port on
// 127.0.0.1, with its own addresses and those of the networks behind it.
func (n *Node) Peer(behind ...netip.Prefix) wg.Peer {
	allowed := make([]netip.Prefix, 0, len(n.Config.Addresses)+len(behind))
	for _, p := range n.Config.Addresses {
		allowed = append(allowed, p.Masked())
	}
	return wg.Peer{
		Key:        n.Key(),
		Endpoint:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.ListenPort()).String(),
		AllowedIPs: append(allowed, behind...),
	}
}

// SetPeers replaces the node's peers.
func (n *Node) SetPeers(peers ...wg.Peer) {
	n.tb.Helper()
	n.Config.Peers = peers
	n.Apply()
}

// Pair makes two netstack nodes that are peers of each other.
func Pair(tb testing.TB) (a, b *Node) {
	tb.Helper()
	a, b = New(tb, 1, wg.Options{}), New(tb, 2, wg.Options{})
	a.SetPeers(b.Peer())
	b.SetPeers(a.Peer())
	return a, b
}

// Star makes a netstack hub and two leaves that reach each other through it,
// as far as allow lets them; nil allows all.
func Star(tb testing.TB, allow func(mesh.Packet) bool) (hub, a, b *Node) {
	tb.Helper()
	hub, a, b = New(tb, 1, wg.Options{}), New(tb, 2, wg.Options{}), New(tb, 3, wg.Options{})
	hub.Config.Allow = allow
	hub.SetPeers(a.Peer(), b.Peer())
	everything := []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd99::/32")}
	a.SetPeers(hub.Peer(everything...))
	b.SetPeers(hub.Peer(everything...))
	return hub, a, b
}
