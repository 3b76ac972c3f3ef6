// SPDX-License-Identifier: Apache-2.0

package xdp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshgate/meshgate/turn/core"
)

// BenchmarkProgram measures how long a program takes for a packet that it sends,
// with a thousand bindings, in nanoseconds by program, IP version, size and
// checksum. The kernel runs it on one packet again and again: two bindings lead in
// a circle, so that it gets a header and loses it in turn.
func BenchmarkProgram(b *testing.B) {
	w := newWorld(b)
	until := time.Now().Add(time.Hour)
	bind := func(client, server, relay, peer netip.AddrPort) {
		w.engine.cfg.Listeners = map[uint16]netip.AddrPort{0: server}
		w.engine.Changed(core.Flow{Client: client}, slices.Values([]core.Binding{
			{Channel: 0x4000, Relayed: relay, Peer: peer, ToPeer: until, FromPeer: until},
		}))
	}
	for _, client := range clients() {
		server, relay, peer := beside(client, 1), beside(client, 2), beside(client, 3)
		for _, a := range []netip.AddrPort{server, relay, peer} {
			neighbour(b, "near", a.Addr())
		}
		for i := range uint16(500) {
			other := netip.AddrPortFrom(client.Addr(), 10000+i)
			bind(other, server, netip.AddrPortFrom(relay.Addr(), 10000+i), peer)
		}
		bind(client, server, relay, peer)
		bind(server, client, peer, relay)
		for _, program := range programs() {
			for _, size := range []int{100, 1200} {
				came := received(client, server, frame(0x4000, random(size)))
				names := map[check]string{full: "full"}
				if client.Addr().Is4() {
					names[none] = "none"
				}
				for c, name := range names {
					came.check = c
					b.ReportMetric(w.circle(program, came.marshal(), 200*b.N), fmt.Sprintf("%s/v%d/%dB/%s", program, family(client.Addr()), size, name))
				}
			}
		}
	}
}

// beside is an address some way behind another one.
func beside(a netip.AddrPort, n int) netip.AddrPort {
	addr := a.Addr()
	for range n {
		addr = addr.Next()
	}
	return netip.AddrPortFrom(addr, a.Port()+uint16(n))
}

// cpuTime is what the thread has used.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var t unix.Timespec
	must(tb, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t))
	return time.Duration(t.Nano())
}

// circle runs a program many times on a frame that it keeps sending, and returns
// the CPU time of one.
func (w *world) circle(program string, frame []byte, times int) (nanoseconds float64) {
	w.Helper()
	options := ebpfRun(frame, w.near)
	options.Repeat = uint32(times)
	before := w.engine.Stats().Packets[Sent]
	start := cpuTime(w)
	_, err := w.engine.programs.Programs[program].Run(&options)
	took := cpuTime(w) - start
	must(w, err)
	if sent := w.engine.Stats().Packets[Sent] - before; sent < uint64(times) {
		w.Fatalf("%d of %d packets were sent", sent, times)
	}
	return float64(took) / float64(times)
}
