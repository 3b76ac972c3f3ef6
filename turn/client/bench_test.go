// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
)

const benchSize = 1200

// startEcho is a TURN server over UDP that sends ChannelData back, or counts it
// as it comes when echo is false; what is relayed goes nowhere.
func startEcho(t testing.TB, echo bool) (cfg Config, count func() int64) {
	t.Helper()
	s := newFakeServer()
	s.relayed = netip.AddrPortFrom(loopback, 9)
	c, addr := listenUDP(t, loopback)
	c.SetReadBuffer(socketBuffer)
	var n atomic.Int64
	served := make(chan struct{})
	go func() {
		defer close(served)
		buf := make([]byte, packetSize)
		for {
			size, from, err := c.ReadFromUDPAddrPort(buf)
			switch {
			case err != nil:
				return
			case buf[0]>>6 != 0 && echo:
				c.WriteToUDPAddrPort(buf[:size], from)
			case buf[0]>>6 != 0:
				n.Add(1)
			default:
				if answer := s.answer(buf[:size]); answer != nil {
					c.WriteToUDPAddrPort(answer, from)
				}
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-served })
	return Config{Server: "turn:" + addr.String(), Username: testUser, Password: testPassword}, n.Load
}

// BenchmarkWriteBatch sends packets of 1200 bytes over a channel, beside the
// same number of raw UDP datagrams to the same reader. One packet is one operation.
func BenchmarkWriteBatch(b *testing.B) {
	packets := make([][]byte, maxBurst)
	for i := range packets {
		packets[i] = make([]byte, benchSize)
	}
	run := func(name string, write func(b *testing.B, a *Allocation, raw net.Conn, peer netip.AddrPort)) {
		b.Run(name, func(b *testing.B) {
			cfg, count := startEcho(b, false)
			a := mustAllocate(b, cfg)
			peer := netip.AddrPortFrom(loopback, 10)
			openChannel(b, a, peer)
			raw, err := net.Dial("udp", cfg.Server[len("turn:"):])
			if err != nil {
				b.Fatal(err)
			}
			defer raw.Close()
			packets[0][0] = 0x40 // as ChannelData, for the reader to count
			b.SetBytes(benchSize)
			b.ReportAllocs()
			b.ResetTimer()
			write(b, a, raw, peer)
			b.ReportMetric(float64(count())/b.Elapsed().Seconds(), "received/s")
		})
	}
	run("raw", func(b *testing.B, _ *Allocation, raw net.Conn, _ netip.AddrPort) {
		for range b.N {
			if _, err := raw.Write(packets[0]); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, size := range []int{1, 8, maxBurst} {
		run(fmt.Sprintf("allocation by %d", size), func(b *testing.B, a *Allocation, _ net.Conn, peer netip.AddrPort) {
			for n := 0; n < b.N; n += size {
				if err := a.WriteBatch(packets[:min(size, b.N-n)], peer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// openChannel sends until there is a channel to peer.
func openChannel(t testing.TB, a *Allocation, peer netip.AddrPort) {
	t.Helper()
	eventually(t, "there is a channel", func() bool {
		if err := a.WriteTo([]byte("knock"), peer); err != nil {
			t.Fatal(err)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		return !a.core.peers[peer].bound.IsZero()
	})
}

// BenchmarkReadBatch has a peer send to the relayed address of our server, one
// packet after the other was read. The server, in the same process, allocates.
func BenchmarkReadBatch(b *testing.B) {
	s := startServer(b, nil)
	for _, transport := range transports() {
		b.Run(string(transport), func(b *testing.B) {
			c, peer := listenUDP(b, loopback)
			a := mustAllocate(b, s.config(transport, "u"))
			openChannel(b, a, peer)
			bufs, sizes, from := [][]byte{make([]byte, MaxPacket)}, make([]int, 1), make([]netip.AddrPort, 1)
			data := make([]byte, benchSize)
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.WriteToUDPAddrPort(data, a.Relayed()); err != nil {
					b.Fatal(err)
				}
				if _, err := a.ReadBatch(bufs, sizes, from); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The server of this test does not allocate, so what does is the client.
func TestDataPath_DoesNotAllocate(t *testing.T) {
	cfg, _ := startEcho(t, true)
	a := mustAllocate(t, cfg)
	peer := netip.AddrPortFrom(loopback, 10)
	openChannel(t, a, peer)
	bufs, sizes, from := make([][]byte, 4), make([]int, 4), make([]netip.AddrPort, 4)
	for i := range bufs {
		bufs[i] = make([]byte, MaxPacket)
	}
	packets := make([][]byte, 16)
	for i := range packets {
		packets[i] = make([]byte, benchSize)
	}
	round := func() {
		if err := a.WriteBatch(packets, peer); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(packets); {
			got, err := a.ReadBatch(bufs, sizes, from)
			if err != nil {
				t.Fatal(err)
			}
			n += got
		}
	}
	round()
	// With the race detector, pools lose a quarter of what they are given.
	if n := testing.AllocsPerRun(500, round); n >= float64(len(packets)/2) {
		t.Errorf("%.0f allocations for %d packets there and back", n, len(packets))
	}
}
