// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// listenAt opens a socket that stands for a peer.
func listenAt(t testing.TB, addr string) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// The hook allows one port of an address. Another port stays out of reach by every
// way there is, although a permission covers the address. Verdicts on the address of
// the relays are not kept, on others they are.
func TestServer_HookAllowsAPortNotAnAddress(t *testing.T) {
	for name, portable := range map[string]bool{"127.0.0.1:0": false, "127.0.0.2:0": false, "127.0.0.2:0 portable": true} {
		t.Run(name, func(t *testing.T) {
			host, _, _ := strings.Cut(name, " ")
			open, openAddr := listenAt(t, host)
			shut, shutAddr := listenAt(t, host)
			var allowed atomic.Bool
			allowed.Store(true)
			s := newServer(t, func(c *Config) {
				c.Portable = portable
				c.AllowPeer = func(user string, peer netip.AddrPort) bool {
					return allowed.Load() && user == "u" && peer == openAddr
				}
			})
			c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
			relayAddr := c.allocate()
			for _, method := range []stun.Method{stun.MethodCreatePermission, stun.MethodChannelBind} {
				if got := code(c.request(method, channelNumber(0x4001), peerAddress(shutAddr))); got != 403 {
					t.Errorf("%v to the shut port: %d, want 403", method, got)
				}
				if got := code(c.request(method, channelNumber(0x4000), peerAddress(openAddr))); got != 0 {
					t.Errorf("%v to the open port: %d", method, got)
				}
			}
			c.indicate(shutAddr, []byte("by indication"))
			c.indicate(openAddr, []byte("hello"))
			if src := expect(t, open, []byte("hello")); src != relayAddr {
				t.Errorf("the peer saw %v, want the relay %v", src, relayAddr)
			}
			expectNothing(t, shut)
			if n := s.dropped(core.DropForbidden); n != 1 {
				t.Errorf("%d packets dropped, want 1", n)
			}
			shut.WriteToUDPAddrPort([]byte("intruder"), relayAddr)
			open.WriteToUDPAddrPort([]byte("reply"), relayAddr)
			if got := c.packet(); string(got[:9]) != "\x40\x00\x00\x05reply" {
				t.Errorf("client got %q", got)
			}
			if n := s.dropped(core.DropForbidden); n != 2 {
				t.Errorf("%d packets dropped, want 2", n)
			}

			// What is allowed may change while a permission lasts.
			allowed.Store(false)
			s.judgeAnew()
			c.send([]byte("\x40\x00\x00\x04late"))
			c.indicate(openAddr, []byte("late"))
			c.binding()
			expectNothing(t, open)
			open.WriteToUDPAddrPort([]byte("late"), relayAddr)
			eventually(t, "the reply is dropped", func() bool { return s.dropped(core.DropForbidden) == 5 })
			c.binding()
		})
	}
}

// PolicyChanged is enough for what passes to be judged anew, both ways.
func TestServer_PolicyChanged(t *testing.T) {
	peer, addr := listenAt(t, "127.0.0.2:0")
	var allowed atomic.Bool
	s := newServer(t, func(c *Config) {
		c.AllowPeer = func(string, netip.AddrPort) bool { return allowed.Load() }
	})
	allowed.Store(true)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(addr))
	for i := range 4 {
		now := i%2 == 0
		allowed.Store(now)
		var users []string // all
		if i >= 2 {
			users = []string{"somebody", "u"}
		}
		for range 100 { // costs nothing
			s.PolicyChanged(users...)
		}
		eventually(t, "the policy is asked again", func() bool {
			before := s.dropped(core.DropForbidden)
			c.send([]byte("\x40\x00\x00\x01x"))
			c.binding()
			return s.dropped(core.DropForbidden) == before == now
		})
	}
	expect(t, peer, []byte("x"))
}

// forbiddenPeers are what no client reaches, in each spelling: 200 and more.
func forbiddenPeers(t *testing.T) []netip.AddrPort {
	list := deniedSpellings()
	if len(list) < 200 {
		t.Fatalf("only %d spellings", len(list))
	}
	var peers []netip.AddrPort
	for _, s := range list {
		peers = append(peers, netip.MustParseAddrPort(s))
	}
	return peers
}

// A server that opens the Internet to all reaches nothing else, by no spelling, in
// no kind of request, over no relay.
func TestServer_NoSpellingReachesAForbiddenPeer(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Relay.Public6, c.Relay.Bind6 = netip.IPv6Loopback(), netip.IPv6Loopback()
		c.TCPRelays, c.Limits.ConnectsPerSecond = true, 10000
	})
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate(transportUDP, bothFamilies)
	tcp := [2]*rawClient{}
	for i, attrs := range [][]stun.Setter{{transportTCP}, {transportTCP, familyOf6}} {
		tcp[i] = dialTCP(t, s, s.secrets.Mint("u", time.Minute))
		tcp[i].allocate(attrs...)
	}
	peers := append(forbiddenPeers(t), s.UDPAddrs()[0], s.TCPAddrs()[0], netip.AddrPortFrom(loopback, 22), netip.MustParseAddrPort("[::1]:22"))
	for _, p := range peers {
		for name, got := range map[string]int{
			"permission": code(c.request(stun.MethodCreatePermission, peerAddress(p))),
			"channel":    code(c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(p))),
			"connection": code(tcp[familyIndex(p)].request(stun.MethodConnect, peerAddress(p))),
		} {
			if got != 403 {
				t.Errorf("%s to %v: %d, want 403", name, p, got)
			}
		}
		c.indicate(p, []byte("x"))
	}
	c.binding()
	if n := s.totals().core.Relayed.SentPackets; n != 0 {
		t.Errorf("%d packets left", n)
	}
	if got := code(c.request(stun.MethodCreatePermission, peerAddress(publicPeer))); got != 0 {
		t.Errorf("permission for a public peer: %d", got)
	}
}

func familyIndex(p netip.AddrPort) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// What an operator opens and shuts holds for who is there.
func TestServer_SetNetworks(t *testing.T) {
	s := newServer(t, nil)
	c := dialUDP(t, s, s.secrets.Mint("u", time.Minute))
	c.allocate()
	c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(publicPeer))
	passes := func() bool { // as far as the policy goes: the host may have no way there
		before := s.dropped(core.DropForbidden)
		c.send([]byte("\x40\x00\x00\x01x"))
		c.binding()
		return s.dropped(core.DropForbidden) == before
	}
	if !passes() {
		t.Fatal("an open network is shut")
	}
	for _, open := range []bool{false, true} {
		var networks []netip.Prefix
		if open {
			networks = everywhere()
		}
		if err := s.SetNetworks(networks); err != nil {
			t.Fatal(err)
		}
		if passes() != open {
			t.Errorf("with %v open a packet passes: %t", networks, !open)
		}
	}
	if err := s.SetNetworks([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}); err == nil || !passes() {
		t.Errorf("a network that may not be open: %v", err)
	}
}

// Relays that are to come may have permissions; nothing passes until they are there.
func TestServer_RelaysToCome(t *testing.T) {
	first := freePorts(t, 8)
	s := newServer(t, func(c *Config) {
		c.AllowNetworks = nil
		c.Relay.MinPort, c.Relay.MaxPort = first, first+7
	})
	a := dialUDP(t, s, s.secrets.Mint("a", time.Minute))
	relayA := a.allocate()
	b := dialUDP(t, s, s.secrets.Mint("b", time.Minute))
	later := netip.AddrPortFrom(loopback, first+(relayA.Port()-first+1)%8)
	other, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(later)) // something of the host has the port
	if err != nil {
		t.Fatal(err)
	}
	if got := code(a.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(later))); got != 0 {
		t.Fatalf("channel to a relay to come: %d", got)
	}
	if got := code(a.request(stun.MethodCreatePermission, peerAddress(netip.AddrPortFrom(loopback, first+8)))); got != 403 {
		t.Errorf("permission for a port beyond: %d", got)
	}
	a.send([]byte("\x40\x00\x00\x01x"))
	a.binding()
	expectNothing(t, other)
	other.Close()
	// b takes ports until it has that one.
	var relayB netip.AddrPort
	for relayB != later {
		b = dialUDP(t, s, b.cred)
		relayB = b.allocate()
	}
	b.request(stun.MethodChannelBind, channelNumber(0x4001), peerAddress(relayA))
	a.send([]byte("\x40\x00\x00\x04ping"))
	if got := b.packet(); string(got) != "\x40\x01\x00\x04ping" {
		t.Errorf("b got %q", got)
	}
	b.request(stun.MethodRefresh, lifetimeSeconds(0))
	a.send([]byte("\x40\x00\x00\x04gone"))
	a.binding()
	if n := s.dropped(core.DropForbidden); n != 2 {
		t.Errorf("%d packets dropped, want 2", n)
	}
}
