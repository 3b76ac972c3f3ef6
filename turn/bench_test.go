// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun"
)

// BenchmarkServer_ChannelData relays packets one by one over loopback, there and
// back: a datagram of the client to its peer, and the peer's answer.
func BenchmarkServer_ChannelData(b *testing.B) {
	peer, addr := listenUDP(b)
	s := newServer(b, func(c *Config) { c.AllowPeer = func(_ string, p netip.AddrPort) bool { return p == addr } })
	c := dialUDP(b, s, s.secrets.Mint("u", time.Hour))
	c.allocate()
	c.request(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(addr))
	out := append([]byte{0x40, 0, 4, 0}, make([]byte, 1024)...)
	in := make([]byte, 2048)
	b.SetBytes(2 * 1024)
	b.ReportAllocs()
	for b.Loop() {
		c.send(out)
		n, relay, err := peer.ReadFromUDPAddrPort(in)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := peer.WriteToUDPAddrPort(in[:n], relay); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(in); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkServer_Allocate makes and ends an allocation: three requests.
func BenchmarkServer_Allocate(b *testing.B) {
	s := newServer(b, nil)
	c := dialUDP(b, s, s.secrets.Mint("u", time.Hour))
	c.allocate()
	c.request(stun.MethodRefresh, lifetimeSeconds(0))
	for b.Loop() {
		if got := code(c.request(stun.MethodAllocate, transportUDP)); got != 0 {
			b.Fatal(got)
		}
		if got := code(c.request(stun.MethodRefresh, lifetimeSeconds(0))); got != 0 {
			b.Fatal(got)
		}
	}
}
