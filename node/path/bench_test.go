// SPDX-License-Identifier: Apache-2.0

package path_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/meshgate/meshgate/node/path"
)

// What it costs to turn a forged check away is what a flood of them costs.
func BenchmarkAgent_Forged(b *testing.B) {
	v := newVictim(b)
	m := v.request()
	for name, password := range map[string]string{"seal": "not the password at all", "none": ""} {
		forged := m.Marshal(password)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v.a.Packet(v.now, path.Native, peerAddr, forged)
			}
		})
	}
}

func BenchmarkAgent_Served(b *testing.B) {
	v := newVictim(b)
	v.stand()
	b.ReportAllocs()
	for b.Loop() {
		m := v.request()
		if len(v.packet(peerAddr, m.Marshal(v.sealed(v.own.Password)))) != 1 {
			b.Fatal("not answered")
		}
		v.now = v.now.Add(10 * time.Millisecond)
	}
}

// An agent with as many ways as there can be, in its first seconds and at rest.
func BenchmarkAgent_Tick(b *testing.B) {
	crowded := func(b *testing.B) *victim {
		v := newVictim(b)
		for n := path.Socket(1); n < path.MaxSockets; n++ {
			v.check(v.a.SetLocal(v.now, n, []path.Candidate{{Kind: path.Relayed, Transport: path.UDP, Addr: netip.AddrPortFrom(peerAddr.Addr(), uint16(n))}}))
		}
		for i := range path.MaxRemote - 1 {
			v.check(v.a.AddRemote(v.now, path.Candidate{Addr: netip.AddrPortFrom(peerAddr.Addr(), uint16(1000+i))}))
		}
		return v
	}
	b.Run("first", func(b *testing.B) {
		v := crowded(b)
		b.ReportAllocs()
		for b.Loop() {
			v.now = v.now.Add(20 * time.Millisecond)
			v.a.Restart(v.now)
			v.a.Tick(v.now)
			v.a.Outgoing()
		}
	})
	b.Run("rest", func(b *testing.B) {
		v := crowded(b)
		v.stand()
		b.ReportAllocs()
		for b.Loop() {
			v.a.Sent(v.now)
			v.a.Heard(v.now, path.Route{To: peerAddr})
			v.a.Tick(v.now)
		}
	})
}

// The demultiplexer asks this of every datagram.
func BenchmarkIsMessage(b *testing.B) {
	packet := make([]byte, 1420)
	packet[0] = 4
	for b.Loop() {
		if path.IsMessage(packet) {
			b.Fatal("data is taken for STUN")
		}
	}
}
