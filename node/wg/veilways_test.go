// SPDX-License-Identifier: Apache-2.0

package wg_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/wgtest"
)

// Two nodes that reach each other by way of a hub, and over a session of their own,
// change between the two whenever one of them wants to, and no packet is lost.
func TestVeil_NothingIsLostBetweenTwoWays(t *testing.T) {
	hub, a, b := wgtest.Star(t, nil)
	begin(t, a, hub)
	begin(t, b, hub)
	all := []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd99::/16")}
	lead := func(from, to *wgtest.Node, on bool) {
		p := to.Peer()
		p.Veiled, p.AllowedIPs, p.Veil = p.AllowedIPs, nil, on
		from.SetPeers(hub.Peer(all...), p)
	}
	lead(b, a, false)
	lead(a, b, true)
	begin(t, a, b)
	lead(a, b, false)
	const packets, inFlight, change = 500, 32, 25
	ctx := timeout(t)
	turns := make(chan struct{}, 4*packets/change)
	var g errgroup.Group
	for _, ends := range [][2]*wgtest.Node{{a, b}, {b, a}} {
		for _, to := range []netip.Addr{ends[1].IPv4, ends[1].IPv6} {
			in, err := ends[1].ListenPacket(ctx, "udp", netip.AddrPortFrom(to, 7).String())
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			out, err := ends[0].DialContext(ctx, "udp", netip.AddrPortFrom(to, 7).String())
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			g.Go(func() error { return fly(ctx, out, in, packets, inFlight, change, turns) })
		}
	}
	over := make(chan error, 1)
	go func() { over <- g.Wait() }()
	for n := 0; ; n++ {
		select {
		case err := <-over:
			if err != nil {
				t.Fatal(err)
			}
			if n < 4 {
				t.Errorf("the ways changed %d times only", n)
			}
			direct := bytesTo(t, a, b.Key())
			if direct < packets*8 {
				t.Errorf("%d bytes went directly", direct)
			}
			return
		case <-turns:
			lead(a, b, n&1 == 0)
			lead(b, a, n&2 == 0)
		}
	}
}

// begin makes two nodes have a session that the first one asked for and both use.
// When two ask each other at once WireGuard loses packets, for seconds in one
// direction at worst. Who counts packets begins all sessions first, also those with
// a hub: that asks for one itself as soon as something for the other node comes.
func begin(t *testing.T, from, to *wgtest.Node) {
	t.Helper()
	if err := connectUDP(t, from, to.IPv4)(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a session", func() bool {
		return !statsOf(t, from, to.Key()).LastHandshake.IsZero() && !statsOf(t, to, from.Key()).LastHandshake.IsZero()
	})
}

// fly sends numbered packets of which so many are under way at most, and tells turns
// each time that some more have come.
func fly(ctx context.Context, out net.Conn, in net.PacketConn, packets, inFlight, each int, turns chan<- struct{}) error {
	room := make(chan struct{}, inFlight)
	landed := make(chan error, 1)
	go func() {
		came, b := make(map[uint64]bool), make([]byte, 16)
		for len(came) < packets {
			n, _, err := in.ReadFrom(b)
			if err != nil || n != 8 {
				landed <- errors.Join(err, errors.New("a packet that nobody sent"))
				return
			}
			came[binary.BigEndian.Uint64(b)] = true
			if len(came)%each == 0 {
				turns <- struct{}{}
			}
			<-room
		}
		landed <- nil
	}()
	for i := range packets {
		select {
		case room <- struct{}{}:
		case err := <-landed:
			return errors.Join(err, errors.New("ended too soon"))
		case <-ctx.Done():
			return errors.Join(in.Close(), errors.New("packets are lost"))
		}
		if _, err := out.Write(binary.BigEndian.AppendUint64(nil, uint64(i))); err != nil {
			return err
		}
	}
	select {
	case err := <-landed:
		return err
	case <-ctx.Done():
		return errors.Join(in.Close(), errors.New("packets are lost"))
	}
}

// bytesTo is how much a node has sent to a peer.
func bytesTo(t *testing.T, n *wgtest.Node, key mesh.WireGuardKey) uint64 {
	t.Helper()
	return statsOf(t, n, key).TransmitBytes
}

func statsOf(t *testing.T, n *wgtest.Node, key mesh.WireGuardKey) mesh.PeerStats {
	t.Helper()
	s, err := n.Stats()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(s.Peers, func(p mesh.PeerStats) bool { return p.PublicKey == key })
	if i < 0 {
		t.Fatalf("%v is no peer", key)
	}
	return s.Peers[i]
}

// What is veiled shows where packets go, and nowhere else.
func TestVeil_StatsShowWherePacketsGo(t *testing.T) {
	a, b, hub := wgtest.New(t, 1, wg.Options{}), wgtest.New(t, 2, wg.Options{}), wgtest.New(t, 3, wg.Options{})
	for _, on := range []bool{false, true, false} {
		p := b.Peer()
		networks := slices.Clone(p.AllowedIPs)
		slices.SortFunc(networks, netip.Prefix.Compare)
		p.Veiled, p.AllowedIPs, p.Veil = networks, nil, on
		a.SetPeers(hub.Peer(networks...), p)
		direct, rest := statsOf(t, a, b.Key()).AllowedIPs, statsOf(t, a, hub.Key()).AllowedIPs
		if on && !slices.Equal(direct, networks) || !on && len(direct) > 0 {
			t.Errorf("on %v: behind the peer are %v", on, direct)
		}
		if has := slices.ContainsFunc(rest, func(p netip.Prefix) bool { return slices.Contains(networks, p) }); has == on {
			t.Errorf("on %v: behind the hub are %v", on, rest)
		}
	}
	p := b.Peer()
	p.Veiled = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	a.Config.Peers = []wg.Peer{p}
	if err := a.Set(timeout(t), a.Config); !errors.Is(err, mesh.ErrInvalid) {
		t.Errorf("everything veiled: %v", err)
	}
}
